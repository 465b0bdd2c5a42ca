"""One tower from a file or folder of pretrained weights, whoever's it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from minclip.clip import TOWERS, CLIPConfig
from minclip.pretrained import huggingface, native
from minclip.pretrained.resize import resize_image, resize_text
from minclip.pretrained.resnets import resnet_plan, with_counters
from minclip.pretrained.text_towers import bert_plan, distilbert_plan, gpt2_text_plan, modern_names
from minclip.pretrained.vits import hf_plan, timm_plan
from minclip.towers.freezing import TowerConfig
from minlm.pretrained.key_map import Plan, Row, count_layers, filled, import_weights, on_meta
from minlm.pretrained.options import complete, first_prefix
from minlm.pretrained.weight_files import WeightFile, read_weights
from minlm.training.checkpoint import has_checkpoint, last_checkpoint
from minlm.training.config import from_dict


@dataclass(frozen=True)
class Layout:
    """A way of naming a tower's tensors, known by one of them.

    anchor: a tensor that this layout has and no other. prefixes: what may stand before its names.
    plan: (file, prefix, given) -> what the file is in our terms.
    antialias: whether the owner's code averages positions that it shrinks (see `resize_positions`).
    """

    name: str
    anchor: str
    prefixes: tuple[str, ...]
    plan: Callable[[WeightFile, str, dict[str, Any]], Plan]
    antialias: bool = True


def own_plan(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """A tower of a CLIP that this project trained: its names are ours, its config.json lies beside it."""
    part = prefix.removesuffix("_tower.")
    try:
        found = getattr(from_dict(CLIPConfig, {part: source.read_json("config.json").get(part)}), part)
    except ValueError as error:
        raise ValueError(f"the config.json beside {source.path} is not its run's: {error}") from None
    n_layers = getattr(found, "n_layers", None) or sum(found.depths)
    stored = count_layers(source.tensors, rf"{prefix}(?:transformer\.)?blocks\.(\d+)\.")
    if stored != n_layers:
        raise ValueError(
            f"{source.path}: its config says {n_layers} layers, its tensors say {stored}: put its own config beside it"
        )
    training = {field.name for field in fields(TowerConfig)}
    facts = {name: value for name, value in vars(found).items() if value is not None and name not in training}
    rows = [Row(name, name.removeprefix(prefix)) for name in source.tensors if name.startswith(prefix)]
    rest = {rf"(?!{part}_tower\.).*": "the rest of the CLIP"}
    return Plan(complete(type(found), facts, given, source.path), rows, rest)


IMAGE_LAYOUTS = (
    Layout("torchvision's or timm's ResNet", "layer1.0.conv1.weight", ("",), resnet_plan),
    Layout("timm's ViT", "blocks.0.attn.qkv.weight", ("",), timm_plan),
    Layout(
        "Hugging Face's ViT",
        "embeddings.patch_embeddings.projection.weight",
        ("", "vit."),
        hf_plan,
        antialias=False,
    ),
    Layout(
        "Hugging Face's CLIP",
        "embeddings.class_embedding",
        ("vision_model.", ""),
        huggingface.vision_plan,
        antialias=False,
    ),
    Layout("CLIP's ViT", "visual.class_embedding", ("",), native.vit_plan),
    Layout("CLIP's ResNet", "visual.attnpool.positional_embedding", ("",), native.modified_resnet_plan),
    Layout("this project's ViT", "patch_embedding.weight", ("image_tower.",), own_plan),
    Layout("this project's ResNet", "blocks.0.branch.0.0.weight", ("image_tower.",), own_plan),
)
TEXT_LAYOUTS = (
    Layout("BERT", "embeddings.token_type_embeddings.weight", ("", "bert."), bert_plan),
    Layout("DistilBERT", "transformer.layer.0.attention.q_lin.weight", ("", "distilbert."), distilbert_plan),
    Layout("GPT-2", "h.0.attn.c_attn.weight", ("", "transformer."), gpt2_text_plan),
    Layout(
        "Hugging Face's CLIP",
        "embeddings.token_embedding.weight",
        ("text_model.", ""),
        huggingface.text_plan,
    ),
    Layout("CLIP", "transformer.resblocks.0.attn.in_proj_weight", ("", "text."), native.text_plan),
    Layout("this project's text tower", "embedding.tokens.weight", ("text_tower.",), own_plan),
)


def read_source(path: str | Path) -> WeightFile:
    """read_weights, of a run's last checkpoint too, with names as newer files have them."""
    path = Path(path)
    if path.is_dir() and has_checkpoint(path):
        path = last_checkpoint(path)
    source = modern_names(read_weights(path))
    return replace(source, tensors=with_counters(source.tensors))


