"""A GPT in one file: each token is predicted from the tokens before it (Radford et al. 2019, GPT-2, section 2.3).

    python docs/gpt_in_one_file.py         learns a verse letter by letter, in seconds on a CPU

From top to bottom: attention, Block, the language model, AdamW, a training step, sampling, the verse.
tests/test_docs.py: the library computes the same from the same weights.
Shapes: B texts, T tokens, V vocabulary, D d_model, H heads, K = D / H head size.
"""

from math import inf, log, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(K)) V in each of H heads (Vaswani et al. 2017, equation 1 and section 3.2.2)."""

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.in_proj = nn.Linear(d_model, 3 * d_model)  # the matrices of query, key and value, in this order
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_proj(x)  # (B, T, 3 D)
        x = x.unflatten(-1, (3, self.n_heads, -1))  # (B, T, 3, H, K)
        query, key, value = x.permute(2, 0, 3, 1, 4)  # (B, H, T, K) each
        scores = (query / sqrt(query.shape[-1])) @ key.transpose(-2, -1)  # (B, H, T, T)
        may_attend = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()  # (T, T)
        scores = torch.where(may_attend, scores, -inf)  # to the token itself and to those before it
        x = scores.softmax(dim=-1) @ value  # (B, H, T, K)
        x = x.transpose(1, 2).flatten(2)  # (B, T, D)
        return self.out_proj(x)


class Block(nn.Module):
    """Attention, then an MLP; each is added to what it reads through a LayerNorm (Radford et al. 2019, section 2.3)."""

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.fc1 = nn.Linear(d_model, 4 * d_model)
        self.fc2 = nn.Linear(4 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        hidden = F.gelu(self.fc1(self.norm2(x)), approximate="tanh")  # (B, T, 4 D)
        return x + self.fc2(hidden)  # (B, T, D)


class GPT(nn.Module):
    """Embeddings, n_layers Blocks, a last LayerNorm, and the embeddings again as the head (Press & Wolf 2017).

    x = tokens + positions,    x = Block(x) n_layers times,    logits = norm(x) tokens^T
    """

    def __init__(self, vocab_size: int, context_length: int, d_model: int, n_heads: int, n_layers: int):
        super().__init__()
        self.context_length = context_length
        self.tokens = nn.Parameter(torch.randn(vocab_size, d_model) * 0.02)
        self.positions = nn.Parameter(torch.randn(context_length, d_model) * 0.01)
        self.blocks = nn.ModuleList(Block(d_model, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)
        for block in self.blocks:  # what is added to x starts small, so that x does not grow with n_layers
            nn.init.normal_(block.attention.in_proj.weight, std=d_model**-0.5)
            nn.init.normal_(block.attention.out_proj.weight, std=(2 * n_layers * d_model) ** -0.5)
            nn.init.normal_(block.fc1.weight, std=(2 * d_model) ** -0.5)
            nn.init.normal_(block.fc2.weight, std=(2 * n_layers * d_model) ** -0.5)
            for layer in (block.attention.in_proj, block.attention.out_proj, block.fc1, block.fc2):
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.embedding(tokens, self.tokens) + self.positions[: tokens.shape[1]]  # (B, T, D)
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.T  # (B, T, V)


@torch.no_grad()
def adamw_step(model, moments, step, lr, weight_decay=0.1, beta1=0.9, beta2=0.98, eps=1e-8):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2), for w with gradient g at step t.

    m = beta1 m + (1 - beta1) g,    v = beta2 v + (1 - beta2) g^2,    w = w - lr weight_decay w
    w = w - lr [m / (1 - beta1^t)] / [sqrt(v / (1 - beta2^t)) + eps]
    """
    for name, w in model.named_parameters():
        m, v = moments.setdefault(name, (torch.zeros_like(w), torch.zeros_like(w)))
        m.lerp_(w.grad, 1 - beta1)
        v.mul_(beta2).addcmul_(w.grad, w.grad, value=1 - beta2)
        if w.dim() >= 2:  # gains and biases do not decay
            w.mul_(1 - lr * weight_decay)
        w.addcdiv_(m, v.sqrt() / (1 - beta2**step) ** 0.5 + eps, value=-lr / (1 - beta1**step))
        w.grad = None


def train_step(model: GPT, moments: dict, step: int, tokens: Tensor, targets: Tensor, lr: float) -> Tensor:
    """One step on a batch of texts -> the loss before it: the mean of -ln p(target) over all tokens; chance is ln V.

    tokens (B, T); targets (B, T): the token that follows each.
    """
    logits = model(tokens)  # (B, T, V)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # ()
    loss.backward()
    adamw_step(model, moments, step, lr)
    return loss.detach()


@torch.no_grad()
def sample(model: GPT, prompt: list[int], n_new: int, temperature=1.0, top_k=10, generator=None) -> list[int]:
    """Draw n_new tokens, each from the top_k likeliest (Fan et al. 2018, section 5.1), and read it with the rest.

    p = softmax(logits / temperature); temperature 0 is greedy. The model sees the last context_length tokens.
    """
    if temperature == 0:
        temperature, top_k = 1.0, 1
    tokens = list(prompt)
    for _ in range(n_new):
        window = torch.tensor([tokens[-model.context_length :]])  # (1, T)
        logits = model(window)[0, -1].double()  # (V)
        largest, ids = logits.topk(min(top_k, len(logits)))  # (top_k) each
        logits = torch.full_like(logits, -inf).scatter(0, ids, largest)  # (V)
        probabilities = (logits / temperature).softmax(dim=-1)
        tokens.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    return tokens[len(prompt) :]


VERSE = """the sun goes up, the moon goes down,
the tide comes in, the tide goes out;
a bell rings twice across the town,
and twice the town hears children shout.
"""

if __name__ == "__main__":
    torch.manual_seed(0)
    letters = sorted(set(VERSE))
    text = torch.tensor([letters.index(letter) for letter in VERSE])
    model, moments = GPT(len(letters), context_length=32, d_model=32, n_heads=4, n_layers=2), {}
    for step in range(1, 201):
        starts = torch.randint(len(text), (16, 1))  # (B, 1)
        windows = text[(starts + torch.arange(33)) % len(text)]  # (B, T + 1)
        loss = train_step(model, moments, step, windows[:, :-1], windows[:, 1:], lr=5e-3)
        if step % 20 == 0:
            print(f"step {step:3}  loss {loss:.3f}  chance ln {len(letters)} = {log(len(letters)):.3f}")
    prompt = [letters.index(letter) for letter in "the moon"]
    written = sample(model, prompt, 145, temperature=0.5, top_k=5)
    print("".join(letters[token] for token in prompt + written))
