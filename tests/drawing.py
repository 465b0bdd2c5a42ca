"""CLIP configs drawn widely, and random models and batches for them."""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from minclip.clip import CLIP, CLIPConfig, contrastive_loss, embed_batch
from minclip.losses import contrastive_metrics
from minclip.task import PairTask
from minclip.towers.modified_resnet import ModifiedResNetConfig
from minclip.towers.resnet import ResNetConfig
from minclip.towers.text import BertTextConfig, GPTTextConfig
from minclip.towers.vit import VisionTransformerConfig
from minlm.training.loop import Precision
from tests.minlm.reference import normal, randomise

seeds = st.integers(0, 10**6)
sizes = st.integers(1, 6)
stacks = st.builds(
    lambda heads, size, layers, d_ff, activation: {
        "d_model": heads * size,
        "n_heads": heads,
        "n_layers": layers,
        "d_ff": d_ff,
        "activation": activation,
    },
    st.integers(1, 3),
    st.sampled_from([4, 6]),
    st.integers(1, 2),
    st.sampled_from([None, 5]),
    st.sampled_from(["gelu", "gelu_tanh", "quick_gelu", "relu"]),
)
vit_configs = st.builds(
    lambda stack, patch, grid, **fields: VisionTransformerConfig(
        **stack, patch_size=patch, image_size=(grid[0] * patch[0], grid[1] * patch[1]), **fields
    ),
    stacks,
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pool=st.sampled_from(["class", "mean", "mean_norm", "last"]),
    norm_input=st.booleans(),
)
text_fields = {"vocab_size": st.integers(2, 30), "context_length": st.integers(3, 9)}
gpt_configs = st.builds(
    lambda stack, end_id, vocab_size, context_length: GPTTextConfig(
        **stack, end_id=end_id % vocab_size, vocab_size=vocab_size, context_length=context_length
    ),
    stacks,
    st.integers(0, 29),
    **text_fields,
)
bert_configs = st.builds(
    lambda stack, **fields: BertTextConfig(**stack, **fields),
    stacks,
    pool=st.sampled_from(["first", "pooler", "mean"]),
    token_types=st.sampled_from([0, 2]),
    **text_fields,
)
resnet_configs = st.builds(
    ResNetConfig,
    image_size=st.tuples(st.integers(16, 18), st.integers(16, 18)),
    block=st.sampled_from(["basic", "bottleneck"]),
    depths=st.lists(st.integers(1, 2), min_size=1, max_size=2).map(tuple),
    d_model=st.integers(2, 5),
    stem=st.sampled_from(["imagenet", "cifar", "small"]),
)
modified_resnet_configs = st.builds(
    ModifiedResNetConfig,
    image_size=st.sampled_from([(8, 16), (16, 8)]),
    depths=st.sampled_from([(1,), (1, 2)]),
    d_model=st.integers(2, 4),
    n_heads=st.sampled_from([1, 4]),
)
rest = {
    "text": st.one_of(gpt_configs, bert_configs),
    "embed_dim": st.integers(1, 9),
    "temperature": st.floats(0.01, 1),
}
clip_configs = st.builds(CLIPConfig, image=vit_configs, **rest)
resnet_clip_configs = st.builds(CLIPConfig, image=st.one_of(resnet_configs, modified_resnet_configs), **rest)
LOSSES = ["infonce", "sigmoid", "soft_targets"]
PROJECTIONS = ["linear", "linear_norm", "residual", "ndlinear", "low_rank"]


def unit(seed: int, n: int, embed_dim: int) -> torch.Tensor:
    """Random unit vectors (n, embed_dim) in float64."""
    return F.normalize(normal(seed, n, embed_dim), dim=-1)


