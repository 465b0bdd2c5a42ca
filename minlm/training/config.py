"""Configs as JSON: each option is written once, as a field of a frozen dataclass.

A field's help is the line `name: text` of its class's docstring. A field whose metadata has `set_from` is not an
option of the command line; the options of a nested config whose metadata has `inline` go without its name. Unknown
names, wrong types and impossible values are one-line ValueErrors. minlm/training/options.py makes the options of the
command line from the same fields.
"""

import difflib
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from minlm.training.files import has_content, read_object, replace_text

# An option that only one kind of run has, and the message if another kind was expected.
OWNERS = {
    "tokens": "of a language model's run: use train_lm.py or python -m minlm",
    "transform": "of a CLIP's run: use train_clip.py or python -m minclip",
}
# Options by their old names, in configs that were saved before they were renamed.
RENAMED = {
    "average": "ema_decay",
    "lr_floor": "min_lr_ratio",
    "clip_norm": "grad_clip_norm",
    "jitter": "color_jitter",
    **{name: f"model.{name}" for name in ("image", "text", "embed_dim", "temperature", "projection", "loss")},
}


def field_help(cls: type) -> dict[str, str]:
    """Return {field: help} from the `name: text` lines in the docstrings of a dataclass and its bases."""
    help_of: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        doc = inspect.cleandoc(base.__doc__ or "") if is_dataclass(base) else ""
        name = None
        for line in doc.splitlines():
            head, colon, text = line.partition(": ")
            if colon and head.isidentifier():
                name, help_of[head] = head, text
            elif name and line.startswith("  "):
                help_of[name] += " " + line.strip()
            else:
                name = None
    return {field.name: help_of.get(field.name, "") for field in fields(cls)}


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as a dictionary for JSON; "type" names the class of a field that allows several."""
    hints, result = get_type_hints(type(config)), {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            several = len(dataclass_members(hints[field.name])) > 1
            value = ({"type": type(value).__name__} if several else {}) | to_dict(value)
        result[field.name] = list(value) if isinstance(value, tuple) else value
    return result


def from_dict(cls: type, values: dict[str, Any], prefix: str = "") -> Any:
    """Make a config of class cls from these values; the other fields keep their defaults.

    prefix: put before each name in errors. Raises ValueError, with the dotted option, for unknown names, wrong types
    and impossible values.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{prefix.rstrip('.') or 'the config'} must be an object of options, not {values!r}")
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls)]
    arguments = {}
    for name, value in values.items():
        if name not in names:
            renamed = RENAMED.get(name)
            hint = (
                f": it is now {renamed}"
                if renamed and renamed.partition(".")[0] in names
                else nearest(name, names)
            )
            raise ValueError(f"unknown option {prefix}{name}{hint}")
        members = dataclass_members(hints[name])
        if members and value is not None:
            inside = prefix + option_prefix(cls, name)
            arguments[name] = from_dict(*choose_member(members, value, prefix + name), inside)
        else:
            arguments[name] = checked(hints[name], value, prefix + name)
    for field in fields(cls):
        if field.default is field.default_factory is MISSING and field.name not in arguments:
            raise ValueError(f"{prefix}{field.name} is missing, and it has no default: give it")
    try:
        return cls(**arguments)
    except ValueError as error:  # of the class's own checks, which do not know where it is nested
        raise ValueError(with_prefix(str(error), names, prefix)) from None


def option_prefix(cls: type, name: str) -> str:
    """Return the prefix of the options in a nested config: "train.", or "" if it is inline."""
    metadata = next(field.metadata for field in fields(cls) if field.name == name)
    return "" if "inline" in metadata else f"{name}."


def with_prefix(message: str, names: list[str], prefix: str) -> str:
    """Put the prefix before each option that a message names: `lr=0 must ...` -> `--train.lr=0 must ...`.

    A word such as `steps` counts as an option if "=" follows it, or at the start of the message.
    """

    def typed(found: re.Match) -> str:
        word = found[0]
        is_option = "_" in word or found.start() == 0 or message.startswith("=", found.end())
        return prefix + word if word in names and is_option else word

    return re.sub(r"(?<![\w.])\w+", typed, message)


def dataclass_members(annotation: Any) -> list[Any]:
    """Return the dataclasses that a field's type allows: one for a nested config, several for a choice."""
    return [t for t in (get_args(annotation) or (annotation,)) if is_dataclass(t)]


