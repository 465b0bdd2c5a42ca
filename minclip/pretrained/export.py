"""A CLIP in a format of someone else, to be opened by their library with the same outputs.

What a format cannot say is refused in one line, with the reason: no weights are bent to fit.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from minclip.clip import CLIP, CLIPConfig
from minclip.data.tokenizer import WordPiece
from minclip.data.transforms import ImageTransform, TransformConfig
from minclip.presets import RunConfig
from minclip.pretrained import native
from minclip.pretrained.beside import RESAMPLE
from minclip.pretrained.clips import hf_rows, native_rows
from minclip.pretrained.folders import (
    Tokenizer,
    require,
    save_tokenizer,
    write_json,
    write_weights,
)
from minclip.pretrained.huggingface import LEGACY_END
from minclip.pretrained.owners import save_towers
from minclip.towers.modified_resnet import ModifiedResNetConfig
from minclip.towers.text import GPTTextConfig
from minclip.towers.vit import VisionTransformerConfig
from minlm.pretrained.key_map import Row, export_weights
from minlm.pretrained.options import hf_options
from minlm.training.config import save_config
from minlm.training.state import TrainConfig

Format = Literal["hf-clip", "open_clip", "openai", "safetensors", "towers"]


def export(
    model: CLIP, tokenizer: Tokenizer, transform: ImageTransform, folder: str | Path, to: Format
) -> None:
    """Write a CLIP, and its vocabulary, into `folder`.

    hf-clip: config.json, model.safetensors and preprocessor_config.json of Hugging Face's CLIPModel.
    open_clip: open_clip_config.json and open_clip_model.safetensors, for create_model("local-dir:FOLDER").
    openai: model.pt, a state dict for clip.load.
    safetensors: a folder of this project, for minclip.load.
    towers: each tower in the format of its owner (minclip/pretrained/owners.py).
    Raises ValueError where the format has no place for something of this model.
    """
    folder = Path(folder)
    if to not in get_args(Format):
        raise ValueError(f"no format {to!r}: there are {', '.join(get_args(Format))}")
    write = {
        "hf-clip": save_hf_clip,
        "open_clip": save_open_clip,
        "openai": save_openai,
        "safetensors": save_run,
        "towers": save_towers,
    }[to]
    write(model, tokenizer, transform.config, folder)


def require_clip(to: str, config: CLIPConfig, image_kinds: tuple[type, ...]) -> None:
    """What every CLIP of others has."""
    image, text = config.image, config.text
    vit = isinstance(image, VisionTransformerConfig)
    require(
        to,
        (
            isinstance(image, image_kinds),
            f"its image tower is a {type(image).__name__.removesuffix('Config')}",
        ),
        (isinstance(text, GPTTextConfig), "its text tower is no GPT"),
        (config.projection == "linear", f"its projection is {config.projection}, not linear"),
        (
            text.norm_first and getattr(image, "norm_first", True),
            "a tower has its LayerNorms after the sublayers",
        ),
        (not vit or image.pool == "class", "its ViT has no class token"),
        (not vit or image.patch_size[0] == image.patch_size[1], "its patches are not square"),
    )


def save_hf_clip(model: CLIP, tokenizer: Tokenizer, transform: TransformConfig, folder: Path) -> None:
    """A folder for CLIPModel.from_pretrained. ValueError naming what its form has no place for."""
    config, image, text = model.config, model.config.image, model.config.text
    require_clip("hf-clip", config, (VisionTransformerConfig,))
    require(
        "hf-clip",
        (image.norm_input, "its ViT has no LayerNorm before the first Block (image.norm_input)"),
        (image.image_size[0] == image.image_size[1], "its pictures are not square"),
        (model.logit_bias is None, "it has a logit_bias"),
        (
            text.end_id != LEGACY_END or text.vocab_size == LEGACY_END + 1,
            f"its texts end with id {LEGACY_END}, which Hugging Face reads as the largest id",
        ),
    )
    side = image.image_size[0]
    options = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "vision_config": {
            "model_type": "clip_vision_model",
            **hf_options(image),
            "image_size": side,
            "patch_size": image.patch_size[0],
        },
        "text_config": {
            "model_type": "clip_text_model",
            **hf_options(text),
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "bos_token_id": tokenizer.start_id,
            "eos_token_id": text.end_id,
            "pad_token_id": tokenizer.pad_id,
        },
    }
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), True),
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "resample": next(number for number, name in RESAMPLE.items() if name == transform.interpolation),
        "rescale_factor": 1 / 255,
        "image_mean": transform.mean,
        "image_std": transform.std,
    }
    write_weights(model, hf_rows(image, text), folder / "model.safetensors")
    save_tokenizer(tokenizer, folder)
    write_json(folder / "preprocessor_config.json", preprocessor)
    write_json(folder / "config.json", options)


def save_open_clip(model: CLIP, tokenizer: Tokenizer, transform: TransformConfig, folder: Path) -> None:
    """A folder for open_clip's local-dir. ValueError naming what its form has no place for."""
    config, image, text = model.config, model.config.image, model.config.text
    require_clip("open_clip", config, (VisionTransformerConfig, ModifiedResNetConfig))
    activations = {text.activation, getattr(image, "activation", text.activation)}
    resnet = isinstance(image, ModifiedResNetConfig)
    require(
        "open_clip",
        (
            len(activations) == 1 and activations <= {"gelu", "quick_gelu"},
            f"its activations are {activations}",
        ),
        (not resnet or len(image.depths) == 4, "its ResNet has not four stages"),
    )
    text_options = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.d_model,
        "heads": text.n_heads,
        "layers": text.n_layers,
        "mlp_ratio": text.mlp_width / text.d_model,
        "norm_kwargs": {"eps": text.norm_eps},
    }
    if text.end_id != text.vocab_size - 1:
        text_options |= {"pool_type": "eos", "eos_id": text.end_id}
    if isinstance(tokenizer, WordPiece):
        text_options["hf_tokenizer_name"] = "in this folder"
    options = {
        "embed_dim": config.embed_dim,
        "quick_gelu": text.activation == "quick_gelu",
        "vision_cfg": open_clip_vision(image),
        "text_cfg": text_options,
    }
    if model.logit_bias is not None:
        options["init_logit_bias"] = model.logit_bias.item()
    preprocess = {"mean": transform.mean, "std": transform.std, "interpolation": transform.interpolation}
    write_weights(model, clip_rows(model), folder / "open_clip_model.safetensors")
    save_tokenizer(tokenizer, folder)
    write_json(folder / native.CONFIG_NAME, {"model_cfg": options, "preprocess_cfg": preprocess})


