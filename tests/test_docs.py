"""The methods in one file each compute what the library computes, from the same weights and batches.

With attention written out in the library too (record_attention) and torch's plain AdamW, both add in the same order
and agree bit for bit, in float32. The fused kernels that a run of the library uses, of attention and of AdamW, add in
another order: loss and weights then agree to 1e-6, in float64. (In float32 some weights would not: the gradient of a
key's bias is zero but for rounding, and AdamW divides it by its own size.)
"""

import ast
import importlib.util
import re
import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from minclip.clip import CLIP, CLIPConfig
from minclip.losses import clip_loss
from minclip.towers.text import GPTTextConfig
from minclip.towers.vit import VisionTransformerConfig
from minlm.generate import SamplingConfig, generate
from minlm.lm import LMConfig, TransformerLM
from minlm.losses import token_loss
from minlm.training.optim import parameter_groups
from minlm.training.state import TrainConfig, make_optimizers
from minlm.transformer import record_attention

DOCS = Path(__file__).resolve().parents[1] / "docs"
LENGTHS = {"clip_in_one_file": 200, "gpt_in_one_file": 150}
LR = 1e-2

few = settings(max_examples=8)
seeds = st.integers(0, 2**31 - 1)
heads = st.sampled_from([(4, 1), (6, 2), (12, 3)])  # (d_model, n_heads)
layers = st.integers(1, 2)


def load(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


one_file_clip, one_file_gpt = (load(name) for name in LENGTHS)


def renamed(model, names):
    """The library's weights under the names of the one file."""
    weights = {}
    for key, value in model.state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)
        weights[key] = value.clone()
    return weights


CLIP_NAMES = {"embedding.tokens.weight": "tokens", "embedding.positions.weight": "positions", "mlp.": ""}
GPT_NAMES = {**CLIP_NAMES, "transformer.": ""}


def randomise(model, generator):
    """Gains and biases too: ones and zeros would hide one that is swapped or missing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


@st.composite
def clip_pairs(draw, **fields):
    """(library's CLIP, the one file's with the same weights, three batches)."""
    (d_image, n_image), (d_text, n_text) = draw(heads), draw(heads)
    patch, side, vocab_size, length = (
        draw(st.integers(*bounds)) for bounds in ((1, 3), (1, 3), (3, 9), (3, 6))
    )
    config = CLIPConfig(
        image=VisionTransformerConfig(
            d_model=d_image,
            n_heads=n_image,
            n_layers=draw(layers),
            patch_size=(patch, patch),
            image_size=(patch * side, patch * side),
            norm_input=True,
        ),
        text=GPTTextConfig(
            d_model=d_text,
            n_heads=n_text,
            n_layers=draw(layers),
            vocab_size=vocab_size,
            context_length=length,
            end_id=vocab_size - 1,
        ),
        embed_dim=draw(st.integers(1, 8)),
    )
    generator = torch.Generator().manual_seed(draw(seeds))
    library = randomise(CLIP(config), generator)
    library.logit_scale.data.fill_(
        draw(st.sampled_from([-1.0, 2.6, 6.0]))
    )  # below, within and above its bounds
    image, text = config.image, config.text
    ours = one_file_clip.CLIP(
        one_file_clip.VisionTransformer(patch * side, patch, d_image, n_image, image.n_layers),
        one_file_clip.TextTransformer(vocab_size, length, d_text, n_text, text.n_layers),
        d_image,
        d_text,
        config.embed_dim,
    )
    ours.load_state_dict(renamed(library, CLIP_NAMES))
    n_pairs = draw(st.sampled_from([1, 2, 4, 8]))
    batches = []
    for _ in range(3):
        images = torch.randn(n_pairs, 3, patch * side, patch * side, generator=generator)
        tokens = torch.randint(vocab_size, (n_pairs, draw(st.integers(1, length))), generator=generator)
        tokens[:, draw(st.integers(0, tokens.shape[1] - 1))] = text.end_id
        batches.append((images, tokens))
    return library, ours, batches


@st.composite
def gpt_pairs(draw):
    """(library's TransformerLM, the one file's with the same weights, three batches)."""
    d_model, n_heads = draw(heads)
    config = LMConfig(
        d_model=d_model,
        n_heads=n_heads,
        n_layers=draw(layers),
        vocab_size=draw(st.integers(2, 12)),
        context_length=draw(st.integers(1, 10)),
    )
    generator = torch.Generator().manual_seed(draw(seeds))
    library = randomise(TransformerLM(config), generator).eval()
    ours = one_file_gpt.GPT(config.vocab_size, config.context_length, d_model, n_heads, config.n_layers)
    ours.load_state_dict(renamed(library, GPT_NAMES))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, config.context_length))
    batches = [torch.randint(config.vocab_size, (2, *shape), generator=generator) for _ in range(3)]
    return library, ours, batches


def train(model, optimizers, batches, mean_loss):
    """The library's steps -> the loss before each."""
    losses = []
    for batch in batches:
        loss = mean_loss(model, *batch)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if isinstance(model, CLIP):
            model.clamp_logit_scale()
        losses.append(loss.detach())
    return losses


def mean_clip_loss(model, images, tokens):
    pair = model.encode_image(images), model.encode_text(tokens, torch.ones_like(tokens, dtype=torch.bool))
    total, count = clip_loss(*pair, model.logit_scale)
    return total / count


def mean_token_loss(model, tokens, targets):
    total, count = token_loss(model(tokens), targets)
    return total / count


def mean_token_loss_in_float64(model, tokens, targets):
    """token_loss rounds the logits to float32."""
    return cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def step_by_step(train_step, model, batches):
    moments = {}
    return [train_step(model, moments, step, *batch, LR) for step, batch in enumerate(batches, start=1)]


