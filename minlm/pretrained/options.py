"""Facts that tensors cannot show (heads, activation, epsilon): from a config or the caller, never guessed."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from minlm.training.config import checked, from_dict
from minlm.transformer import TransformerConfig

DECISIVE = {"n_heads", "activation"}
# {Hugging Face's name: ours}; of several names for a function the first is written.
HF_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}


def option(options: dict[str, Any], name: str, kind: Any, where: Any, default: Any = None) -> Any:
    """Return a config file's option, or the default if it is absent or null. Raises ValueError for another type."""
    value = options.get(name)
    return default if value is None else checked(kind, value, f"{where}: the option {name}")


def our_activation(name: Any, where: Any) -> str | None:
    """Translate Hugging Face's name of an activation; None stays None. Raises ValueError for unknown ones."""
    if name is None:
        return None
    if isinstance(name, str) and name in HF_ACTIVATIONS:
        return HF_ACTIVATIONS[name]
    raise ValueError(f"{where} asks for the activation {name!r}: there are {', '.join(HF_ACTIVATIONS)}")


def their_activation(name: str) -> str:
    """Translate our name of an activation to Hugging Face's."""
    return next(theirs for theirs, ours in HF_ACTIVATIONS.items() if ours == name)


def hf_options(config: TransformerConfig) -> dict[str, Any]:
    """Return a Transformer's options under the names that most of Hugging Face's configs share."""
    return {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": their_activation(config.activation),
        "layer_norm_eps": config.norm_eps,
    }


def expect(options: dict[str, Any], wanted: dict[str, Any], where: Any) -> None:
    """Raise ValueError if an option is present with another value than the wanted one."""
    for name, value in wanted.items():
        if options.get(name) not in (None, value):
            raise ValueError(f"{where} has {name}={options[name]!r}: only {value!r} can be loaded")


# {size in most of Hugging Face's configs: ours}
HF_SIZES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "intermediate_size": "d_ff",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
    "type_vocab_size": "token_types",
}


def agree(options: dict[str, Any], facts: dict[str, Any], names: dict[str, str], where: Any) -> None:
    """Raise ValueError if a config and the tensors disagree on a size: one of them is of another model.

    names: {a size's name in the options: in the facts}.
    """
    for name in names:
        value = facts.get(names[name])
        if value is not None and options.get(name) not in (None, value):
            raise ValueError(
                f"{where}: its config says {name}={options[name]!r}, its tensors say {value}: "
                "put its own config beside it"
            )


def known(options: dict[str, Any], names: Iterable[str], where: Any) -> None:
    """Raise ValueError if a config has options that are neither used nor known to have no effect."""
    strangers = sorted(name for name in options.keys() - set(names) if options[name] is not None)
    if strangers:
        raise ValueError(
            f"{where} has options that are not known: {', '.join(strangers)}; remove those without effect"
        )


def complete(
    config_class: type, facts: dict[str, Any], given: dict[str, Any], where: Any, hint: str = ""
) -> Any:
    """Make the config from facts of a file, overridden by those given.

    Raises ValueError, naming the options, if a fact is None in both, if an option is unknown, of another type or out
    of range, or if a given DECISIVE one contradicts the file: the weights would compute another function.
    """
    for name in DECISIVE & given.keys():
        if facts.get(name) not in (None, given[name]):
            raise ValueError(f"{where} says {name}={facts[name]!r}, not {given[name]!r}: the two must agree")
    strangers = given.keys() - {field.name for field in fields(config_class)}
    if strangers:
        raise ValueError(f"{sorted(strangers)} are not options of {config_class.__name__}")
    values = facts | given
    unknown = [name for name, value in values.items() if name in facts and value is None]
    if unknown:
        raise ValueError(
            f"{where} does not say {', '.join(unknown)}: put its config.json beside it or give "
            f"{', '.join(f'{name}=...' for name in unknown)}{hint}"
        )
    try:
        return from_dict(config_class, values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def first_prefix(names: Iterable[str], prefixes: Iterable[str], anchor: str) -> str | None:
    """Return the first prefix with which the tensor `anchor` is among the names, or None."""
    known = set(names)
    return next((prefix for prefix in prefixes if prefix + anchor in known), None)