def find_layout(source: WeightFile, layouts: Sequence[Layout]) -> tuple[Layout, str]:
    """(layout, prefix) of the tower in a file. ValueError where it is none of the layouts."""
    for layout in layouts:
        prefix = first_prefix(source.tensors, layout.prefixes, layout.anchor)
        if prefix is not None:
            return layout, prefix
    language_model = source.tensors.keys() >= {"head.weight", "embedding.tokens.weight"}
    way_out = ": first write it with python -m minlm export --to hf-gpt2" if language_model else ""
    raise ValueError(
        f"{source.path} is none of {', '.join(layout.name for layout in layouts)}: its tensors are "
        f"{', '.join(sorted(source.tensors)[:4])}, ...{way_out}"
    )


def plan_tower(source: WeightFile, layouts: Sequence[Layout], given: dict[str, Any]) -> Plan:
    """What the tower in a file is in our terms. ValueError where it is none of the layouts."""
    layout, prefix = find_layout(source, layouts)
    return layout.plan(source, prefix, given)


def antialiased(source: WeightFile) -> bool:
    """Whether the owner of a file's image tower averages positions that it shrinks."""
    return find_layout(source, IMAGE_LAYOUTS)[0].antialias


def load_image_tower(path: str | Path, **given: Any) -> nn.Module:
    """The image tower in a file or folder, in eval mode: forward gives (B, D), forward_tokens (B, T, D).

    Reads ResNets of torchvision and timm, ViTs of timm and Hugging Face, and the image towers of CLIP files (their
    features are those before the projection). given: options of the tower's config that the file does not say
    (n_heads, activation), or training ones (dropout, trained_blocks); image_size asks for another picture size, for
    which positions are interpolated. Raises ValueError, in one line, where a file is damaged or incomplete, has tensors
    that the tower does not, or leaves a fact open.
    """
    source = read_source(path)
    image_size = given.pop("image_size", None)
    plan = plan_tower(source, IMAGE_LAYOUTS, given)
    weights = import_tower(source, plan)
    return make_tower(*resize_image(plan.config, weights, image_size, antialiased(source)))


def load_text_tower(path: str | Path, **given: Any) -> nn.Module:
    """The text tower in a file or folder, in eval mode: forward gives (B, D), forward_tokens (B, T, D).

    Reads Hugging Face's BERT, DistilBERT and GPT-2, bare or in a task's model, and the text towers of CLIP files.
    given: as for load_image_tower; vocab_size and context_length ask for other sizes. pool: BERT's pooler where the
    file has one, else the first token.
    """
    source = read_source(path)
    sizes = {name: given.pop(name, None) for name in ("vocab_size", "context_length")}
    plan = plan_tower(source, TEXT_LAYOUTS, given)
    weights = import_tower(source, plan)
    return make_tower(*resize_text(plan.config, weights, **sizes))


def import_tower(source: WeightFile, plan: Plan) -> dict[str, Tensor]:
    expected = on_meta(lambda: TOWERS[type(plan.config)](plan.config)).state_dict()
    return import_weights(source.tensors, plan, expected, source.path)


def make_tower(config: Any, weights: dict[str, Tensor]) -> nn.Module:
    return filled(on_meta(lambda: TOWERS[type(config)](config)), weights)
