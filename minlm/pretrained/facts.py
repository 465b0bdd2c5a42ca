"""What a file of tensors cannot say (heads, activation, epsilon): from its config, or given, never guessed."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

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


def our_activation(name: str | None, where: Any) -> str | None:
    """Our name for Hugging Face's; None stays None. ValueError for a function that the Transformer lacks."""
    if name is None or name in HF_ACTIVATIONS:
        return HF_ACTIVATIONS.get(name)
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
        if options.get(name, value) != value:
            raise ValueError(f"{where} has {name}={options[name]!r}: only {value!r} can be loaded")


def complete(
    config_class: type, facts: dict[str, Any], given: dict[str, Any], where: Any, hint: str = ""
) -> Any:
    """The config of these facts, and of what was given in their stead.

    Raises ValueError where a fact is None in both, naming all of them, for names that are no option, and where
    a given DECISIVE one is another than the file says: the weights would be another function.
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
        return config_class(**values)
    except TypeError as error:  # a config.json with a word where a number belongs
        raise ValueError(f"{where}: its config has a value of the wrong kind ({error})") from None


def first_prefix(names: Iterable[str], prefixes: Iterable[str], anchor: str) -> str | None:
    """The prefix under which the tensor `anchor` stands, or None."""
    known = set(names)
    return next((prefix for prefix in prefixes if prefix + anchor in known), None)
