"""Small towers and CLIPs with drawn weights, and files of theirs, for the tests of every format."""

import json
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from minclip.clip import CLIP, TOWERS, CLIPConfig
from minclip.data.tokenizer import Tokenizer, WordPiece
from minclip.data.transforms import ImageTransform, TransformConfig
from minclip.pretrained import export
from minclip.towers.modified_resnet import ModifiedResNetConfig
from minclip.towers.resnet import ResNetConfig
from minclip.towers.text import BertTextConfig, GPTTextConfig
from minclip.towers.vit import VisionTransformerConfig

WORDS = WordPiece.train(["a dog on the beach", "the cat"] * 2, 60)
SIZES: dict[str, Any] = {"d_model": 8, "n_heads": 2, "n_layers": 2}
VIT: dict[str, Any] = {**SIZES, "patch_size": (8, 8), "image_size": (16, 24)}
TEXT: dict[str, Any] = {**SIZES, "vocab_size": WORDS.vocab_size, "context_length": 9}
IMAGE_CONFIGS = [
    ResNetConfig(depths=(1, 2), d_model=8),
    ResNetConfig(depths=(1, 1, 2), d_model=8, block="bottleneck"),
    VisionTransformerConfig(**VIT),
    VisionTransformerConfig(**VIT, activation="quick_gelu", d_ff=12),
    VisionTransformerConfig(**VIT, pool="mean", norm_eps=1e-6),
    VisionTransformerConfig(**VIT, pool="mean_norm", norm_eps=1e-6),
    VisionTransformerConfig(**VIT, norm_input=True, activation="quick_gelu"),
]
TEXT_CONFIGS = [
    BertTextConfig(**TEXT, pool="first"),
    BertTextConfig(**TEXT, token_types=2, pool="pooler", activation="relu", norm_eps=1e-5),
    BertTextConfig(**TEXT, token_types=1, pool="first"),
    GPTTextConfig(**TEXT, end_id=WORDS.end_id, activation="gelu_tanh"),
]
CLIP_VIT = VisionTransformerConfig(
    d_model=64,
    n_heads=1,
    n_layers=2,
    image_size=(16, 16),
    patch_size=(8, 8),
    norm_input=True,
    activation="quick_gelu",
)
CLIP_RESNET = ModifiedResNetConfig(d_model=16, n_heads=8, depths=(1, 2, 1, 1), image_size=(64, 64))
ODD = st.sampled_from([None, True, -1, 0, 2.0, 10**9, "", "x", [], ["x"], [1, 2], {}, {"x": 1}])


class EndsLast(WordPiece):
    """A vocabulary whose end-of-text id is the last, as in CLIP's."""

    def __init__(self, tokens):
        super().__init__([*[t for t in tokens if t != "[SEP]"], "[SEP]"])


LAST = EndsLast(WORDS.tokens)


def text_config(tokenizer: Tokenizer = WORDS, **options: Any) -> GPTTextConfig:
    return GPTTextConfig(
        d_model=64,
        n_heads=1,
        n_layers=2,
        context_length=9,
        activation="quick_gelu",
        vocab_size=tokenizer.vocab_size,
        vocab_digest=tokenizer.digest,
        **({"end_id": tokenizer.end_id} | options),
    )


def drawn_clip(image: Any = CLIP_VIT, text: Any = None, **options: Any) -> CLIP:
    """Make a CLIP and draw all of its values."""
    model = CLIP(CLIPConfig(image=image, text=text or text_config(), embed_dim=6, **options)).eval()
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.dim():
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else 0.1 * torch.randn_like(value))
    return model


def drawn_tower(config: Any) -> Any:
    """Make a tower and draw all of its values, BatchNorm's and the patch bias included."""
    tower = TOWERS[type(config)](config).eval()
    for name, value in tower.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else 0.3 * torch.randn_like(value))
    return tower


def drawn_half(tower):
    """Round a tower's values to half precision."""
    tower.load_state_dict({name: value.half().float() for name, value in tower.state_dict().items()})
    return tower


def clip_batch(model, end_id=WORDS.end_id):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(4, WORDS.vocab_size - 1, (3, 9), generator=generator)
    tokens[:, 5] = end_id
    images = torch.randn(3, 3, *model.config.image.image_size, generator=generator)
    return images, tokens, torch.ones_like(tokens, dtype=torch.bool)


def token_batch():
    mask = torch.tensor([9, 4])[:, None] > torch.arange(9)
    tokens = torch.randint(4, WORDS.vocab_size, (2, 9), generator=torch.Generator().manual_seed(3))
    tokens[:, 3] = WORDS.end_id
    return tokens, mask


def transform_of(model, **options) -> ImageTransform:
    return ImageTransform(TransformConfig(**options), model.config.image.image_size, train=False)


def openai_file(folder, image=CLIP_VIT, tokenizer=WORDS):
    """Write an OpenAI file; return (model, its state dict in that layout, markers included)."""
    model = drawn_clip(image, text_config(tokenizer, end_id=tokenizer.vocab_size - 1))
    export(model, tokenizer, transform_of(model), folder, "openai")
    return model, torch.load(folder / "model.pt", weights_only=True)


def archive(tensors, path):
    """Write a TorchScript archive whose state dict is `tensors`."""

    class Node(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    root = Node()
    for name, value in tensors.items():
        *parents, leaf = name.split(".")
        node = root
        for parent in parents:
            if parent not in dict(node.named_children()):
                node.add_module(parent, Node())
            node = getattr(node, parent)
        node.register_buffer(leaf, value)
    torch.jit.trace(root.eval(), torch.zeros(1)).save(str(path))


def hf_folder(folder, **options):
    model = drawn_clip()
    export(model, WORDS, transform_of(model, **options), folder, "hf-clip")
    return model


def edit_json(path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def spoil(path, data) -> None:
    """Replace one value of a JSON file, at any depth, by something odd."""
    place = whole = json.loads(path.read_text())
    key = data.draw(st.sampled_from(sorted(place)))
    while isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place)))
    place[key] = data.draw(ODD)
    path.write_text(json.dumps(whole))


def loads_or_says_why(load, folder) -> None:
    """Check that an odd config either loads or gives one line that names a file of the folder."""
    try:
        load(folder)
    except ValueError as error:
        assert str(folder) in str(error), error  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
