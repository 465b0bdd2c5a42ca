"""GPT-2's weights in Hugging Face's layout (Radford et al. 2019): in, as a TransformerLM, and out."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minlm.lm import LMConfig, TransformerLM
from minlm.merges import BYTE_CHARACTERS
from minlm.pretrained.key_map import (
    TRANSPOSED,
    Plan,
    Row,
    count_layers,
    export_weights,
    filled,
    import_weights,
    layers,
    module,
    on_meta,
    prefixed,
)
from minlm.pretrained.options import agree, complete, expect, first_prefix, our_activation, their_activation
from minlm.pretrained.weight_files import WeightFile, read_weights, write_tensors
from minlm.tokenizer import SPECIALS, BPETokenizer, CharTokenizer
from minlm.training.files import replace_text, write_json

BLOCK = [
    *module("h.*.ln_1", "transformer.blocks.*.norm1"),
    *module("h.*.attn.c_attn", "transformer.blocks.*.attention.in_proj", TRANSPOSED),
    *module("h.*.attn.c_proj", "transformer.blocks.*.attention.out_proj", TRANSPOSED),
    *module("h.*.ln_2", "transformer.blocks.*.norm2"),
    *module("h.*.mlp.c_fc", "transformer.blocks.*.mlp.fc1", TRANSPOSED),
    *module("h.*.mlp.c_proj", "transformer.blocks.*.mlp.fc2", TRANSPOSED),
]
ENDS = [
    Row("wte.weight", "embedding.tokens.weight"),
    Row("wpe.weight", "embedding.positions.weight"),
    *module("ln_f", "transformer.norm"),
]
HEAD = Row("lm_head.weight", "head.weight")
IGNORED = {r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)": "the causal mask, which is not a parameter"}
# Values of config.json's options with which GPT-2 computes the same function as ours.
WANTED = {
    "model_type": "gpt2",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
SIZES = {
    "vocab_size": "vocab_size",
    "n_positions": "context_length",
    "n_embd": "d_model",
    "n_layer": "n_layers",
    "n_inner": "d_ff",
}
HINT = " (GPT-2's own: activation='gelu_tanh' and n_heads=12, 16, 20 or 25)"


def gpt2_rows(n_layers: int) -> list[Row]:
    """Return the table of GPT-2 without its head, for a TransformerLM and a GPTTextEncoder."""
    return [*ENDS, *layers(BLOCK, n_layers)]


def gpt2_prefix(tensors: dict[str, Tensor]) -> str | None:
    """Return the prefix of GPT-2's names, "" or that of a task's model; None if this is not a GPT-2."""
    return first_prefix(tensors, ("", "transformer."), "h.0.attn.c_attn.weight")


def gpt2_facts(source: WeightFile, prefix: str) -> dict[str, Any]:
    """Return sizes from the tensors' shapes and the rest from config.json; None for what neither shows."""
    config = source.read_json("config.json")
    expect(config, WANTED, source.path)
    vocab_size, d_model = source.shape(f"{prefix}wte.weight", 2)
    facts = {
        "vocab_size": vocab_size,
        "context_length": source.shape(f"{prefix}wpe.weight", 2)[0],
        "d_model": d_model,
        "n_layers": count_layers(source.tensors, rf"{prefix}h\.(\d+)\."),
        "n_heads": config.get("n_head"),
        "d_ff": source.shape(f"{prefix}h.0.mlp.c_fc.weight", 2)[1],
        "activation": our_activation(config.get("activation_function"), source.path),
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
    }
    agree(config, facts, SIZES, source.path)
    return facts


def load_gpt2(path: str | Path, **given: Any) -> TransformerLM:
    """Load the language model in a GPT-2 file or folder, in eval mode.

    given: options of LMConfig that the file does not say and no config.json beside it does (n_heads, activation),
    or others to override (dropout). The head is tied if the file has none, or the token embedding again.
    Raises ValueError for files that are damaged, not a GPT-2, or of another function, and lists leftover tensors.
    """
    source = read_weights(path)
    prefix = gpt2_prefix(source.tensors)
    if prefix is None:
        raise ValueError(f"{source.path} is not a GPT-2: it has no h.0.attn.c_attn.weight")
    facts = gpt2_facts(source, prefix)
    tied = HEAD.theirs not in source.tensors or torch.equal(
        source.tensors[HEAD.theirs], source.tensors[f"{prefix}wte.weight"]
    )
    if tied and not source.read_json("config.json").get("tie_word_embeddings", True):
        raise ValueError(f"{source.path} has no lm_head.weight, and its config.json says that it is not tied")
    config = complete(LMConfig, {**facts, "tied": tied}, given, source.path, HINT)
    ignored = IGNORED | ({r"lm_head\.weight": "the token embedding again"} if tied else {})
    plan = Plan(config, [*prefixed(gpt2_rows(config.n_layers), theirs=prefix), HEAD], ignored)
    model = on_meta(lambda: TransformerLM(config))
    return filled(model, import_weights(source.tensors, plan, model.state_dict(), source.path))


def gpt2_options(config: Any) -> dict[str, Any]:
    """Return Hugging Face's config.json for an LMConfig or another config of GPT-2's layout."""
    return {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.mlp_width,
        "activation_function": their_activation(config.activation),
        "layer_norm_epsilon": config.norm_eps,
        **{name: config.dropout for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop")},
    }


def save_gpt2(
    model: TransformerLM, folder: str | Path, tokenizer: BPETokenizer | CharTokenizer | None = None
) -> None:
    """Write a Hugging Face GPT-2 folder: config.json, model.safetensors, and the vocabulary.

    Every vocabulary is written as this project's own file, and a BPE also as vocab.json and merges.txt. Raises
    ValueError for a model that is not a GPT-2 (rotary positions, say).
    """
    folder, config = Path(folder), model.config
    if config.positions != "learned" or not config.norm_first:
        raise ValueError(
            f"this model has positions={config.positions!r} and norm_first={config.norm_first}, GPT-2 has 'learned' "
            "and True: train one with --model.positions learned --model.norm_first true"
        )
    rows = prefixed(gpt2_rows(config.n_layers), theirs="transformer.")
    table = rows if config.tied else [*rows, HEAD]
    write_tensors(folder / "model.safetensors", export_weights(model.state_dict(), table))
    options = gpt2_options(config) | {
        "architectures": ["GPT2LMHeadModel"],
        "tie_word_embeddings": config.tied,
    }
    if tokenizer is not None:
        options["eos_token_id"] = options["bos_token_id"] = tokenizer.end_id
        tokenizer.save(folder)
    if isinstance(tokenizer, BPETokenizer):
        write_bpe(tokenizer, folder)
    write_json(folder / "config.json", options)


def write_bpe(tokenizer: BPETokenizer, folder: Path) -> None:
    """Write vocab.json and merges.txt, the files of GPT-2's tokenizer."""

    def spell(token: bytes) -> str:
        return "".join(BYTE_CHARACTERS[byte] for byte in token)

    tokens = sorted(tokenizer.ranks, key=tokenizer.ranks.__getitem__)
    names = [*map(spell, tokens), *(SPECIALS[name] for name in tokenizer.specials)]
    replace_text(folder / "vocab.json", json.dumps({name: i for i, name in enumerate(names)}))
    pairs = [" ".join(map(spell, parents(token, tokenizer.ranks))) for token in tokens if len(token) > 1]
    replace_text(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{pair}\n" for pair in pairs))


def parents(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Return the two tokens merged into this one: the state of its bytes before the last merge."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        joined = [ranks.get(first + second, len(ranks)) for first, second in pairwise(parts)]
        i = joined.index(min(joined))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts
