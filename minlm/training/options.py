"""Options of the command line, made from the fields of a config: a field `image.n_layers` is `--image.n_layers 4`."""

import argparse
import difflib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from minlm.training.bounds import bounds_of
from minlm.training.config import field_help, from_dict, option_prefix, parse_option, to_dict

SHORTHANDS = {name: f"train.{name}" for name in ("minutes", "steps", "epochs", "seed")}
# Shown first in --help; "data" is every option of the data.
COMMON = (
    *("train.minutes", "train.steps", "train.epochs", "train.seed"),
    *("data", "train.batch_size", "train.lr"),
)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser with one-line errors and without abbreviated options.

    elsewhere: {option: presets that have it}, to suggest a preset for an option that this one lacks.
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
        """Suggest the nearest options, of this preset or of others; typed without a dot, --lr is near --train.lr."""
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
        """Return its position among the COMMON options, or their number if it is not one of them."""
        places = (i for i, common in enumerate(COMMON) if f"{self.name}.".startswith(f"{common}."))
        return next(places, len(COMMON))


def options_of(config: Any, prefix: str = "", path: tuple[str, ...] = ()) -> Iterator[Option]:
    """Yield the options of a config and of the configs in it, except fields that are set from the data."""
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
    """Add one option per field of the (nested) config: the common ones first, then part by part.

    only: add the options of this part of the config alone.
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
    """Return the config with the dotted options, given as text, in place of its values."""
    values, paths = to_dict(config), {option.name: option.path for option in options_of(config)}
    for name, text in options.items():
        place, owner, (*path, last) = values, config, paths[name]
        for part in path:
            place, owner = place[part], getattr(owner, part)
        place[last] = parse_option(get_type_hints(type(owner))[last], text, f"--{name}")
    return from_dict(type(config), values, "--")


def checkpoint_parser(command: Callable, package: str) -> OneLineParser:
    """Return a parser with --checkpoint, described by the command's docstring."""
    parser = OneLineParser(
        prog=f"python -m {package} {command.__name__}", description=inspect.getdoc(command)
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN", help="a run's folder")
    return parser


def add_device(parser: OneLineParser) -> None:
    """Add --device to a command that runs a model."""
    names = ("auto", "cpu", "cuda", "mps")
    parser.add_argument("--device", choices=names, default="auto", help="auto: a GPU if there is one")


def call_command(commands: dict[str, Callable[[list[str]], None]], description: str | None) -> None:
    """Call the command that the first word names with the words after it; without a word, print the description."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(description)
    elif name in commands:
        commands[name](arguments)
    else:
        raise ValueError(f"unknown command {name!r}: there are {', '.join(commands)}")
