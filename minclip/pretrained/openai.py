"""OpenAI's CLIP archives, and the table of tensors that open_clip shares with them.

OpenAI's archives hold the numbers input_resolution, context_length and vocab_size beside the tensors. By definition of
the format their heads are 64 wide and their activation is QuickGELU. open_clip's files have an open_clip_config.json
beside them (open_clip.py). Tensors with neither could be both: heads and activation must be given.
"""

from pathlib import Path
from typing import Any

import torch

from minclip.clip import CLIP, CLIPConfig
from minclip.data.tokenizer import Tokenizer
from minclip.data.transforms import TransformConfig
from minclip.pretrained.layout import Layout, clip_plan, clip_rows, unmet
from minclip.pretrained.patches import square_grid, vit_sizes, without_bias
from minclip.pretrained.torchvision import convolution_rows, count_depths, stage_rows
from minclip.pretrained.vocabulary import save_tokenizer
from minclip.towers.modified_resnet import ModifiedResNetConfig
from minclip.towers.text import GPTTextConfig
from minclip.towers.vit import VisionTransformerConfig
from minlm.pretrained.key_map import (
    TRANSPOSED,
    Plan,
    Row,
    count_layers,
    export_weights,
    layers,
    module,
    prefixed,
)
from minlm.pretrained.options import complete
from minlm.pretrained.weight_files import WeightFile

HEAD_WIDTH = 64  # of every head of OpenAI's, by definition; open_clip's default
EPS = 1e-5
MARKERS = ("input_resolution", "context_length", "vocab_size")
IGNORED = {"|".join(MARKERS): "sizes that the tensors' shapes show too", "attn_mask": "the causal mask"}
SCALE = {r"logit_scale|logit_bias": "shared by the two towers"}
IMAGE_IGNORED = {r"visual\..*": "the image tower"}
TEXT_IGNORED = {
    r"(text\.)?(transformer\..*|token_embedding\.weight|positional_embedding|ln_final\..*|text_projection|attn_mask)": (
        "the text tower"
    ),
    **SCALE,
}
BLOCK = [
    *module("transformer.resblocks.*.ln_1", "transformer.blocks.*.norm1"),
    Row("transformer.resblocks.*.attn.in_proj_weight", "transformer.blocks.*.attention.in_proj.weight"),
    Row("transformer.resblocks.*.attn.in_proj_bias", "transformer.blocks.*.attention.in_proj.bias"),
    *module("transformer.resblocks.*.attn.out_proj", "transformer.blocks.*.attention.out_proj"),
    *module("transformer.resblocks.*.ln_2", "transformer.blocks.*.norm2"),
    *module("transformer.resblocks.*.mlp.{c_fc,c_proj}", "transformer.blocks.*.mlp.{fc1,fc2}"),
]
VIT_ANCHOR, RESNET_ANCHOR = "visual.class_embedding", "visual.attnpool.positional_embedding"
TEXT_ANCHOR = "transformer.resblocks.0.attn.in_proj_weight"


def vit_rows(config: VisionTransformerConfig) -> list[Row]:
    """Return the table of a ViT: patches without bias, a class token, LayerNorm before the first Block or none."""
    ours = "{patch_embedding.weight,patch_embedding.bias,positions}"
    rows = [
        Row("class_embedding", "class_token"),
        Row("{conv1.weight,positional_embedding}", ours, without_bias(n_extra=1)),
        *(module("ln_pre", "norm_input") if config.norm_input else []),
        *layers(BLOCK, config.n_layers),
        *module("ln_post", "transformer.norm"),
    ]
    return prefixed(rows, theirs="visual.")


def resnet_rows(config: ModifiedResNetConfig) -> list[Row]:
    """Return the table of CLIP's ResNet without its final projection (c_proj)."""
    stem = [row for i in range(3) for row in convolution_rows(f"conv{i + 1}", f"bn{i + 1}", f"stem.{i}")]
    projections = "{q_proj,k_proj,v_proj}"
    rows = [
        *stem,
        *stage_rows(config.depths, (0, 1, 3), "shortcut.1", first=True),
        Row("attnpool.positional_embedding", "attention_pooling.positions"),
        *module(f"attnpool.{projections}", f"attention_pooling.{projections}"),
    ]
    return prefixed(rows, theirs="visual.")


def text_rows(config: GPTTextConfig) -> list[Row]:
    """Return the table of the text tower."""
    return [
        Row("token_embedding.weight", "embedding.tokens.weight"),
        Row("positional_embedding", "embedding.positions.weight"),
        *layers(BLOCK, config.n_layers),
        *module("ln_final", "transformer.norm"),
    ]


