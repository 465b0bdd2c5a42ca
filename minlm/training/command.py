"""The command line of both training scripts: from words to a config and a run's folder, then to training.

First a preset or a saved config is chosen, then options override it.
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minlm.training.checkpoint import has_checkpoint, last_checkpoint
from minlm.training.config import check_folder, load_config
from minlm.training.distributed import from_first_process, processes, rank
from minlm.training.errors import disk_full, one_line, out_of_memory
from minlm.training.files import run_folder
from minlm.training.loop import Interrupted
from minlm.training.options import OneLineParser, add_options, options_of, override

LIMITS = {"train.minutes", "train.steps", "train.epochs"}
RESUME_ALONE = (
    "--resume continues a run with its own config: it can be combined only with --steps, --minutes and --epochs, "
    "to train longer, and with --train.micro_batches, to save memory"
)


@dataclass(frozen=True)
class Command:
    """A request of the command line: a config, the run's folder, and whether to resume the run in it.

    numbered: the folder's name was not given, so another name is taken if it exists.
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

    full: presets with the published sizes, too large for a laptop, under the same names (`--size full`).
    about: one line per preset, for --help.
    A resumed run keeps its own config. Limits given with --resume replace all of its limits; --train.micro_batches
    is allowed too, because it changes no gradient.
    Raises ValueError for impossible values; exits with status 2 for unknown options.
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
        help="minutes on a laptop (the default), or the published sizes",
    )
    choice.add_argument("--config", type=Path, metavar="FILE", help="a run's config.json instead of a preset")
    choice.add_argument(
        "--out", type=Path, metavar="DIR", help="the run's folder (default: runs/PRESET-TIME)"
    )
    choice.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="continue this run from its last checkpoint; limits given with it replace the run's",
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
        raise ValueError("--config cannot be combined with --preset or --size")
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
        "With the values of this preset as defaults. For those of another preset: --preset NAME --help.",
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
    """Return the config of a run with the options given with --resume; ValueError if they are not allowed."""
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


def run_training(
    train: Callable[[Any, Path, bool], Any],
    presets: dict[str, Any],
    description: str | None,
    full: dict[str, Any],
    about: dict[str, str] | None = None,
) -> None:
    """Call train(config, run, resume) as the command line says, in every process; errors name the way out."""
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
    """Read the command line on rank 0 and broadcast it. If rank 0 exits, the others exit silently with its status."""
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
