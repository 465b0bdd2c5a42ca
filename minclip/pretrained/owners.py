"""A CLIP's towers in the formats of their owners: torchvision, timm, Hugging Face's ViT, BERT, DistilBERT, GPT-2."""

from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file

from minclip.clip import CLIP
from minclip.data.transforms import TransformConfig
from minclip.pretrained.folders import (
    Tokenizer,
    require,
    save_tokenizer,
    write_json,
    write_weights,
)
from minclip.pretrained.resnets import resnet_rows
from minclip.pretrained.text_towers import EPS, bert_rows, distilbert_rows
from minclip.pretrained.vits import CLIP_EPS, TIMM_EPS, hf_rows, timm_rows
from minclip.towers.resnet import ResNet, ResNetConfig
from minclip.towers.text import BertTextConfig, BertTextEncoder, GPTTextConfig, GPTTextEncoder
from minclip.towers.vit import VisionTransformer, VisionTransformerConfig
from minlm.pretrained.gpt2 import gpt2_options, gpt2_rows
from minlm.pretrained.options import hf_options, their_activation

# (block, depths) of the networks that have a name, of 64 channels and an ImageNet stem.
RESNETS = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
}


def save_towers(model: CLIP, tokenizer: Tokenizer, transform: TransformConfig, folder: Path) -> None:
    """Write folder/image, folder/text, and the heads and the scale (our names) in folder/heads.safetensors."""
    save_image_tower(model.image_tower, transform, folder / "image")
    save_text_tower(model.text_tower, tokenizer, folder / "text")
    heads = {
        name: value.detach().contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith(("image_tower.", "text_tower."))
    }
    save_file(heads, folder / "heads.safetensors")


def save_image_tower(
    tower: ResNet | VisionTransformer, transform: TransformConfig, folder: str | Path
) -> None:
    """A ResNet as torchvision's and timm's state dict, a ViT as Hugging Face's folder or as timm's state dict.

    Hugging Face's ViT has a class token and no LayerNorm before the first Block; other ViTs are written for timm.
    A config.json for timm's "local-dir:FOLDER" is written where the network has a name there. Raises ValueError for
    a tower that neither has.
    """
    folder, config = Path(folder), tower.config
    match config:
        case ResNetConfig():
            write_weights(tower, resnet_rows(config), folder / "model.safetensors")
            name = RESNETS.get((config.block, config.depths))
            if name and (config.d_model, config.stem) == (64, "imagenet"):
                write_json(folder / "config.json", timm_options(name, config.image_size, transform))
        case VisionTransformerConfig(pool="class", norm_input=False):
            save_hf_vit(tower, folder)
        case VisionTransformerConfig():
            save_timm_vit(tower, transform, folder)
        case _:
            raise ValueError(
                "CLIP's ResNet is part of CLIP's own formats: export with --to openai or open_clip"
            )


def timm_options(architecture: str, image_size: tuple[int, int], transform: TransformConfig) -> dict:
    """config.json of a model without classifier in a folder of timm's."""
    how = asdict(transform)
    return {
        "architecture": architecture,
        "num_classes": 0,
        "pretrained_cfg": {
            "input_size": [3, *image_size],
            "num_classes": 0,
            **{name: how[name] for name in ("mean", "std", "interpolation")},
        },
    }


def save_hf_vit(tower: VisionTransformer, folder: Path) -> None:
    """A folder for ViTModel.from_pretrained. ValueError naming what its form has no place for."""
    config = tower.config
    require(
        "Hugging Face's ViT",
        (config.norm_first, "it has its LayerNorms after the sublayers"),
        (config.patch_size[0] == config.patch_size[1], "its patches are not square"),
    )
    options = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        **hf_options(config),
        "image_size": list(config.image_size),
        "patch_size": config.patch_size[0],
        "qkv_bias": True,
        **{f"{name}_dropout_prob": config.dropout for name in ("hidden", "attention_probs")},
    }
    write_weights(tower, hf_rows(config), folder / "model.safetensors")
    write_json(folder / "config.json", options)


