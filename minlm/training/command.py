"""The command line of both training scripts, made from the fields of their config.

Nested dataclasses become dotted options (`--image.n_layers 4`). First a preset or a saved config is chosen,
then options override it. Errors are one line and exit status 2.
"""

import argparse
import difflib
import errno
import inspect
import io
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, TextIO, get_args, get_origin, get_type_hints

from minlm.training.bounds import bounds_of
from minlm.training.checkpoint import has_checkpoint, last_checkpoint
from minlm.training.config import (
    check_folder,
    field_help,
    from_dict,
    load_config,
    option_prefix,
    read_text,
    to_dict,
)
from minlm.training.distributed import from_first_process, processes, rank
from minlm.training.files import run_folder
from minlm.training.loop import Interrupted

SHORTHANDS = {name: f"train.{name}" for name in ("minutes", "steps", "epochs", "seed")}
# Shown first in --help; "data" is every option of the data.
COMMON = (
    *("train.minutes", "train.steps", "train.epochs", "train.seed"),
    *("data", "train.batch_size", "train.lr"),
)
LIMITS = {"train.minutes", "train.steps", "train.epochs"}
RESUME_ALONE = (
    "--resume continues a run with its own config: beside it stand only --steps, --minutes and --epochs, "
    "to train it longer, and --train.micro_batches, to save memory"
)


@dataclass(frozen=True)
class Command:
    """A request of the command line: a config, the run's folder, and whether to continue what is there.

    numbered: the folder's name was not given, so it may be changed to one that is free.
    """

    name: str
    config: Any
    run: Path
    resume: bool
    numbered: bool = False


def command_line(
    presets: dict[str, Any],
    description: str | None,
    arguments: list[str] | None = None,
    full: dict[str, Any] | None = None,
    about: dict[str, str] | None = None,
) -> Command:
    """Read the command line of a training script; the first preset is the default.

    full: the presets that have published shapes, too large for a laptop, under the same names (`--size full`).
    about: a line on each preset, for --help.
    A run that is resumed keeps its own config. Limits given beside --resume replace all of its limits, so that it can
    be trained longer; --train.micro_batches may be given too, because it changes no gradient.
    Raises ValueError for values that cannot be; exits with status 2 for options that are not there.
    """
    first = OneLineParser(add_help=False)
    default, wide = next(iter(presets)), max(map(len, presets))
    lines = [f"{name:{wide}}  {(about or {}).get(name, '')}".rstrip() for name in presets]
    choice = first.add_argument_group("what to train", "\n".join(["presets:", *lines]))
    choice.add_argument(
        "--preset", choices=presets, metavar="NAME", help=f"one of the presets above (default: {default})"
    )
    choice.add_argument(
        "--size",
        choices=("tiny", "full"),
        help="minutes on a laptop (the default), or the published shapes",
    )
    choice.add_argument("--config", type=Path, metavar="FILE", help="a run's config.json instead of a preset")
    choice.add_argument(
        "--out", type=Path, metavar="DIR", help="the run's folder (default: runs/PRESET-TIME)"
    )
    choice.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="continue this run from its last checkpoint; limits given beside it replace the run's",
    )
    chosen, _ = first.parse_known_args(arguments)
    cls = type(presets[default])
    if chosen.resume:
        if chosen.config or chosen.out or chosen.preset or chosen.size:
            raise ValueError(RESUME_ALONE)
        if (chosen.resume / "model.safetensors").is_file():
            raise ValueError(
                f"--resume {chosen.resume} is a checkpoint: give its run, {chosen.resume.parent}"
            )
    if chosen.config and (chosen.preset or chosen.size):
        raise ValueError("--config FILE stands in place of a preset: give no --preset or --size beside it")
    sized = (full or {}) if chosen.size == "full" else presets
    preset = chosen.preset or default
    if preset not in sized:
        raise ValueError(f"preset {preset} has no --size full: there are {', '.join(full or {}) or 'none'}")
    saved = chosen.resume / "config.json" if chosen.resume else chosen.config
    config = load_config(cls, saved) if saved else sized[preset]
    usage = (
        "%(prog)s [--preset NAME [--size SIZE] | --config FILE] [--out DIR] [--OPTION VALUE ...]\n"
        "       %(prog)s --resume RUN [--steps N] [--minutes X] [--epochs X]"
    )
    elsewhere: dict[str, list[str]] = {}
    for name, other in sized.items():
        for option in options_of(other):
            elsewhere.setdefault(f"--{option.name}", []).append(name)
    parser = OneLineParser(elsewhere, usage=usage, description=description, parents=[first])
    parser.add_argument_group(
        f"the options of {saved or f'--preset {preset}'}",
        "Those below, with their values here as defaults. Other presets have others: --preset NAME --help.",
    )
    add_options(parser, config)
    options = vars(parser.parse_args(arguments))
    given = {name: text for name, text in options.items() if name not in vars(chosen)}
    if chosen.resume:
        return Command(chosen.resume.name, resumed(chosen.resume, config, given), chosen.resume, True)
    config = override(config, given)
    run = chosen.out or Path("runs") / f"{preset}-{time.strftime('%Y%m%d-%H%M%S')}"
    if chosen.out:
        is_run = (run / "config.json").is_file()
        check_folder(run, f", or continue it with --resume {run}" if is_run else "")
    return Command(preset, config, run, False, numbered=chosen.out is None)