def unfused_adamw(model, weight_decay):
    groups = parameter_groups(model, weight_decay)
    return [torch.optim.AdamW(groups, LR, betas=(0.9, 0.98), foreach=False)]


def fused_adamw(model, weight_decay):
    """The optimizer of the library's runs."""
    return make_optimizers(model, TrainConfig(steps=3, lr=LR, weight_decay=weight_decay, muon_lr=0.0))


def assert_same(ours, library, our_losses, losses, names, exact):
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(our_losses, losses, **tolerance)
    torch.testing.assert_close(dict(ours.state_dict()), renamed(library, names), **tolerance)


@few
@given(clip_pairs())
def test_clip_in_one_file_is_the_librarys_bit_for_bit(drawn):
    library, ours, batches = drawn
    with record_attention(library):
        losses = train(library, unfused_adamw(library, 0.2), batches, mean_clip_loss)
    our_losses = step_by_step(one_file_clip.train_step, ours, batches)
    assert_same(ours, library, our_losses, losses, CLIP_NAMES, exact=True)


@few
@given(clip_pairs())
def test_clip_in_one_file_is_the_librarys_with_fused_kernels(drawn):
    library, ours, batches = drawn
    library, ours = library.double(), ours.double()
    batches = [(images.double(), tokens) for images, tokens in batches]
    losses = train(library, fused_adamw(library, 0.2), batches, mean_clip_loss)
    our_losses = step_by_step(one_file_clip.train_step, ours, batches)
    assert_same(ours, library, our_losses, losses, CLIP_NAMES, exact=False)


@few
@given(gpt_pairs())
def test_gpt_in_one_file_is_the_librarys_bit_for_bit(drawn):
    library, ours, batches = drawn
    with record_attention(library):
        losses = train(library, unfused_adamw(library, 0.1), batches, mean_token_loss)
    our_losses = step_by_step(one_file_gpt.train_step, ours, batches)
    assert_same(ours, library, our_losses, losses, GPT_NAMES, exact=True)


@few
@given(gpt_pairs())
def test_gpt_in_one_file_is_the_librarys_with_fused_kernels(drawn):
    library, ours, batches = drawn
    library, ours = library.double(), ours.double()
    losses = train(library, fused_adamw(library, 0.1), batches, mean_token_loss_in_float64)
    our_losses = step_by_step(one_file_gpt.train_step, ours, batches)
    assert_same(ours, library, our_losses, losses, GPT_NAMES, exact=False)


@given(gpt_pairs(), st.sampled_from([0, 0.2, 1.0, 5.0]), st.integers(1, 12), seeds)
def test_gpt_in_one_file_draws_the_librarys_tokens(drawn, temperature, top_k, seed):
    """As long as both see the same window: the library's moves on by halves, to keep its cache."""
    library, ours, batches = drawn
    length = ours.context_length
    short = batches[0][0, 0].tolist()
    long = (short * 2 * length)[
        : length + (length + 1) // 2
    ]  # the library, too, sees its last `length` tokens
    for prompt, n_new in ((short, length - len(short) + 1), (long, 1)):
        config = SamplingConfig(max_new_tokens=n_new, temperature=temperature, top_k=top_k, seed=seed)
        with record_attention(library):
            (expected,) = generate(library, [prompt], config)
        generator = torch.Generator().manual_seed(seed)
        assert one_file_gpt.sample(ours, prompt, n_new, temperature, top_k, generator) == expected


@pytest.mark.parametrize("name", LENGTHS)
def test_initial_weights_have_the_librarys_deviations(name):
    if name == "clip_in_one_file":
        stack = {"d_model": 64, "n_heads": 4, "n_layers": 2}
        image = VisionTransformerConfig(**stack, image_size=(32, 32), patch_size=(8, 8), norm_input=True)
        library = CLIP(CLIPConfig(image=image, text=GPTTextConfig(**stack, vocab_size=50), embed_dim=32))
        image = one_file_clip.VisionTransformer(32, 8, *stack.values())
        text = one_file_clip.TextTransformer(50, 32, *stack.values())
        ours, names = one_file_clip.CLIP(image, text, 64, 64, 32), CLIP_NAMES
    else:
        config = LMConfig(d_model=64, n_heads=4, n_layers=2, vocab_size=50, context_length=32)
        library, names = TransformerLM(config), GPT_NAMES
        ours = one_file_gpt.GPT(50, 32, 64, 4, 2)
    for key, theirs in renamed(library, names).items():
        own, spread = ours.state_dict()[key], theirs.std(correction=0)
        assert own.std(correction=0) == pytest.approx(spread, rel=0.25), key
        assert abs(own.mean() - theirs.mean()) <= spread, key


@pytest.mark.parametrize("name", LENGTHS)
def test_one_file_is_short_and_needs_torch_alone(name):
    source = (DOCS / f"{name}.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= LENGTHS[name]
    for node in ast.walk(ast.parse(source)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert {module.split(".")[0] for module in modules} <= {"torch", "math"}


@pytest.mark.parametrize("name", LENGTHS)
def test_one_file_learns_when_it_is_run(name, capsys):
    runpy.run_path(str(DOCS / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    (chance,) = {float(value) for value in re.findall(r"chance ln \d+ = (\S+)", printed)}
    losses = [float(value) for value in re.findall(r"loss (\S+)", printed)]
    assert len(losses) >= 8
    assert losses[-1] < chance / 10
    if name == "clip_in_one_file":
        assert int(re.search(r"(\d+)% right", printed)[1]) >= 90
    else:
        assert (
            "the t" in printed.splitlines()[len(losses) + 1]
        )  # after the prompt's line, a line of the verse
