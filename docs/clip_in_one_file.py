"""CLIP in one file: images and texts in one embedding space (Radford et al. 2021, figure 3).

    python docs/clip_in_one_file.py        trains on images of coloured squares, in seconds on a CPU

From top to bottom: attention, Transformer, the two towers, CLIP, loss, AdamW, a training step, data. Sections without
a paper refer to Radford et al. 2021. tests/test_docs.py checks that the library computes the same.
Shapes: B pairs, T tokens, N patches of side P, h w pixels, D d_model, H heads, K = D / H head size, E embed_dim.
"""

from math import inf, log, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention: softmax(Q K^T / sqrt(K)) V per head (Vaswani et al. 2017, equation 1, section 3.2.2)."""

    def __init__(self, d_model: int, n_heads: int, causal: bool):
        super().__init__()
        self.n_heads, self.causal = n_heads, causal
        self.in_proj = nn.Linear(d_model, 3 * d_model)  # query, key and value, in this order
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_proj(x)  # (B, T, 3 D)
        x = x.unflatten(-1, (3, self.n_heads, -1))  # (B, T, 3, H, K)
        query, key, value = x.permute(2, 0, 3, 1, 4)  # (B, H, T, K) each
        scores = (query / sqrt(query.shape[-1])) @ key.transpose(-2, -1)  # (B, H, T, T)
        if self.causal:  # a token attends to itself and the tokens before it
            may_attend = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()  # (T, T)
            scores = torch.where(may_attend, scores, -inf)
        x = scores.softmax(dim=-1) @ value  # (B, H, T, K)
        x = x.transpose(1, 2).flatten(2)  # (B, T, D)
        return self.out_proj(x)


class Block(nn.Module):
    """Attention and MLP with pre-norm residual connections (Radford et al. 2019, section 2.3)."""

    def __init__(self, d_model: int, n_heads: int, causal: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads, causal)
        self.norm2 = nn.LayerNorm(d_model)
        self.fc1 = nn.Linear(d_model, 4 * d_model)
        self.fc2 = nn.Linear(4 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        hidden = F.gelu(self.fc1(self.norm2(x)))  # (B, T, 4 D)
        return x + self.fc2(hidden)  # (B, T, D)


class Transformer(nn.Module):
    """n_layers Blocks and a final LayerNorm."""

    def __init__(self, d_model: int, n_heads: int, n_layers: int, causal: bool):
        super().__init__()
        blocks = [Block(d_model, n_heads, causal) for _ in range(n_layers)]
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(d_model)
        for block in blocks:  # the residual branches start small, so that x does not grow with n_layers
            nn.init.normal_(block.attention.in_proj.weight, std=d_model**-0.5)
            nn.init.normal_(block.attention.out_proj.weight, std=(2 * n_layers * d_model) ** -0.5)
            nn.init.normal_(block.fc1.weight, std=(2 * d_model) ** -0.5)
            nn.init.normal_(block.fc2.weight, std=(2 * n_layers * d_model) ** -0.5)
            for layer in (block.attention.in_proj, block.attention.out_proj, block.fc1, block.fc2):
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class VisionTransformer(nn.Module):
    """Image tower: patches are the tokens; the class token is the output (Dosovitskiy et al. 2021).

    features = Transformer(norm([class; patches] + positions)) at the class token    (equations 1 to 4; section 2.4)
    """

    def __init__(self, image_size: int, patch_size: int, d_model: int, n_heads: int, n_layers: int):
        super().__init__()
        n_patches = (image_size // patch_size) ** 2
        self.patch_embedding = nn.Conv2d(3, d_model, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.randn(d_model) * d_model**-0.5)
        self.positions = nn.Parameter(torch.randn(n_patches + 1, d_model) * 0.5)
        self.norm_input = nn.LayerNorm(d_model)
        self.transformer = Transformer(d_model, n_heads, n_layers, causal=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embedding(images)  # (B, D, h / P, w / P)
        x = x.flatten(2).transpose(1, 2)  # (B, N, D)
        class_token = self.class_token.expand(len(x), 1, -1)  # (B, 1, D)
        x = torch.cat([class_token, x], dim=1)  # (B, N + 1, D)
        x = self.norm_input(x + self.positions)
        return self.transformer(x)[:, 0]  # (B, D)


class TextTransformer(nn.Module):
    """Text tower: a causal Transformer, pooled at the first end-of-text token (section 2.4)."""

    def __init__(self, vocab_size: int, context_length: int, d_model: int, n_heads: int, n_layers: int):
        super().__init__()
        self.end_id = vocab_size - 1  # the vocabulary ends with the end-of-text token
        self.tokens = nn.Parameter(torch.randn(vocab_size, d_model) * 0.02)
        self.positions = nn.Parameter(torch.randn(context_length, d_model) * 0.01)
        self.transformer = Transformer(d_model, n_heads, n_layers, causal=True)

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.embedding(tokens, self.tokens)  # (B, T, D)
        x = self.transformer(x + self.positions[: tokens.shape[1]])
        end = (tokens == self.end_id).int().argmax(dim=1)  # (B)
        return x[torch.arange(len(x)), end]  # (B, D)


class CLIP(nn.Module):
    """Two towers, a linear projection of each to the joint space, and the scale of the cosines (figure 3)."""

    def __init__(self, image_tower, text_tower, d_image: int, d_text: int, embed_dim: int):
        super().__init__()
        self.image_tower, self.text_tower = image_tower, text_tower
        self.image_projection = nn.Linear(d_image, embed_dim, bias=False)
        self.text_projection = nn.Linear(d_text, embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(log(1 / 0.07)))  # a logarithm (section 2.5)
        nn.init.normal_(self.image_projection.weight, std=d_image**-0.5)
        nn.init.normal_(self.text_projection.weight, std=d_text**-0.5)

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        image_embeddings = self.image_projection(self.image_tower(images))  # (B, E)
        text_embeddings = self.text_projection(self.text_tower(tokens))  # (B, E)
        return F.normalize(image_embeddings, dim=-1), F.normalize(text_embeddings, dim=-1)


def clip_loss(image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy over the images and over the texts of a batch (figure 3). At chance it is ln B.

    l_ij = exp(s) <u_i, v_j>,    loss = mean_i [CE(l_i., i) + CE(l_.i, i)] / 2
    """
    logits = logit_scale.exp() * image_embeddings @ text_embeddings.T  # (B, B)
    pair = torch.arange(len(logits))  # (B)
    return (F.cross_entropy(logits, pair) + F.cross_entropy(logits.T, pair)) / 2  # ()