def resumed(run: Path, config: Any, given: dict[str, str]) -> Any:
    """The config of a run with the options given beside --resume. ValueError where they cannot stand there."""
    if given.keys() - LIMITS - {"train.micro_batches"}:
        raise ValueError(RESUME_ALONE)
    no_limits = dict.fromkeys(LIMITS, "0") if given.keys() & LIMITS else {}
    config = override(config, no_limits | given)
    if "train.steps" in given and has_checkpoint(run):
        trained = int(last_checkpoint(run).name.removeprefix("step-"))
        if 0 < config.train.steps < trained:
            raise ValueError(
                f"--steps {config.train.steps}: {run} has trained {trained} steps already: ask for more"
            )
    return config


class OneLineParser(argparse.ArgumentParser):
    """argparse without the pages of usage before an error, and without abbreviated options.

    elsewhere: the presets that have an option, by its name; for an option that the chosen one lacks.
    """

    def __init__(self, elsewhere: dict[str, list[str]] | None = None, **arguments: Any):
        layout = partial(argparse.RawDescriptionHelpFormatter, width=115, max_help_position=38)
        super().__init__(allow_abbrev=False, formatter_class=layout, **arguments)
        self.elsewhere = elsewhere or {}

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; --help lists the options\n")

    def parse_args(self, args: list[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        known, unknown = self.parse_known_args(args)
        if unknown:
            self.error(f"unknown option {unknown[0]}{self.meant_by(unknown[0].partition('=')[0])}")
        return known

    def meant_by(self, typed: str) -> str:
        """The nearest options, here or of other presets. Without a dot, last parts are compared: --lr, --train.lr."""
        own = [name for name in self._option_string_actions if name.startswith("--")]
        by_word: dict[str, list[str]] = {}
        for option in dict.fromkeys([*own, *self.elsewhere]):
            word = option if "." in typed else option.removeprefix("--").rpartition(".")[2]
            by_word.setdefault(word, []).append(option)
        close = difflib.get_close_matches(typed if "." in typed else typed.lstrip("-"), by_word, n=1)
        meant = by_word[close[0]] if close else []
        if here := [option for option in meant if option in own]:
            return f": did you mean {' or '.join(here)}?"
        return "".join(
            f": {option} is an option of --preset {' | '.join(self.elsewhere[option])}" for option in meant
        )


@dataclass(frozen=True)
class Option:
    """An option of the command line, made from a field of a config."""

    name: str  # dotted, without --
    path: tuple[str, ...]  # fields that lead to it, from the whole config on
    part: str  # the heading of its group
    metavar: str
    help: str

    def place(self) -> int:
        """Its position among the COMMON options; their number if it is not one of them."""
        places = (i for i, common in enumerate(COMMON) if f"{self.name}.".startswith(f"{common}."))
        return next(places, len(COMMON))


def options_of(config: Any, prefix: str = "", path: tuple[str, ...] = ()) -> Iterator[Option]:
    """The options of a config and of those nested in it, except fields that are set from the data."""
    help_of, hints, bounds = field_help(type(config)), get_type_hints(type(config)), bounds_of(type(config))
    first_line = (inspect.getdoc(type(config)) or "").splitlines()[0]
    part = f"{prefix.rstrip('.') or ''.join(path[-1:]) or 'run'}: {first_line.rstrip('.')}"
    nested = []
    for field in fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if is_dataclass(value):
            nested.append((value, prefix + option_prefix(type(config), field.name), (*path, field.name)))
        elif "set_from" not in field.metadata:
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
            allowed = f"{bounds[field.name].text}; " if field.name in bounds else ""
            text = f"{help_of[field.name]} ({allowed}default: {shown})".replace("%", "%%")
            yield Option(name, (*path, field.name), part, metavar(hints[field.name]), text)
    for value, inside, place in nested:
        yield from options_of(value, inside, place)


def add_options(parser: argparse.ArgumentParser, config: Any, only: str = "") -> None:
    """One option per field of the (nested) config, its default shown: the common ones, then part by part.

    only: take the fields of this part of the config and leave out the others.
    """
    options = [option for option in options_of(config) if not only or option.path[0] == only]
    groups: dict[str, list[Option]] = {}
    for option in sorted(options, key=Option.place):
        common = not only and option.place() < len(COMMON)
        groups.setdefault("common options" if common else option.part, []).append(option)
    for title, members in groups.items():
        group = parser.add_argument_group(title)
        for option in members:
            group.add_argument(
                f"--{option.name}",
                *(f"--{alias}" for alias, name in SHORTHANDS.items() if name == option.name),
                dest=option.name,
                metavar=option.metavar,
                help=option.help,
                default=argparse.SUPPRESS,
            )


def metavar(annotation: Any) -> str:
    """Return the placeholder for an option's value: its choices, or its type in short."""
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return ",".join("..." if part is Ellipsis else metavar(part) for part in get_args(annotation))
    names = {int: "N", float: "X", bool: "true|false", str: "TEXT"}
    return next(names[t] for t in (get_args(annotation) or (annotation,)) if t in names)


def override(config: Any, options: dict[str, str]) -> Any:
    """The config with dotted options, given as text, put in place of its values; checked as a whole once."""
    values, paths = to_dict(config), {option.name: option.path for option in options_of(config)}
    for name, text in options.items():
        place, owner, (*path, last) = values, config, paths[name]
        for part in path:
            place, owner = place[part], getattr(owner, part)
        place[last] = read_text(get_type_hints(type(owner))[last], text, f"--{name}")
    return from_dict(type(config), values, "--")


def checkpoint_parser(command: Callable, package: str) -> OneLineParser:
    """A parser with what every command takes; its description is the command's docstring."""
    parser = OneLineParser(
        prog=f"python -m {package} {command.__name__}", description=inspect.getdoc(command)
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN", help="a run's folder")
    return parser


def add_device(parser: OneLineParser) -> None:
    """Add --device to a command that runs a model."""
    names = ("auto", "cpu", "cuda", "mps")
    parser.add_argument("--device", choices=names, default="auto", help="auto: a GPU where there is one")


def call_command(commands: dict[str, Callable[[list[str]], None]], description: str | None) -> None:
    """The command that the first word names, with the words after it; the description where there is none."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(description)
    elif name in commands:
        commands[name](arguments)
    else:
        raise ValueError(f"unknown command {name!r}: there are {', '.join(commands)}")


def run_training(
    train: Callable[[Any, Path, bool], Any],
    presets: dict[str, Any],
    description: str | None,
    full: dict[str, Any],
    about: dict[str, str] | None = None,
) -> None:
    """Call train(config, run, resume) as the command line asks, in every process; errors name the way out."""
    with processes(), ExitStack() as held:

        def begin() -> Command:
            command = command_line(presets, description, full=full, about=about)
            folder = run_folder(command.run, new=not command.resume, numbered=command.numbered)
            return replace(command, run=held.enter_context(folder))

        command = agreed_command(begin)
        run = command.run
        try:
            train(command.config, run, command.resume)
        except Interrupted:
            raise
        except KeyboardInterrupt:
            if rank() == 0 and has_checkpoint(run):
                print(f"\n--resume {run} continues from the last checkpoint", file=sys.stderr)
            raise
        except Exception as error:
            resumable = (run / "config.json").is_file()
            parts = 2 * command.config.train.micro_batches
            if out_of_memory(error) and resumable and parts <= command.config.train.batch_size:
                raise ValueError(
                    f"out of memory: continue with --resume {run} --train.micro_batches "
                    f"{parts}, which computes a batch in more parts"
                ) from error
            if out_of_memory(error):
                raise ValueError(
                    f"out of memory: start again with a larger --train.micro_batches (it is "
                    f"{command.config.train.micro_batches}), which computes a batch in more parts, or with a "
                    f"smaller --train.batch_size (it is {command.config.train.batch_size})"
                ) from error
            if disk_full(error):
                way_out = f"continue with --resume {run}" if resumable else "start again"
                raise ValueError(f"no space left on the device: free some and {way_out}") from error
            raise


def agreed_command(read: Callable[[], Command]) -> Command:
    """Read the command line in the first process for all. Where that ends it, all end with its status, silently."""
    ended: list[BaseException] = []

    def attempt() -> Command | SystemExit:
        try:
            return read()
        except SystemExit as error:
            ended.append(error)
            return SystemExit(error.code)
        except Exception as error:
            ended.append(error)
            return SystemExit(2 if one_line(error) else 1)

    command = from_first_process(attempt)
    if ended:  # in the first process, which speaks
        raise ended[0]
    if isinstance(command, SystemExit):
        raise command
    return command


def out_of_memory(error: Exception) -> bool:
    """True for the errors of Python, NumPy, torch's allocators and the system when memory runs out."""
    told = r"out of memory|can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED"
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and re.search(told, str(error)) is not None)
    )


def disk_full(error: Exception) -> bool:
    """True for the errors of Python, NumPy, safetensors and torch.save when the disk, or a quota, is full."""
    told = (
        r"No space left on device|Not enough free space|Disk quota exceeded"
        r"|^\d+ requested and \d+ written|unexpected pos \d+|PytorchStreamWriter failed writing"
    )
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or (
        not isinstance(error, ValueError) and re.search(told, str(error)) is not None
    )


def one_line(error: Exception) -> str | None:
    """The line for an error that the user can mend, or None for a fault of the code."""
    if out_of_memory(error):
        return "out of memory"
    if disk_full(error):
        return "no space left on the device: free some and try again"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError | OSError | RecursionError):
        # An error raised in a loader's worker arrives below its traceback.
        return (str(error).splitlines() or [type(error).__name__])[-1]
    return None


