"""Hugging Face's BERT and DistilBERT, alone or inside a task's model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from minclip.pretrained.layout import Layout, unmet
from minclip.towers.text import BertTextConfig
from minlm.pretrained.key_map import JOINED, Plan, Row, count_layers, export_weights, layers, module, prefixed
from minlm.pretrained.options import (
    HF_SIZES,
    agree,
    complete,
    expect,
    hf_options,
    our_activation,
    their_activation,
)
from minlm.pretrained.weight_files import WeightFile, write_tensors
from minlm.training.files import write_json

EMBEDDING = [
    Row("embeddings.word_embeddings.weight", "embedding.tokens.weight"),
    Row("embeddings.position_embeddings.weight", "embedding.positions.weight"),
    *module("embeddings.LayerNorm", "norm"),
]
BERT_BLOCK = [
    *module(
        "encoder.layer.*.attention.self.{query,key,value}",
        "transformer.blocks.*.attention.in_proj",
        JOINED,
    ),
    *module("encoder.layer.*.attention.output.dense", "transformer.blocks.*.attention.out_proj"),
    *module("encoder.layer.*.attention.output.LayerNorm", "transformer.blocks.*.norm1"),
    *module("encoder.layer.*.intermediate.dense", "transformer.blocks.*.mlp.fc1"),
    *module("encoder.layer.*.output.dense", "transformer.blocks.*.mlp.fc2"),
    *module("encoder.layer.*.output.LayerNorm", "transformer.blocks.*.norm2"),
]
DISTILBERT_BLOCK = [
    *module(
        "transformer.layer.*.attention.{q_lin,k_lin,v_lin}", "transformer.blocks.*.attention.in_proj", JOINED
    ),
    *module("transformer.layer.*.attention.out_lin", "transformer.blocks.*.attention.out_proj"),
    *module("transformer.layer.*.sa_layer_norm", "transformer.blocks.*.norm1"),
    *module("transformer.layer.*.ffn.{lin1,lin2}", "transformer.blocks.*.mlp.{fc1,fc2}"),
    *module("transformer.layer.*.output_layer_norm", "transformer.blocks.*.norm2"),
]
IGNORED = {
    r"(bert\.|distilbert\.)?embeddings\.position_ids": "0, 1, 2, ...: no parameter",
    r"(cls|vocab_transform|vocab_layer_norm|vocab_projector)\..*": "the head of pretraining",
    r"(classifier|pre_classifier|qa_outputs)\.(weight|bias)": "a task's head",
}
POOLER_IGNORED = {r"(bert\.)?pooler\.dense\.(weight|bias)": "unused by the requested pooling"}
BERT_WANTED = {
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
EPS = 1e-12  # BERT's and DistilBERT's


def modern_names(source: WeightFile) -> WeightFile:
    """Rename gamma and beta, as BERT's first published files call them, to LayerNorm's weight and bias."""
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

    def rename(name: str) -> str:
        head = ".".join(name.split(".")[-2:])
        return name.removesuffix(head) + old.get(head, head)

    return replace(source, tensors={rename(name): value for name, value in source.tensors.items()})


def bert_rows(config: BertTextConfig) -> list[Row]:
    """Return the table of BERT, with its pooler if the config uses it."""
    rows = [*EMBEDDING, *layers(BERT_BLOCK, config.n_layers)]
    if config.token_types:
        rows.append(Row("embeddings.token_type_embeddings.weight", "token_types.weight"))
    return rows + (module("pooler.dense", "pooler") if config.pool == "pooler" else [])


def distilbert_rows(config: BertTextConfig) -> list[Row]:
    """Return the table of DistilBERT."""
    return [*EMBEDDING, *layers(DISTILBERT_BLOCK, config.n_layers)]


def table_sizes(source: WeightFile, prefix: str) -> dict[str, int]:
    """Return the sizes that the token and position tables show."""
    vocab_size, d_model = source.shape(f"{prefix}embeddings.word_embeddings.weight", 2)
    length = source.shape(f"{prefix}embeddings.position_embeddings.weight", 2)[0]
    return {"vocab_size": vocab_size, "d_model": d_model, "context_length": length}


def read_bert(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """Plan a BERT, pooled by its pooler if the file has one, else at the first token ([CLS])."""
    options = source.read_json("config.json")
    expect(options, BERT_WANTED, source.path)
    facts = {
        **table_sizes(source, prefix),
        "n_layers": count_layers(source.tensors, rf"{prefix}encoder\.layer\.(\d+)\."),
        "n_heads": options.get("num_attention_heads"),
        "d_ff": source.shape(f"{prefix}encoder.layer.0.intermediate.dense.weight", 2)[0],
        "activation": our_activation(options.get("hidden_act"), source.path),
        "norm_eps": options.get("layer_norm_eps", EPS),
        "token_types": source.shape(f"{prefix}embeddings.token_type_embeddings.weight", 2)[0],
        "pool": "pooler" if f"{prefix}pooler.dense.weight" in source.tensors else "first",
    }
    agree(options, facts, HF_SIZES, source.path)
    config = complete(BertTextConfig, facts, given, source.path)
    ignored = IGNORED if config.pool == "pooler" else IGNORED | POOLER_IGNORED
    return Plan(config, prefixed(bert_rows(config), theirs=prefix), ignored)


def read_distilbert(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """Plan a DistilBERT, pooled at the first token as in its own classifiers."""
    options = source.read_json("config.json")
    expect(options, {"model_type": "distilbert"}, source.path)
    facts = {
        **table_sizes(source, prefix),
        "n_layers": count_layers(source.tensors, rf"{prefix}transformer\.layer\.(\d+)\."),
        "n_heads": options.get("n_heads"),
        "d_ff": source.shape(f"{prefix}transformer.layer.0.ffn.lin1.weight", 2)[0],
        "activation": our_activation(options.get("activation"), source.path),
        "norm_eps": EPS,
        "pool": "first",
    }
    names = HF_SIZES | {"dim": "d_model", "n_layers": "n_layers", "hidden_dim": "d_ff"}
    agree(options, facts, names, source.path)
    config = complete(BertTextConfig, facts, given, source.path)
    return Plan(config, prefixed(distilbert_rows(config), theirs=prefix), IGNORED)


def obstacles(config: BertTextConfig) -> list[str]:
    """List why BERT (or DistilBERT, without token_types) cannot express this network."""
    after = unmet((not config.norm_first, "its text tower has its LayerNorms before the sublayers"))
    if config.token_types:
        return after
    return after + unmet(
        (config.norm_eps == EPS, f"its norm_eps is {config.norm_eps}, not DistilBERT's {EPS}"),
        (config.pool != "pooler", "it has a pooler, which DistilBERT lacks"),
        (config.activation in ("gelu", "relu"), f"its activation is {config.activation}"),
    )


def write(tower: nn.Module, config: BertTextConfig, folder: Path) -> None:
    """Write a folder for BertModel.from_pretrained (or DistilBertModel's, without token_types)."""
    if config.token_types:
        table, options = bert_rows(config), bert_options(config)
    else:
        table, options = distilbert_rows(config), distilbert_options(config)
    write_tensors(folder / "model.safetensors", export_weights(tower.state_dict(), table))
    write_json(folder / "config.json", options)


def bert_options(config: BertTextConfig) -> dict[str, Any]:
    """Return BERT's config.json."""
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        **hf_options(config),
        "max_position_embeddings": config.context_length,
        "vocab_size": config.vocab_size,
        "type_vocab_size": config.token_types,
        **{f"{name}_dropout_prob": config.dropout for name in ("hidden", "attention_probs")},
    }


def distilbert_options(config: BertTextConfig) -> dict[str, Any]:
    """Return DistilBERT's config.json."""
    return {
        "architectures": ["DistilBertModel"],
        "model_type": "distilbert",
        "dim": config.d_model,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "hidden_dim": config.mlp_width,
        "activation": their_activation(config.activation),
        "max_position_embeddings": config.context_length,
        "vocab_size": config.vocab_size,
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
    }


LAYOUTS = [
    Layout("BERT", "text tower", "embeddings.token_type_embeddings.weight", read_bert, ("", "bert.")),
    Layout(
        "DistilBERT",
        "text tower",
        "transformer.layer.0.attention.q_lin.weight",
        read_distilbert,
        ("", "distilbert."),
    ),
]