def save_timm_vit(tower: VisionTransformer, transform: TransformConfig, folder: Path) -> None:
    """State dict of timm's VisionTransformer; config.json names an architecture and what is other in this one."""
    config = tower.config
    eps = CLIP_EPS if config.norm_input else TIMM_EPS
    require(
        "timm's ViT",
        (config.norm_first, "it has its LayerNorms after the sublayers"),
        (config.pool != "last", "it pools the last patch"),
        (config.norm_eps == eps, f"its norm_eps is {config.norm_eps}, not timm's {eps}"),
        (config.activation in ("gelu", "quick_gelu"), f"its activation is {config.activation}"),
    )
    family = "vit_base_patch32_clip_" if config.norm_input else "vit_base_patch32_"
    quick = "quickgelu_" if config.activation == "quick_gelu" else ""
    require("timm's ViT", (config.norm_input or not quick, "timm has quick_gelu only with norm_input"))
    options = timm_options(f"{family}{quick}224", config.image_size, transform)
    options["global_pool"] = "token" if config.pool == "class" else "avg"
    options["model_args"] = {
        "img_size": list(config.image_size),
        "patch_size": list(config.patch_size),
        "embed_dim": config.d_model,
        "depth": config.n_layers,
        "num_heads": config.n_heads,
        "mlp_ratio": config.mlp_width / config.d_model,
        "class_token": config.pool == "class",
        "global_pool": options["global_pool"],
        "fc_norm": config.pool == "mean_norm",
    }
    write_weights(tower, timm_rows(config, bias=not config.norm_input), folder / "model.safetensors")
    write_json(folder / "config.json", options)


def save_text_tower(
    tower: BertTextEncoder | GPTTextEncoder, tokenizer: Tokenizer, folder: str | Path
) -> None:
    """BERT where there are sentence kinds, DistilBERT where there are none, GPT-2 for a causal tower."""
    folder, config = Path(folder), tower.config
    match config:
        case GPTTextConfig():
            save_gpt2_tower(tower, folder)
        case BertTextConfig(token_types=0):
            save_distilbert(tower, folder)
        case BertTextConfig():
            save_bert(tower, folder)
    save_tokenizer(tokenizer, folder)


def save_gpt2_tower(tower: GPTTextEncoder, folder: Path) -> None:
    config = tower.config
    require("GPT-2", (config.norm_first, "it has its LayerNorms after the sublayers"))
    options = gpt2_options(config) | {"architectures": ["GPT2Model"], "eos_token_id": config.end_id}
    write_weights(tower, gpt2_rows(config.n_layers), folder / "model.safetensors")
    write_json(folder / "config.json", options)


def save_distilbert(tower: BertTextEncoder, folder: Path) -> None:
    """A folder for DistilBertModel.from_pretrained. ValueError naming what its form has no place for."""
    config = tower.config
    require(
        "DistilBERT",
        (not config.norm_first, "it has its LayerNorms before the sublayers"),
        (config.norm_eps == EPS, f"its norm_eps is {config.norm_eps}, not {EPS}"),
        (config.pool != "pooler", "it has a pooler"),
        (config.activation in ("gelu", "relu"), f"its activation is {config.activation}"),
    )
    options = {
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
    write_weights(tower, distilbert_rows(config), folder / "model.safetensors")
    write_json(folder / "config.json", options)


def save_bert(tower: BertTextEncoder, folder: Path) -> None:
    """A folder for BertModel.from_pretrained. ValueError where the LayerNorms stand elsewhere."""
    config = tower.config
    require("BERT", (not config.norm_first, "it has its LayerNorms before the sublayers"))
    options = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        **hf_options(config),
        "max_position_embeddings": config.context_length,
        "vocab_size": config.vocab_size,
        "type_vocab_size": config.token_types,
        **{f"{name}_dropout_prob": config.dropout for name in ("hidden", "attention_probs")},
    }
    write_weights(tower, bert_rows(config), folder / "model.safetensors")
    write_json(folder / "config.json", options)