def open_clip_vision(image: VisionTransformerConfig | ModifiedResNetConfig) -> dict[str, Any]:
    """vision_cfg of open_clip_config.json."""
    height, width = image.image_size
    size = {"image_size": height if height == width else [height, width], "width": image.d_model}
    if isinstance(image, ModifiedResNetConfig):
        return {**size, "layers": list(image.depths), "head_width": image.d_model * 32 // image.n_heads}
    return {
        **size,
        "layers": image.n_layers,
        "head_width": image.head_size,
        "patch_size": image.patch_size[0],
        "mlp_ratio": image.mlp_width / image.d_model,
        "no_ln_pre": not image.norm_input,
        "norm_kwargs": {"eps": image.norm_eps},
    }


def save_openai(model: CLIP, tokenizer: Tokenizer, transform: TransformConfig, folder: Path) -> None:
    """A state dict with the numbers that OpenAI's archives hold; clip.load reads either."""
    config, image, text = model.config, model.config.image, model.config.text
    require_clip("openai", config, (VisionTransformerConfig, ModifiedResNetConfig))
    vit = isinstance(image, VisionTransformerConfig)
    stacks = [text, image] if vit else [text]
    head_width = image.head_size if vit else image.width // image.n_heads
    require(
        "openai",
        (all(stack.activation == "quick_gelu" for stack in stacks), "its activation is not quick_gelu"),
        (all(stack.norm_eps == native.EPS for stack in stacks), f"its norm_eps is not {native.EPS}"),
        (all(stack.mlp_width == 4 * stack.d_model for stack in stacks), "its d_ff is not 4 * d_model"),
        (text.head_size == head_width == native.HEAD_WIDTH, f"its heads are not {native.HEAD_WIDTH} wide"),
        (vit or len(image.depths) == 4, "its ResNet has not four stages"),
        (not vit or image.norm_input, "its ViT has no LayerNorm before the first Block (image.norm_input)"),
        (image.image_size[0] == image.image_size[1], "its pictures are not square"),
        (text.end_id == text.vocab_size - 1, "the end of text is not the last id"),
        (model.logit_bias is None, "it has a logit_bias"),
    )
    numbers = (image.image_size[0], text.context_length, text.vocab_size)
    markers = {name: torch.tensor(number) for name, number in zip(native.MARKERS, numbers, strict=True)}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(
        export_weights(model.state_dict(), clip_rows(model), "the model") | markers, folder / "model.pt"
    )
    save_tokenizer(tokenizer, folder)


def clip_rows(model: CLIP) -> list[Row]:
    rows = native_rows(model.config.image, model.config.text)
    return rows if model.logit_bias is not None else rows[:-1]


def save_run(model: CLIP, tokenizer: Tokenizer, transform: TransformConfig, folder: Path) -> None:
    """The files of a checkpoint of this project: weights, config and vocabulary."""
    config = model.config
    if not isinstance(config, RunConfig):
        known = {field.name: getattr(config, field.name) for field in fields(CLIPConfig)}
        config = RunConfig(**known, transform=transform, train=TrainConfig(epochs=1))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(contiguous(model.state_dict()), folder / "model.safetensors")
    tokenizer.save(folder)
    save_config(config, folder / "config.json")


def contiguous(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous() for name, value in weights.items()}
