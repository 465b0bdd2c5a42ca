"""A whole CLIP from a published file: OpenAI's, open_clip's or Hugging Face's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from minclip.clip import CLIP, CLIPConfig
from minclip.data.tokenizer import Tokenizer
from minclip.data.transforms import ImageTransform
from minclip.pretrained import huggingface, native
from minclip.pretrained.beside import tokenizer_beside, transform_beside
from minclip.pretrained.resize import resize_image
from minclip.pretrained.towers import IMAGE_LAYOUTS, TEXT_LAYOUTS, antialiased, plan_tower, read_source
from minclip.towers.text import GPTTextConfig
from minlm.pretrained.key_map import Plan, Row, filled, import_weights, on_meta, prefixed
from minlm.pretrained.options import first_prefix
from minlm.pretrained.weight_files import WeightFile
from minlm.training.checkpoint import has_checkpoint

Loaded = tuple[CLIP, Tokenizer, ImageTransform]
# Hugging Face's joint space has one name, CLIP's own names have another.
HF_ANCHOR, NATIVE_ANCHOR = "text_projection.weight", "text_projection"


def load_clip(path: str | Path, vocabulary: str | Path | None = None, **given: Any) -> Loaded:
    """(model in eval mode, tokenizer, transform) of a published CLIP file or folder.

    vocabulary: CLIP's merges file (bpe_simple_vocab_16e6.txt.gz or merges.txt), where none lies beside the weights.
    given: as for load_clip_model. Raises ValueError also where vocabulary and weights do not fit together.
    """
    source = read_source(path)
    model = build_clip(source, given)
    tokenizer, text = tokenizer_beside(source, vocabulary), model.config.text
    if (tokenizer.vocab_size, tokenizer.end_id) != (text.vocab_size, text.end_id):
        raise ValueError(
            f"the vocabulary has {tokenizer.vocab_size} tokens and its text ends with id {tokenizer.end_id}; the "
            f"model in {source.path} has {text.vocab_size} and {text.end_id}: give the vocabulary it was trained with"
        )
    model.config = replace(model.config, text=replace(text, vocab_digest=tokenizer.digest))
    published = plan_tower(source, IMAGE_LAYOUTS, tower_given(given, "image", source)).config
    preparation = transform_beside(source, published.image_size)
    transform = ImageTransform(preparation, model.config.image.image_size, train=False)
    return model, tokenizer, transform


def load_clip_model(path: str | Path, **given: Any) -> CLIP:
    """The model alone, in eval mode.

    given: image_size, for which positions are interpolated; and where the file does not say them, activation,
    image_heads and text_heads. Raises ValueError, in one line, for files that are damaged, incomplete, no CLIP, or
    leave a fact open.
    """
    return build_clip(read_source(path), given)


def build_clip(source: WeightFile, given: dict[str, Any]) -> CLIP:
    """The CLIP in a file, in eval mode; `given` as for `load_clip_model`, ValueError for other options."""
    strangers = given.keys() - {"image_size", "activation", "image_heads", "text_heads"}
    if strangers:
        raise ValueError(f"{sorted(strangers)} are no options of a published CLIP")
    image_size = given.get("image_size")
    plan = plan_clip(source, given)
    expected = on_meta(lambda: CLIP(plan.config)).state_dict()
    weights = import_weights(source.tensors, plan, expected, source.path)
    tower = {
        name.removeprefix("image_tower."): x for name, x in weights.items() if name.startswith("image_tower.")
    }
    image, tower = resize_image(plan.config.image, tower, image_size, antialiased(source))
    weights |= {f"image_tower.{name}": x for name, x in tower.items()}
    return filled(on_meta(lambda: CLIP(replace(plan.config, image=image))), weights)


def plan_clip(source: WeightFile, given: dict[str, Any]) -> Plan:
    """What a CLIP file is in our terms: both towers' tables under one, the projections and the scale."""
    tensors = source.tensors
    hugging_face = HF_ANCHOR in tensors and "visual_projection.weight" in tensors
    prefix = first_prefix(tensors, ("", "text."), NATIVE_ANCHOR)
    if not hugging_face and prefix is None:
        raise ValueError(
            f"{source.path} is no CLIP that is known: it has no text_projection beside an image tower; its tensors "
            f"are {', '.join(sorted(tensors)[:4])}, ..."
        )
    image = plan_tower(source, IMAGE_LAYOUTS, tower_given(given, "image", source)).config
    text = plan_tower(source, TEXT_LAYOUTS, tower_given(given, "text", source)).config
    if hugging_face:
        rows, ignored = hf_rows(image, text), huggingface.NUMBERS
        embed_dim = source.shape(HF_ANCHOR, 2)[0]
    else:
        rows, ignored = native_rows(image, text, prefix), native.IGNORED
        embed_dim = source.shape(f"{prefix}{NATIVE_ANCHOR}", 2)[1]
    loss = "sigmoid" if "logit_bias" in tensors else "infonce"
    config = CLIPConfig(image=image, text=text, embed_dim=embed_dim, loss=loss)
    return Plan(config, rows, ignored)


def tower_given(given: dict[str, Any], tower: str, source: WeightFile) -> dict[str, Any]:
    """Of what was given for a CLIP, what one of its towers takes."""
    resnet = "visual.attnpool.positional_embedding" in source.tensors
    result = {"n_heads": given[f"{tower}_heads"]} if f"{tower}_heads" in given else {}
    if "activation" in given and not (resnet and tower == "image"):
        result["activation"] = given["activation"]
    return result


def hf_rows(image: Any, text: GPTTextConfig) -> list[Row]:
    """The whole table of Hugging Face's CLIPModel."""
    return [
        *prefixed(huggingface.vision_rows(image), "vision_model.", "image_tower."),
        *prefixed(huggingface.text_rows(text), "text_model.", "text_tower."),
        *huggingface.JOINT,
    ]


def native_rows(image: Any, text: GPTTextConfig, text_prefix: str = "") -> list[Row]:
    """The whole table of OpenAI's and open_clip's CLIP."""
    return [
        *prefixed(native.image_rows(image), ours="image_tower."),
        *prefixed(native.text_rows(text), text_prefix, "text_tower."),
        *native.joint_rows(image, text_prefix),
        Row("logit_bias", "logit_bias"),
    ]


def is_published(path: str | Path) -> bool:
    """Whether a path is a file of weights, or a folder of weights that is no run of this project."""
    path = Path(path)
    return path.is_file() or (path.is_dir() and not has_checkpoint(path) and not is_run_config(path))


def is_run_config(folder: Path) -> bool:
    """Whether the folder's config.json is that of a run: it says how the model was trained."""
    return "train" in WeightFile(folder / "config.json", {}).read_json("config.json")
