"""Loading of published weights, as a tower or a whole CLIP. A file's format is recognised by its content."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from minclip.clip import CLIP, TOWERS
from minclip.data.tokenizer import Tokenizer
from minclip.data.transforms import ImageTransform
from minclip.pretrained import bert, gpt2, hf_clip, hf_vit, open_clip, openai, runs, timm, torchvision
from minclip.pretrained.layout import Layout, Part
from minclip.pretrained.resize import resize_image, resize_text
from minclip.pretrained.vocabulary import tokenizer_beside
from minclip.towers.freezing import Tower
from minlm.pretrained.key_map import Plan, filled, import_weights, on_meta
from minlm.pretrained.options import first_prefix
from minlm.pretrained.weight_files import WeightFile, read_weights
from minlm.training.checkpoint import has_checkpoint, last_checkpoint

LAYOUTS = [
    *torchvision.LAYOUTS,
    *timm.LAYOUTS,
    *hf_vit.LAYOUTS,
    *bert.LAYOUTS,
    *gpt2.LAYOUTS,
    *hf_clip.LAYOUTS,
    *open_clip.LAYOUTS,
    *openai.LAYOUTS,
    *runs.LAYOUTS,
]


def read_source(path: str | Path) -> WeightFile:
    """Read a weights file or a run's last checkpoint, with tensor names of old files brought up to date."""
    path = Path(path)
    if path.is_dir() and has_checkpoint(path):
        path = last_checkpoint(path)
    source = bert.modern_names(read_weights(path))
    return replace(source, tensors=torchvision.with_counters(source.tensors))


def find_layout(source: WeightFile, part: Part) -> tuple[Layout, str]:
    """Return the (layout, prefix) of a part of a file. Raises ValueError if no layout matches."""
    layouts = [layout for layout in LAYOUTS if layout.part == part]
    for layout in layouts:
        prefix = first_prefix(source.tensors, layout.prefixes, layout.anchor)
        if prefix is not None and (layout.beside is None or (source.folder / layout.beside).is_file()):
            return layout, prefix
    way_out = ""
    if source.tensors.keys() >= {"head.weight", "embedding.tokens.weight"}:
        way_out = ": first write it with python -m minlm export --to hf-gpt2"
    elif any(name.startswith("image_tower.") for name in source.tensors):
        way_out = ": put the run's config.json back beside it"
    raise ValueError(
        f"{source.path} holds no {part} of a known format ({', '.join(layout.name for layout in layouts)}): its "
        f"tensors are {', '.join(sorted(source.tensors)[:4])}, ...{way_out}"
    )


def plan_tower(source: WeightFile, part: Part, given: dict[str, Any]) -> Plan:
    """Plan the tower in a file. Raises ValueError if no layout matches."""
    layout, prefix = find_layout(source, part)
    return layout.read(source, prefix, given)


def plan_clip(source: WeightFile, given: dict[str, Any]) -> Plan:
    """Plan the whole CLIP in a file; `given` as for `load_clip_model`."""
    layout, prefix = find_layout(source, "CLIP")
    return layout.read(
        source,
        prefix,
        {
            "image tower": plan_tower(source, "image tower", tower_given(given, "image", source)),
            "text tower": plan_tower(source, "text tower", tower_given(given, "text", source)),
        },
    )


def tower_given(given: dict[str, Any], tower: str, source: WeightFile) -> dict[str, Any]:
    """Select the options of one tower among those given for a CLIP."""
    resnet = openai.RESNET_ANCHOR in source.tensors
    result = {"n_heads": given[f"{tower}_heads"]} if f"{tower}_heads" in given else {}
    if "activation" in given and not (resnet and tower == "image"):
        result["activation"] = given["activation"]
    return result


def antialiased(source: WeightFile) -> bool:
    """Return whether the format's owner antialiases when it shrinks position grids."""
    return find_layout(source, "image tower")[0].antialias


def load_image_tower(path: str | Path, **given: Any) -> Tower:
    """Load the image tower in a file or folder, in eval mode: forward gives (B, D), forward_tokens (B, T, D).

    Reads ResNets of torchvision and timm, ViTs of timm and Hugging Face, and the image towers of CLIP files (their
    features are those before the projection). given: options of the tower's config that the file does not say
    (n_heads, activation), or training ones (dropout, trained_blocks); image_size asks for another image size, to
    which positions are interpolated. Raises ValueError, in one line, where a file is damaged or incomplete, has tensors
    that the tower lacks, or leaves a fact open.
    """
    source = read_source(path)
    image_size = given.pop("image_size", None)
    plan = plan_tower(source, "image tower", given)
    weights = import_tower(source, plan)
    return make_tower(*resize_image(plan.config, weights, image_size, antialiased(source)))