def choose_member(members: list[type], value: Any, name: str) -> tuple[type, dict[str, Any]]:
    """Return the class that the value's "type" names, if there are several, and the other values."""
    if len(members) == 1 or not isinstance(value, dict):
        return members[0], value
    by_name = {member.__name__: member for member in members}
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in by_name:
        raise ValueError(f"{name}.type={kind!r} must be one of {', '.join(by_name)}")
    return by_name[kind], {key: item for key, item in value.items() if key != "type"}


def checked(annotation: Any, value: Any, name: str) -> Any:
    """Return a value of the annotated type, from an int for a float and a list for a tuple; else ValueError."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(str, arguments))}")
    if origin is UnionType:
        if value is None and NoneType in arguments:
            return None
        return checked(next(a for a in arguments if a is not NoneType), value, name)
    if origin is tuple:
        if isinstance(value, list | tuple) and (len(value) == len(arguments) or arguments[-1] is Ellipsis):
            return tuple(checked(arguments[0], item, name) for item in value)
        raise ValueError(f"{name}={value!r} must be {len(arguments)} values separated by commas")
    if annotation is float and type(value) is int and abs(value) < 2**1000:  # larger ones have no float
        value = float(value)
    if type(value) is not annotation:
        raise ValueError(f"{name}={value!r} must be {annotation.__name__}, not {type(value).__name__}")
    if annotation is float and not isfinite(value):
        raise ValueError(f"{name}={value} must be a finite number")
    return value


def parse_option(annotation: Any, text: str, name: str) -> Any:
    """Parse an option's text from the command line as a value of the annotated type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is UnionType:
        inner = next(a for a in arguments if a is not NoneType)
        return None if text.lower() == "none" and NoneType in arguments else parse_option(inner, text, name)
    if origin is tuple:
        parts = text.split(",")
        parts = parts * len(arguments) if len(parts) == 1 and Ellipsis not in arguments else parts
        return checked(annotation, [parse_option(arguments[0], part, name) for part in parts], name)
    if origin is Literal:
        return checked(annotation, next((a for a in arguments if str(a) == text), text), name)
    if annotation is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name}={text!r} must be true or false")
        return text.lower() == "true"
    try:
        value = annotation(text)
    except ValueError:
        raise ValueError(
            f"{name}={text!r} is not {'an' if annotation is int else 'a'} {annotation.__name__}"
        ) from None
    return checked(annotation, value, name)


def save_config(config: Any, path: Path) -> None:
    """Write a config as JSON, atomically."""
    replace_text(path, json.dumps(to_dict(config), indent=2) + "\n")


def check_folder(out: Path, otherwise: str = "") -> None:
    """Raise ValueError if `--out` is a file or a folder that is not empty. otherwise: another way out, if any."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder")
    if has_content(out):
        raise ValueError(f"--out {out} is not empty: choose another folder{otherwise}")


def check_file(path: Path | None, option: str) -> None:
    """Raise ValueError if no file can be written at `path`: its folder is missing, or it is a folder or a device."""
    if path and (not path.parent.is_dir() or (path.exists() and not path.is_file())):
        raise ValueError(f"{option} {path} cannot be written: name a file in an existing folder")


def files_beside_weights(config: Any, tokenizer: Any) -> Callable[[Path], None]:
    """Return a function that writes the files that weights need to be used, vocabulary and config, into a folder."""

    def write(folder: Path) -> None:
        tokenizer.save(folder)
        save_config(config, folder / "config.json")  # last: a folder that has it can be resumed or loaded

    return write


def load_config(cls: type, path: Path) -> Any:
    """Read a config of class cls from a file; ValueError, with the file's name, if it is missing or wrong."""
    if not path.is_file():
        raise ValueError(f"no config at {path}: give a run folder, or the config.json of one")
    values = read_object(path, "correct it, or put back the copy in the run's newest step-* folder")
    for name, owner in OWNERS.items():
        if name in values and name not in get_type_hints(cls):
            raise ValueError(f"{path} is {owner}")
    try:
        return from_dict(cls, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def nearest(name: str, names: list[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known one, or all."""
    close = difflib.get_close_matches(name, names, n=1)
    return f": did you mean {close[0]}?" if close else f"; there are {', '.join(names)}"
