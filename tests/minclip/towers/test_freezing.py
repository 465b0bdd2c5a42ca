"""Frozen parts keep their weights, statistics and outputs; the others are trained, at the tower's own rate."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minclip.clip import CLIP, CLIPConfig
from minlm.training.optim import parameter_groups
from minlm.training.state import TrainConfig, TrainingState, make_optimizers
from tests.drawing import FLOAT32, IMAGES, TEXTS, backward, batch_of

seeds = st.integers(0, 10**6)
N_BLOCKS = 3  # of every tower in IMAGES and TEXTS
counts = st.integers(-1, N_BLOCKS)
configs = st.builds(
    lambda image, text, trained_images, trained_texts, **fields: CLIPConfig(
        image=replace(image, trained_blocks=trained_images),
        text=replace(text, trained_blocks=trained_texts),
        embed_dim=6,
        **fields,
    ),
    st.sampled_from(IMAGES),
    st.sampled_from(TEXTS),
    counts,
    counts,
    loss=st.sampled_from(["infonce", "sigmoid", "soft_targets"]),
    projection=st.sampled_from(["linear", "residual", "ndlinear"]),
)


def trained_names(tower: nn.Module, count: int) -> set[str]:
    """Names of the last `count` Blocks and of the layers after them."""
    names = {name for name, _ in tower.named_parameters()}
    if count < 1:
        return names if count == -1 else set()
    kept = {f"blocks.{N_BLOCKS - 1 - i}." for i in range(count)}
    after = ("transformer.norm.", "pooler.", "attention_pooling.")
    return {name for name in names if name.startswith(after) or any(block in name for block in kept)}


def trained_in(model: CLIP) -> set[str]:
    towers = {"image_tower": model.image_tower, "text_tower": model.text_tower}
    inside = {
        f"{side}.{name}"
        for side, tower in towers.items()
        for name in trained_names(tower, tower.config.trained_blocks)
    }
    return inside | {name for name, _ in model.named_parameters() if "tower" not in name}


@given(configs, seeds)
def test_training_changes_the_trained_parts_only(config, seed):
    """Weights and BatchNorm statistics of the frozen parts stay bit for bit, with an average and in parts too."""
    torch.manual_seed(seed)
    model, batch = CLIP(config), batch_of(config, 8, seed)
    batch["images"] = batch["images"].float()
    batch["groups"] = torch.arange(8)
    trained = trained_in(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    settings = TrainConfig(steps=3, lr=0.01, muon_lr=0.01, weight_decay=0.5, ema_decay=0.5, micro_batches=2)
    state = TrainingState(model, settings, FLOAT32.scaler)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(3):
        model.zero_grad(set_to_none=True)
        model.train()
        backward(model, batch, 2)
        state.optimize(1.0)
        state.average.update(model)
    after, average = model.state_dict(), state.average.average
    statistics = {name.rpartition(".")[0] for name in after if name.endswith("running_mean")}
    for name, value in after.items():
        module = name.rpartition(".")[0]
        if module in statistics and not name.endswith(("weight", "bias")):
            moves = f"{module}.weight" in trained
        else:
            moves = name in trained
        if not moves:
            assert torch.equal(value, before[name]), name
            assert torch.equal(average[name], before[name]), name
        elif not name.endswith("token_types.weight"):  # those may have no gradient at all
            assert not torch.equal(value, before[name]), name


@given(configs, seeds)
def test_a_frozen_tower_computes_the_same_in_training_and_evaluation(config, seed):
    """No dropout, no patch dropout, no batch statistics; also if only the tower's head is trained."""
    model, batch = CLIP(config), batch_of(config, 4, seed)
    batch["images"] = batch["images"].float()
    inputs = {"image": (batch["images"],), "text": (batch["tokens"], batch["token_mask"])}
    for side, given_inputs in inputs.items():
        tower = getattr(model, f"{side}_tower")
        assert tower.frozen == (tower.config.trained_blocks == 0)
        if not tower.frozen:
            continue
        as_made, modes = tower(*given_inputs), (model.eval, model.train)
        for set_mode in modes:
            set_mode()
            assert torch.equal(tower(*given_inputs), as_made)
            assert not any(module.training for module in tower.modules())
        assert model.image_projection.training
        assert not as_made.requires_grad


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("count", range(-1, N_BLOCKS + 1))
def test_the_parts_in_training_mode_are_the_trained_ones(image, count):
    tower = CLIP(CLIPConfig(image=replace(image, trained_blocks=count), text=TEXTS[0])).train().image_tower
    trained = trained_names(tower, count)
    for name, module in tower.named_modules():
        own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)}
        if name and own:
            assert module.training == (own <= trained), name
    assert tower.training == (count == -1)


@given(configs, st.sampled_from([0.1, 0.5]), st.sampled_from([1.0, 0.25]), st.sampled_from([0.0, 0.02]))
def test_each_tower_learns_at_its_own_rate(config, image_factor, text_factor, muon_lr):
    config = replace(
        config,
        image=replace(config.image, lr_factor=image_factor),
        text=replace(config.text, lr_factor=text_factor),
    )
    model = CLIP(config)
    names = {id(p): name for name, p in model.named_parameters()}
    optimizers = make_optimizers(model, TrainConfig(steps=1, lr=0.1, muon_lr=muon_lr))
    seen = []
    for optimizer in optimizers:
        peak = 0.1 if isinstance(optimizer, torch.optim.AdamW) else muon_lr
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                factor = {"image_tower": image_factor, "text_tower": text_factor}.get(name.split(".")[0], 1.0)
                assert group["peak_lr"] == pytest.approx(peak * factor), name
                assert group["weight_decay"] == (0.1 if parameter.dim() >= 2 else 0), name
                seen.append(name)
    assert sorted(seen) == sorted(trained_in(model))


def test_without_factors_there_are_two_groups():
    """So that optimizers saved before there were factors can be restored."""
    assert len(parameter_groups(CLIP(CLIPConfig(image=IMAGES[0], text=TEXTS[0])), 0.1)) == 2


@pytest.mark.parametrize("config", [*IMAGES, *TEXTS], ids=lambda config: type(config).__name__)
@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"trained_blocks": -2}, r"trained_blocks=-2 must be at least -1"),
        ({"lr_factor": 0.0}, "lr_factor=0.0 must be above 0"),
        ({"lr_factor": float("inf")}, "lr_factor=inf must be above 0"),
        ({"lr_factor": float("nan")}, "lr_factor=nan must be above 0"),
        ({"trained_blocks": 4}, "trained_blocks=4, but this tower has 3; -1 trains all of it"),
    ],
)
def test_impossible_values_are_refused(config, wrong, message):
    side = "image" if config in IMAGES else "text"
    with pytest.raises(ValueError, match=message):
        CLIP(CLIPConfig(**{side: replace(config, **wrong)}))