def load_text_tower(path: str | Path, **given: Any) -> Tower:
    """Load the text tower in a file or folder, in eval mode: forward gives (B, D), forward_tokens (B, T, D).

    Reads Hugging Face's BERT, DistilBERT and GPT-2, alone or in a task's model, and the text towers of CLIP files.
    given: as for load_image_tower; vocab_size and context_length ask for other sizes. pool: BERT's pooler where the
    file has one, else the first token.
    """
    source = read_source(path)
    sizes = {name: given.pop(name, None) for name in ("vocab_size", "context_length")}
    plan = plan_tower(source, "text tower", given)
    weights = import_tower(source, plan)
    return make_tower(*resize_text(plan.config, weights, **sizes))


def import_tower(source: WeightFile, plan: Plan) -> dict[str, Tensor]:
    """Return {our name: tensor} of the tower that `plan` describes."""
    expected = on_meta(lambda: TOWERS[type(plan.config)](plan.config)).state_dict()
    return import_weights(source.tensors, plan, expected, source.path)


def make_tower(config: Any, weights: dict[str, Tensor]) -> Tower:
    """Make the tower with these weights, in eval mode."""
    return filled(on_meta(lambda: TOWERS[type(config)](config)), weights)


def load_clip(
    path: str | Path, vocabulary: str | Path | None = None, **given: Any
) -> tuple[CLIP, Tokenizer, ImageTransform]:
    """Load (model in eval mode, tokenizer, transform) from a published CLIP file or folder.

    vocabulary: CLIP's merges file (bpe_simple_vocab_16e6.txt.gz or merges.txt), if none is beside the weights.
    given: as for load_clip_model. Raises ValueError also where vocabulary and weights do not fit together.
    """
    source = read_source(path)
    model = build_clip(source, given)
    open_clip.check_tokenizer(source)
    tokenizer = tokenizer_beside(source.path, vocabulary)
    text: Any = model.config.text  # a GPTTextConfig in every published format
    if (tokenizer.vocab_size, tokenizer.end_id) != (text.vocab_size, text.end_id):
        raise ValueError(
            f"the vocabulary has {tokenizer.vocab_size} tokens and its text ends with id {tokenizer.end_id}; the "
            f"model in {source.path} has {text.vocab_size} and {text.end_id}: give the vocabulary it was trained with"
        )
    model.config = replace(model.config, text=replace(text, vocab_digest=tokenizer.digest))
    published = plan_tower(source, "image tower", tower_given(given, "image", source)).config.image_size
    preparation = open_clip.read_transform(source, published) or hf_clip.read_transform(source, published)
    return model, tokenizer, ImageTransform(preparation, model.config.image.image_size, train=False)


def load_clip_model(path: str | Path, **given: Any) -> CLIP:
    """Load the model alone, in eval mode.

    given: image_size, to which positions are interpolated; and where the file does not say them, activation,
    image_heads and text_heads. Raises ValueError, in one line, for files that are damaged, incomplete, no CLIP, or
    leave a fact open.
    """
    return build_clip(read_source(path), given)


def build_clip(source: WeightFile, given: dict[str, Any]) -> CLIP:
    """Build the CLIP in a file, in eval mode; `given` as for `load_clip_model`, ValueError for other options."""
    options = ("image_size", "activation", "image_heads", "text_heads")
    strangers = sorted(given.keys() - set(options))
    if strangers:
        raise ValueError(f"{strangers} are not options of a published CLIP: there are {', '.join(options)}")
    plan = plan_clip(source, given)
    expected = on_meta(lambda: CLIP(plan.config)).state_dict()
    weights = import_weights(source.tensors, plan, expected, source.path)
    prefix = "image_tower."
    tower = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
    image, tower = resize_image(plan.config.image, tower, given.get("image_size"), antialiased(source))
    weights |= {prefix + name: x for name, x in tower.items()}
    return filled(on_meta(lambda: CLIP(replace(plan.config, image=image))), weights)


def is_published(path: str | Path) -> bool:
    """Return whether a path is a weights file, or a folder of weights other than a run of this project."""
    path = Path(path)
    return path.is_file() or (path.is_dir() and not has_checkpoint(path) and not is_run_config(path))


def is_run_config(folder: Path) -> bool:
    """Return whether the folder's config.json is of this project: of a run, or of an exported model."""
    return not {"train", "transform"}.isdisjoint(
        WeightFile(folder / "config.json", {}).read_json("config.json")
    )
