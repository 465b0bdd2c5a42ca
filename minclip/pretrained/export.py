"""Export of a trained CLIP, or of one tower, in a published format that another library opens with equal outputs.

A model that the format cannot express is refused with the reasons; weights are never changed to fit.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from minclip.clip import CLIP, CLIPConfig
from minclip.data.tokenizer import Tokenizer
from minclip.data.transforms import ImageTransform, TransformConfig
from minclip.pretrained import bert, gpt2, hf_clip, hf_vit, open_clip, openai, runs, timm, torchvision
from minclip.pretrained.vocabulary import save_tokenizer
from minclip.towers.freezing import Tower
from minclip.towers.text import BertTextConfig
from minclip.towers.vit import VisionTransformerConfig
from minlm.pretrained.key_map import own
from minlm.pretrained.weight_files import write_tensors

Format = Literal["hf-clip", "open_clip", "openai", "safetensors", "towers"]
Writer = tuple[Callable[[Any], list[str]], Callable[..., None]]  # (obstacles, write) of a format


def export(
    model: CLIP, tokenizer: Tokenizer, transform: ImageTransform, folder: str | Path, to: Format
) -> None:
    """Write a CLIP and its vocabulary into `folder`.

    hf-clip: config.json, model.safetensors and preprocessor_config.json of Hugging Face's CLIPModel.
    open_clip: open_clip_config.json and open_clip_model.safetensors, for create_model("local-dir:FOLDER").
    openai: model.pt, a state dict for clip.load.
    safetensors: a folder of this project, for minclip.load.
    towers: each tower in the format of its kind (see `save_image_tower` and `save_text_tower`).
    Raises ValueError, naming the formats that can, if `to` cannot express this model.
    """
    writers: dict[str, Writer] = {
        "hf-clip": (hf_clip.obstacles, hf_clip.write),
        "open_clip": (open_clip.obstacles, open_clip.write),
        "openai": (openai.obstacles, openai.write),
        "safetensors": (runs.obstacles, runs.write),
        "towers": (tower_obstacles, save_towers),
    }
    if to not in writers:
        raise ValueError(f"no format {to!r}: there are {', '.join(writers)}")
    obstacles, write = writers[to]
    if reasons := obstacles(model.config):
        able = [name for name, (obstacles, _) in writers.items() if not obstacles(model.config)]
        raise ValueError(
            f"this model cannot be written as {to}: {'; '.join(reasons)}: give --to {' or '.join(able)}"
        )
    write(model, tokenizer, transform.config, Path(folder))


def image_writer(config: Any) -> Writer:
    """Choose the format of an image tower.

    A ViT with a class token and without norm_input is Hugging Face's; any other ViT is timm's.
    """
    match config:
        case VisionTransformerConfig(pool="class", norm_input=False):
            return hf_vit.obstacles, hf_vit.write
        case VisionTransformerConfig():
            return timm.obstacles, timm.write
    return torchvision.obstacles, torchvision.write


def text_writer(config: Any) -> Writer:
    """Choose the format of a text tower."""
    match config:
        case BertTextConfig():
            return bert.obstacles, bert.write
    return gpt2.obstacles, gpt2.write


def tower_obstacles(config: CLIPConfig) -> list[str]:
    """List why a tower of this model has no published format."""
    return image_writer(config.image)[0](config.image) + text_writer(config.text)[0](config.text)


def save_towers(model: CLIP, tokenizer: Tokenizer, transform: TransformConfig, folder: Path) -> None:
    """Write folder/image, folder/text, and the heads and the scale in our names in folder/heads.safetensors."""
    save_image_tower(model.image_tower, transform, folder / "image")
    save_text_tower(model.text_tower, tokenizer, folder / "text")
    heads = {
        name: own(value)
        for name, value in model.state_dict().items()
        if not name.startswith(("image_tower.", "text_tower."))
    }
    write_tensors(folder / "heads.safetensors", heads)


def save_image_tower(tower: Tower, transform: TransformConfig, folder: str | Path) -> None:
    """Write a ResNet as torchvision's and timm's state dict, a ViT as Hugging Face's folder or timm's state dict.

    A config.json for timm's "local-dir:FOLDER" is written where the network has a name there. Raises ValueError for
    a tower that the format cannot express.
    """
    write_tower(tower, image_writer(tower.config), transform, Path(folder))


def save_text_tower(tower: Tower, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write BERT (with token_types), DistilBERT (without) or, for a causal tower, GPT-2; and the vocabulary."""
    write_tower(tower, text_writer(tower.config), Path(folder))
    save_tokenizer(tokenizer, Path(folder))


def write_tower(tower: Tower, writer: Writer, *arguments: Any) -> None:
    """Write a tower. ValueError with the reasons if the format cannot express it."""
    obstacles, write = writer
    if reasons := obstacles(tower.config):
        raise ValueError(f"this tower cannot be written alone: {'; '.join(reasons)}: export the whole model")
    write(tower, tower.config, *arguments)