@torch.no_grad()
def adamw_step(model, moments, step, lr, weight_decay=0.2, beta1=0.9, beta2=0.98, eps=1e-8):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2), for w with gradient g at step t.

    m = beta1 m + (1 - beta1) g,    v = beta2 v + (1 - beta2) g^2,    w = w - lr weight_decay w
    w = w - lr [m / (1 - beta1^t)] / [sqrt(v / (1 - beta2^t)) + eps]
    """
    for name, w in model.named_parameters():
        m, v = moments.setdefault(name, (torch.zeros_like(w), torch.zeros_like(w)))
        m.lerp_(w.grad, 1 - beta1)
        v.mul_(beta2).addcmul_(w.grad, w.grad, value=1 - beta2)
        if w.dim() >= 2:  # no decay of gains, biases, the class token and logit_scale (section 2.5)
            w.mul_(1 - lr * weight_decay)
        w.addcdiv_(m, v.sqrt() / (1 - beta2**step) ** 0.5 + eps, value=-lr / (1 - beta1**step))
        w.grad = None


def train_step(model: CLIP, moments: dict, step: int, images: Tensor, tokens: Tensor, lr: float) -> Tensor:
    """Train one step on a batch of pairs -> the loss before the step."""
    image_embeddings, text_embeddings = model(images, tokens)
    loss = clip_loss(image_embeddings, text_embeddings, model.logit_scale)
    loss.backward()
    adamw_step(model, moments, step, lr)
    model.logit_scale.data.clamp_(0, log(100))  # logits are at most 100 times the cosines (section 2.5)
    return loss.detach()


COLORS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1)}
ROWS, COLUMNS = ["top", "middle", "bottom"], ["left", "centre", "right"]
WORDS = ["<start>", *COLORS, *ROWS, *COLUMNS, "<end>"]
SCENES = [(color, row, column) for color in COLORS for row in ROWS for column in COLUMNS]


def draw_pairs(scenes: list[tuple[str, str, str]]) -> tuple[Tensor, Tensor]:
    """Draw images of a square on noise, in one of nine places, and captions like "<start> red top left <end>"."""
    images = torch.rand(len(scenes), 3, 24, 24) / 2  # (B, 3, h, w)
    for image, (color, row, column) in zip(images, scenes, strict=True):
        y, x = 8 * ROWS.index(row), 8 * COLUMNS.index(column)
        image[:, y : y + 8, x : x + 8] = torch.tensor(COLORS[color])[:, None, None]
    captions = [("<start>", *scene, "<end>") for scene in scenes]
    return images, torch.tensor([[WORDS.index(word) for word in caption] for caption in captions])  # (B, 5)


if __name__ == "__main__":
    torch.manual_seed(0)
    vit, text = VisionTransformer(24, 8, 32, 4, 2), TextTransformer(len(WORDS), 5, 32, 4, 2)
    model, moments = CLIP(vit, text, d_image=32, d_text=32, embed_dim=32), {}
    for step in range(1, 161):
        batch = [SCENES[i] for i in torch.randperm(len(SCENES))[:32]]
        loss = train_step(model, moments, step, *draw_pairs(batch), lr=1e-3)
        if step % 20 == 0:
            print(f"step {step:3}  loss {loss:.3f}  chance ln 32 = {log(32):.3f}")
    images, texts = model(*draw_pairs(SCENES))
    right = (images @ texts.T).argmax(dim=1) == torch.arange(len(SCENES))
    print(f"new images, each with {len(SCENES)} texts to choose from: {right.float().mean():.0%} right")
