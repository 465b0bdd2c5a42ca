"""What a file of tensors cannot say (heads, activation, epsilon): from its config, or given, never guessed."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from minlm.training.config import checked, from_dict
from minlm.transformer import TransformerConfig

DECISIVE = {"n_heads", "activation"}
# {Hugging Face's name: ours}; the first name of a function is the one that is written.
HF_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}


def option(options: dict[str, Any], name: str, kind: Any, where: Any, default: Any = None) -> Any:
    """A config file's option; the default where it has none, or null. ValueError where it is of another kind."""
    value = options.get(name)
    return default if value is None else checked(kind, value, f"{where}: the option {name}")


def our_activation(name: Any, where: Any) -> str | None:
    """Our name for Hugging Face's; None stays None. ValueError for a function that the Transformer lacks."""
    if name is None:
        return None
    if isinstance(name, str) and name in HF_ACTIVATIONS:
        return HF_ACTIVATIONS[name]
    raise ValueError(f"{where} asks for the activation {name!r}: there are {', '.join(HF_ACTIVATIONS)}")


def their_activation(name: str) -> str:
    return next(theirs for theirs, ours in HF_ACTIVATIONS.items() if ours == name)


def hf_options(config: TransformerConfig) -> dict[str, Any]:
    """A Transformer's options in the words that most of Hugging Face's configs share."""
    return {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": their_activation(config.activation),
        "layer_norm_eps": config.norm_eps,
    }


def expect(options: dict[str, Any], wanted: dict[str, Any], where: Any) -> None:
    """ValueError where an option that changes the function has another value than the one that ours is built for."""
    for name, value in wanted.items():
        if options.get(name) not in (None, value):
            raise ValueError(f"{where} has {name}={options[name]!r}: only {value!r} can be loaded")


# Sizes as most of Hugging Face's configs call them.
HF_SIZES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "intermediate_size": "d_ff",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
    "type_vocab_size": "token_types",
}


def agree(options: dict[str, Any], facts: dict[str, Any], names: dict[str, str], where: Any) -> None:
    """ValueError where a config says another size than the tensors have: one of the two is of another model.

    names: {a size in the options: the same one in the facts}.
    """
    for name in names:
        value = facts.get(names[name])
        if value is not None and options.get(name) not in (None, value):
            raise ValueError(
                f"{where}: its config says {name}={options[name]!r}, its tensors say {value}: "
                "put its own config beside it"
            )


def known(options: dict[str, Any], names: Iterable[str], where: Any) -> None:
    """ValueError where a config has options that are neither used nor known to change nothing."""
    strangers = sorted(name for name in options.keys() - set(names) if options[name] is not None)
    if strangers:
        raise ValueError(
            f"{where} has options that are not known: {', '.join(strangers)}; remove what changes nothing"
        )


def complete(
    config_class: type, facts: dict[str, Any], given: dict[str, Any], where: Any, hint: str = ""
) -> Any:
    """The config of these facts, and of what was given in their stead.

    Raises ValueError where a fact is None in both, naming all of them, for names that are no option, for values of
    another kind or out of range, and where a given DECISIVE one is another than the file says: the weights would be
    another function.
    """
    for name in DECISIVE & given.keys():
        if facts.get(name) not in (None, given[name]):
            raise ValueError(f"{where} says {name}={facts[name]!r}, not {given[name]!r}: the two must agree")
    strangers = given.keys() - {field.name for field in fields(config_class)}
    if strangers:
        raise ValueError(f"{sorted(strangers)} are no options of {config_class.__name__}")
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
    """The prefix under which the tensor `anchor` stands, or None."""
    known = set(names)
    return next((prefix for prefix in prefixes if prefix + anchor in known), None)
