"""The command line of both training scripts, made from the fields of their config.

Nested dataclasses become dotted options (`--image.n_layers 4`). First a preset or a saved config is chosen,
then options override it. Errors are one line and exit status 2.
"""

import argparse
import difflib
import inspect
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from minlm.training.config import check_folder, field_help, from_dict, load_config, read_text, to_dict
from minlm.training.distributed import from_first_process, processes

SHORTHANDS = {name: f"train.{name}" for name in ("minutes", "steps", "epochs", "seed")}


@dataclass(frozen=True)
class Command:
    """What the command line asks for: a config, the run's folder, and whether to continue what is there."""

    name: str
    config: Any
    run: Path
    resume: bool


def command_line(
    presets: dict[str, Any],
    description: str,
    arguments: list[str] | None = None,
    full: dict[str, Any] | None = None,
) -> Command:
    """Read the command line of a training script; the first preset is the default.

    full: the presets that have published shapes, too large for a laptop, under the same names (`--size full`).
    Raises ValueError for values that cannot be; exits with status 2 for options that are not there.
    """
    first = OneLineParser(add_help=False)
    choice = first.add_argument_group("what to train")
    default = next(iter(presets))
    choice.add_argument("--preset", choices=presets, help=f"recipe (default: {default})")
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
        "--resume", type=Path, metavar="RUN", help="continue this run from its last checkpoint"
    )
    chosen, rest = first.parse_known_args(arguments)
    cls = type(presets[default])
    if chosen.resume:
        if rest or chosen.config or chosen.out or chosen.preset or chosen.size:
            raise ValueError("--resume continues a run with its own config: give no other option beside it")
        if (chosen.resume / "model.safetensors").is_file():
            raise ValueError(
                f"--resume {chosen.resume} is a checkpoint: give its run, {chosen.resume.parent}"
            )
        return Command(
            chosen.resume.name, load_config(cls, chosen.resume / "config.json"), chosen.resume, True
        )
    if chosen.config and (chosen.preset or chosen.size):
        raise ValueError("--config FILE stands in place of a preset: give no --preset or --size beside it")
    sized = (full or {}) if chosen.size == "full" else presets
    preset = chosen.preset or default
    if preset not in sized:
        raise ValueError(f"preset {preset} has no --size full: there are {', '.join(full or {}) or 'none'}")
    config = load_config(cls, chosen.config) if chosen.config else sized[preset]
    usage = "%(prog)s [--preset NAME [--size SIZE] | --config FILE | --resume RUN] [--out DIR] [--OPTION VALUE ...]"
    parser = OneLineParser(usage=usage, description=description, parents=[first])
    add_options(parser, config)
    options = vars(parser.parse_args(arguments))
    config = override(config, {k: v for k, v in options.items() if k not in vars(chosen)})
    run = chosen.out or Path("runs") / f"{preset}-{time.strftime('%Y%m%d-%H%M%S')}"
    check_folder(run, f", or continue it with --resume {run}")
    return Command(preset, config, run, False)


class OneLineParser(argparse.ArgumentParser):
    """argparse without the pages of usage before an error, and without abbreviated options."""

    def __init__(self, **arguments: Any):
        layout = partial(argparse.RawDescriptionHelpFormatter, width=115, max_help_position=38)
        super().__init__(allow_abbrev=False, formatter_class=layout, **arguments)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; --help lists the options\n")

    def parse_args(self, args: list[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        known, unknown = self.parse_known_args(args)
        if unknown:
            options = [name for name in self._option_string_actions if name.startswith("--")]
            close = difflib.get_close_matches(unknown[0].partition("=")[0], options, n=1)
            self.error(f"unknown option {unknown[0]}" + (f": did you mean {close[0]}?" if close else ""))
        return known


def add_options(parser: argparse.ArgumentParser, config: Any, only: str = "") -> None:
    """One option a field of the (nested) config, its default shown; some have a shorthand too.

    only: take the fields of this part of the config and leave out the others.
    """
    if only:
        add_part(parser, getattr(config, only), f"{only}.")
    else:
        add_part(parser, config, "")


def add_part(parser: argparse.ArgumentParser, config: Any, prefix: str) -> None:
    """One group of options for the fields of a config, then one for each config nested in it."""
    help_of, hints = field_help(type(config)), get_type_hints(type(config))
    first_line = (inspect.getdoc(type(config)) or "").splitlines()[0]
    group = parser.add_argument_group(f"{prefix.rstrip('.') or 'run'}: {first_line.rstrip('.')}")
    parts = []
    for field in fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if is_dataclass(value):
            parts.append((value, f"{name}."))
            continue
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        group.add_argument(
            f"--{name}",
            *(f"--{alias}" for alias, option in SHORTHANDS.items() if option == name),
            dest=name,
            metavar=metavar(hints[field.name]),
            help=f"{help_of[field.name]} (default: {shown})".replace("%", "%%"),
            default=argparse.SUPPRESS,
        )
    for value, name in parts:
        add_part(parser, value, name)


def metavar(annotation: Any) -> str:
    """What may stand behind an option: its choices, or its type in short."""
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return ",".join("..." if part is Ellipsis else metavar(part) for part in get_args(annotation))
    names = {int: "N", float: "X", bool: "true|false", str: "TEXT"}
    return next(names[t] for t in (get_args(annotation) or (annotation,)) if t in names)


def override(config: Any, options: dict[str, str]) -> Any:
    """The config with dotted options, given as text, put in place of its values; checked as a whole once."""
    values = to_dict(config)
    for name, text in options.items():
        place, owner, (*path, last) = values, config, name.split(".")
        for part in path:
            place, owner = place[part], getattr(owner, part)
        place[last] = read_text(get_type_hints(type(owner))[last], text, f"--{name}")
    return from_dict(type(config), values)


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


def call_command(commands: dict[str, Callable[[list[str]], None]], description: str) -> None:
    """The command that the first word names, with the words after it; the description where there is none."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(description)
    elif name in commands:
        commands[name](arguments)
    else:
        raise ValueError(f"unknown command {name!r}: there are {', '.join(commands)}")


def run_training(
    train: Callable[[Any, Path, bool], Any], presets: dict[str, Any], description: str, full: dict[str, Any]
) -> None:
    """What a training script does: train(config, run, resume) as the command line asks, in every process of it."""
    with processes():
        command = from_first_process(partial(command_line, presets, description, full=full))
        train(command.config, command.run, command.resume)


def run_main(main: Callable[[], None]) -> None:
    """Run a command line: what is the user's to mend, a ValueError or a file, is one line and exit status 2."""
    script = Path(sys.argv[0])
    name = f"python -m {script.parent.name}" if script.name == "__main__.py" else script.name
    shown, warnings.formatwarning = (
        warnings.formatwarning,
        lambda message, *_: f"{name}: warning: {message}\n",
    )
    try:
        main()
    except (ValueError, OSError, RecursionError) as error:
        line = str(error).splitlines()[-1]  # one raised in a loader's worker arrives below its traceback
        if isinstance(error, OSError) and error.filename is not None:
            line = f"{error.filename}: {error.strerror}"
        print(f"{name}: error: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; `--resume RUN` continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    finally:
        warnings.formatwarning = shown