def draw_pairs(seed: int, n: int, embed_dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random embeddings of n images and texts, and their groups, several of which have several members."""
    groups = torch.randint(max(1, 2 * n // 3), (n,), generator=torch.Generator().manual_seed(seed))
    return unit(seed, n, embed_dim), unit(seed + 1, n, embed_dim), groups


def randomise_norms(model: nn.Module, seed: int) -> nn.Module:
    """Draw every parameter and BatchNorm statistic: initial ones would hide a missing BatchNorm."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            drawn = torch.rand(value.shape, generator=generator) + 0.5
            value.copy_(drawn if "running_var" in name else drawn - 1)
    return model.double().eval()


def batch_of(config: CLIPConfig, n: int, seed: int) -> dict[str, torch.Tensor]:
    """Random batch of n pairs with several per group; texts end anywhere, and the mask excludes what follows."""
    generator, length = torch.Generator().manual_seed(seed), config.text.context_length
    tokens = torch.randint(config.text.vocab_size, (n, length), generator=generator)
    end = torch.randint(length, (n,), generator=generator)
    tokens[torch.arange(n), end] = getattr(config.text, "end_id", 0)
    return {
        "images": normal(seed + 1, n, 3, *config.image.image_size),
        "tokens": tokens,
        "token_mask": torch.arange(length) <= end[:, None],
        "groups": torch.randint(max(1, 2 * n // 3), (n,), generator=generator),
    }


def model_of(config: CLIPConfig, seed: int) -> CLIP:
    """A CLIP with all parameters random, in float64, but the config's temperature."""
    model = randomise(CLIP(config), seed)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(1 / config.temperature))
    return model


def pair_of(model: CLIP, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and text embeddings of a batch."""
    return model.encode_image(batch["images"]), model.encode_text(batch["tokens"], batch["token_mask"])


class Scaled(Precision):
    """float32 with a loss scale in the backward pass, as fp16 has."""

    def __init__(self, scale: float):
        super().__init__("float32", torch.device("cpu"))
        self.scale = scale

    def backward(self, loss: torch.Tensor) -> None:
        (loss * self.scale).backward()


FLOAT32 = Precision("float32", torch.device("cpu"))


def backward(model: CLIP, batch: dict, n_parts: int = 1, precision: Precision = FLOAT32) -> tuple:
    """Run PairTask.backward without a dataset -> (loss, pairs, metrics)."""
    task = SimpleNamespace(config=SimpleNamespace(train=SimpleNamespace(micro_batches=n_parts)))
    return PairTask.backward(task, model, batch, precision)


def batch_loss(model: CLIP, batch: dict) -> tuple:
    """Compute the loss of a batch, with its graph -> (sum over pairs, pairs, metrics)."""
    pair = embed_batch(model, batch)
    metrics = contrastive_metrics(*pair, model.logit_scale, batch["groups"], model.logit_bias)
    return *contrastive_loss(model, *pair, batch["groups"]), metrics


SMALL = CLIPConfig(
    image=VisionTransformerConfig(d_model=16, n_heads=2, n_layers=1, image_size=(8, 8), patch_size=(4, 4)),
    text=GPTTextConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=20, context_length=8),
    embed_dim=8,
)

# Towers of three Blocks, of every kind.
three_blocks = {"d_model": 8, "n_heads": 2, "n_layers": 3, "dropout": 0.2}
patches = {"image_size": (16, 16), "patch_size": (8, 8)}
IMAGES = [
    VisionTransformerConfig(**three_blocks, **patches),
    VisionTransformerConfig(**three_blocks, **patches, norm_input=True, pool="mean"),
    ResNetConfig(image_size=(16, 16), depths=(2, 1), d_model=4, stem="small"),
    ModifiedResNetConfig(image_size=(16, 16), depths=(2, 1), d_model=4, n_heads=2),
]
words = {"vocab_size": 20, "context_length": 8}
TEXTS = [
    GPTTextConfig(**three_blocks, **words),
    BertTextConfig(**three_blocks, **words, pool="pooler", token_types=2),
    BertTextConfig(**three_blocks, **words),
]
