"""BERT, DistilBERT and GPT-2 in Hugging Face's names, as text towers."""

from dataclasses import replace
from typing import Any

from minclip.towers.text import BertTextConfig, GPTTextConfig
from minlm.pretrained.gpt2 import HINT, gpt2_facts, gpt2_rows
from minlm.pretrained.gpt2 import IGNORED as GPT2_IGNORED
from minlm.pretrained.key_map import JOINED, Plan, Row, count_layers, layers, module, prefixed
from minlm.pretrained.options import HF_SIZES, agree, complete, expect, our_activation
from minlm.pretrained.weight_files import WeightFile

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
POOLER_IGNORED = {r"(bert\.)?pooler\.dense\.(weight|bias)": "another pooling was asked for"}
BERT_WANTED = {
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
EPS = 1e-12  # BERT's and DistilBERT's


def modern_names(source: WeightFile) -> WeightFile:
    """LayerNorm's weight and bias, which BERT's first published files call gamma and beta."""
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

    def rename(name: str) -> str:
        head = ".".join(name.split(".")[-2:])
        return name.removesuffix(head) + old.get(head, head)

    return replace(source, tensors={rename(name): value for name, value in source.tensors.items()})


def bert_rows(config: BertTextConfig) -> list[Row]:
    rows = [*EMBEDDING, *layers(BERT_BLOCK, config.n_layers)]
    if config.token_types:
        rows.append(Row("embeddings.token_type_embeddings.weight", "token_types.weight"))
    return rows + (module("pooler.dense", "pooler") if config.pool == "pooler" else [])


def distilbert_rows(config: BertTextConfig) -> list[Row]:
    return [*EMBEDDING, *layers(DISTILBERT_BLOCK, config.n_layers)]


def table_sizes(source: WeightFile, prefix: str) -> dict[str, int]:
    vocab_size, d_model = source.shape(f"{prefix}embeddings.word_embeddings.weight", 2)
    length = source.shape(f"{prefix}embeddings.position_embeddings.weight", 2)[0]
    return {"vocab_size": vocab_size, "d_model": d_model, "context_length": length}


def bert_plan(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """BERT; pooled as its pooler does where the file has one, else at the first token ([CLS])."""
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


def distilbert_plan(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """DistilBERT, which has no pooler: its own classifiers read the first token."""
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
    agree(
        options,
        facts,
        HF_SIZES | {"dim": "d_model", "n_layers": "n_layers", "hidden_dim": "d_ff"},
        source.path,
    )
    config = complete(BertTextConfig, facts, given, source.path)
    return Plan(config, prefixed(distilbert_rows(config), theirs=prefix), IGNORED)


def gpt2_text_plan(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """GPT-2, pooled at the first end-of-text token."""
    facts = gpt2_facts(source, prefix)
    facts["end_id"] = source.read_json("config.json").get("eos_token_id")
    config = complete(GPTTextConfig, facts, given, source.path, HINT)
    head = {r"lm_head\.weight": "the head of the language model"}
    return Plan(config, prefixed(gpt2_rows(config.n_layers), theirs=prefix), GPT2_IGNORED | head)