class Outlet:
    """A text stream that can always be written to.

    Characters that its encoding lacks are escaped. After its reader has gone, as `| head -1` does, text is dropped.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self.reader_may_leave():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self.reader_may_leave():
            self.stream.flush()

    @contextmanager
    def reader_may_leave(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # what the stream still holds must not raise again when Python ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


@contextmanager
def outlets() -> Iterator[None]:
    """Make stdout and stderr streams to which printing cannot fail."""
    streams = sys.stdout, sys.stderr  # None where one was closed before Python began
    made = [stream and Outlet(stream) for stream in streams]
    sys.stdout, sys.stderr = made
    try:
        yield
    finally:
        for outlet in filter(None, made):
            outlet.flush()
        sys.stdout, sys.stderr = streams


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Run a command line inside: errors that the user can mend are printed as one line, with exit status 2."""
    script = Path(sys.argv[0])
    name = f"python -m {script.parent.name}" if script.name == "__main__.py" else script.name
    shown, warnings.formatwarning = (
        warnings.formatwarning,
        lambda message, *_: f"{name}: warning: {message}\n",
    )
    with outlets():
        try:
            yield
        except Exception as error:
            line = one_line(error)
            if line is None:
                raise
            print(f"{name}: error: {line}", file=sys.stderr)
            sys.exit(2)
        except Interrupted as error:
            print(f"\n{name}: {error}", file=sys.stderr)
            sys.exit(128 + error.number)
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            sys.exit(130)
        finally:
            warnings.formatwarning = shown


def run_main(main: Callable[[], None]) -> None:
    """Run main() with `errors_in_one_line`."""
    with errors_in_one_line():
        main()