def joint_rows(resnet: bool, bias: bool, text_prefix: str = "") -> list[Row]:
    """Return the rows of the projections, the scale and, with `bias`, the sigmoid loss's bias."""
    if resnet:
        rows = module("visual.attnpool.c_proj", "image_projection")
    else:
        rows = [Row("visual.proj", "image_projection.weight", TRANSPOSED)]
    rows.append(Row(f"{text_prefix}text_projection", "text_projection.weight", TRANSPOSED))
    return rows + [Row(name, name) for name in ("logit_scale", *(["logit_bias"] if bias else []))]


def rows_of(config: CLIPConfig) -> list[Row]:
    """Return the table of a whole CLIP."""
    image: Any = config.image  # a VisionTransformerConfig or ModifiedResNetConfig, see clip_obstacles
    text: Any = config.text  # a GPTTextConfig
    resnet = isinstance(image, ModifiedResNetConfig)
    return clip_rows(
        resnet_rows(image) if resnet else vit_rows(image),
        text_rows(text),
        joint_rows(resnet, config.loss == "sigmoid"),
    )


def vit_facts(source: WeightFile, stated: Any = None) -> dict[str, Any]:
    """Return the facts that a ViT's tensors show. stated: the image_size in a config."""
    patches = source.shape("visual.conv1.weight", 4)
    n_positions = source.shape("visual.positional_embedding", 2)[0]
    return {
        "d_model": patches[0],
        "n_layers": count_layers(source.tensors, r"visual\.transformer\.resblocks\.(\d+)\."),
        "d_ff": source.shape("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "pool": "class",
        "norm_input": "visual.ln_pre.weight" in source.tensors,
        **vit_sizes(patches, n_positions - 1, stated, source.path),
    }


def resnet_facts(source: WeightFile) -> tuple[dict[str, Any], int]:
    """Return (facts that the tensors of CLIP's ResNet show, width of its attention pooling)."""
    n_positions, width = source.shape("visual.attnpool.positional_embedding", 2)
    depths = count_depths(source.tensors, r"visual\.")
    rows, columns = square_grid(n_positions - 1, source.path)
    stride = 4 * 2 ** (len(depths) - 1)
    d_model = source.shape("visual.layer1.0.conv1.weight", 4)[0]
    return {"image_size": (rows * stride, columns * stride), "depths": depths, "d_model": d_model}, width


def text_facts(source: WeightFile, prefix: str) -> dict[str, Any]:
    """Return the facts that the text tower's tensors show."""
    vocab_size, d_model = source.shape(f"{prefix}token_embedding.weight", 2)
    return {
        "vocab_size": vocab_size,
        "context_length": source.shape(f"{prefix}positional_embedding", 2)[0],
        "d_model": d_model,
        "n_layers": count_layers(source.tensors, rf"{prefix}transformer\.resblocks\.(\d+)\."),
        "d_ff": source.shape(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
    }


def by_definition(source: WeightFile, width: int) -> dict[str, Any]:
    """Return heads, activation and epsilon of OpenAI's archives; the first two are None for other files."""
    known = all(name in source.tensors for name in MARKERS)
    heads, activation = (width // HEAD_WIDTH, "quick_gelu") if known else (None, None)
    return {"n_heads": heads, "activation": activation, "norm_eps": EPS}


def hint(width: int) -> str:
    """Say how to complete a file that shows neither heads nor activation."""
    return (
        f" (OpenAI's own: n_heads={width // HEAD_WIDTH}, activation='quick_gelu'; open_clip's: its "
        f"open_clip_config.json; for a whole CLIP the heads are image_heads=... and text_heads=...)"
    )


def vit_plan(source: WeightFile, facts: dict[str, Any], given: dict[str, Any]) -> Plan:
    """Plan a ViT; its feature is the class token before the projection."""
    config = complete(VisionTransformerConfig, facts, given, source.path, hint(facts["d_model"]))
    projection = {r"visual\.proj": "the projection, which follows the features"}
    return Plan(config, vit_rows(config), {**IGNORED, **TEXT_IGNORED, **projection})


def resnet_plan(source: WeightFile, facts: dict[str, Any], width: int, given: dict[str, Any]) -> Plan:
    """Plan a ResNet of CLIP's; its features are those before the attention pooling's c_proj."""
    config = complete(ModifiedResNetConfig, facts, given, source.path, hint(width))
    projection = {r"visual\.attnpool\.c_proj\.(weight|bias)": "the projection, which follows the features"}
    return Plan(config, resnet_rows(config), {**IGNORED, **TEXT_IGNORED, **projection})


def text_plan(source: WeightFile, prefix: str, facts: dict[str, Any], given: dict[str, Any]) -> Plan:
    """Plan the text tower; its feature is that of the end-of-text token before the projection."""
    config = complete(GPTTextConfig, facts, given, source.path, hint(facts["d_model"]))
    projection = {r"(text\.)?text_projection": "the projection, which follows the features"}
    ignored = {**IGNORED, **projection, **IMAGE_IGNORED, **SCALE}
    return Plan(config, prefixed(text_rows(config), theirs=prefix), ignored)


def read_vit(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """Plan the ViT of an archive, or of tensors without config."""
    facts = vit_facts(source)
    return vit_plan(source, facts | by_definition(source, facts["d_model"]), given)


def read_resnet(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """Plan the ResNet of an archive, or of tensors without config."""
    facts, width = resnet_facts(source)
    heads = by_definition(source, width)["n_heads"]
    return resnet_plan(source, facts | {"n_heads": heads}, width, given)


def read_text(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """Plan the text tower of an archive, or of tensors without config; the end-of-text id is the last."""
    facts = text_facts(source, prefix)
    facts |= by_definition(source, facts["d_model"]) | {"end_id": facts["vocab_size"] - 1}
    return text_plan(source, prefix, facts, given)


def read_joint(source: WeightFile, prefix: str, towers: dict[str, Plan]) -> Plan:
    """Plan a whole CLIP of OpenAI's or open_clip's."""
    embed_dim = source.shape(f"{prefix}text_projection", 2)[1]
    joint = joint_rows(RESNET_ANCHOR in source.tensors, "logit_bias" in source.tensors, prefix)
    return clip_plan(source, towers, embed_dim, joint, IGNORED)


def clip_obstacles(config: CLIPConfig) -> list[str]:
    """List why no published CLIP format can express this model."""
    image, text = config.image, config.text
    shared = unmet(
        (isinstance(text, GPTTextConfig), "its text tower is not a GPT"),
        (config.projection == "linear", f"its projection is {config.projection}, not linear"),
        (text.norm_first, "its text tower has its LayerNorms after the sublayers"),
    )
    match image:
        case VisionTransformerConfig():
            return shared + unmet(
                (image.norm_first, "its ViT has its LayerNorms after the sublayers"),
                (image.pool == "class", "its ViT has no class token"),
                (image.patch_size[0] == image.patch_size[1], "its patches are not square"),
            )
        case ModifiedResNetConfig():
            return shared + unmet((len(image.depths) == 4, "its ResNet does not have four stages"))
    return [*shared, "its image tower is a ResNet of torchvision's kind"]


def obstacles(config: CLIPConfig) -> list[str]:
    """List why OpenAI's format cannot express this model: heads, activation and epsilon are fixed."""
    found = clip_obstacles(config)
    if found:
        return found
    image: Any = config.image  # a VisionTransformerConfig or ModifiedResNetConfig
    text: Any = config.text  # a GPTTextConfig
    vit = isinstance(image, VisionTransformerConfig)
    stacks = [text, image] if vit else [text]
    head_width = image.head_size if vit else image.width // image.n_heads
    return unmet(
        (all(stack.activation == "quick_gelu" for stack in stacks), "its activation is not quick_gelu"),
        (all(stack.norm_eps == EPS for stack in stacks), f"its norm_eps is not {EPS}"),
        (all(stack.mlp_width == 4 * stack.d_model for stack in stacks), "its d_ff is not 4 * d_model"),
        (text.head_size == head_width == HEAD_WIDTH, f"its heads are not {HEAD_WIDTH} wide"),
        (not vit or image.norm_input, "its ViT has no LayerNorm before the first Block (image.norm_input)"),
        (image.image_size[0] == image.image_size[1], "its images are not square"),
        (text.end_id == text.vocab_size - 1, "its end-of-text id is not the last id"),
        (config.loss != "sigmoid", "it has a logit_bias"),
    )


def write(model: CLIP, tokenizer: Tokenizer, transform: TransformConfig, folder: Path) -> None:
    """Write model.pt for clip.load: a state dict with the numbers of the archives."""
    image, text = model.config.image, model.config.text
    numbers = (image.image_size[0], text.context_length, text.vocab_size)
    markers = {name: torch.tensor(number) for name, number in zip(MARKERS, numbers, strict=True)}
    weights = export_weights(model.state_dict(), rows_of(model.config))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights | markers, folder / "model.pt")
    save_tokenizer(tokenizer, folder)


LAYOUTS = [
    Layout("CLIP's ViT", "image tower", VIT_ANCHOR, read_vit),
    Layout("CLIP's ResNet", "image tower", RESNET_ANCHOR, read_resnet),
    Layout("CLIP", "text tower", TEXT_ANCHOR, read_text, ("", "text.")),
    Layout("OpenAI's and open_clip's CLIP", "CLIP", "text_projection", read_joint, ("", "text.")),
]
