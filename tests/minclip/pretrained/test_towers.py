"""Single towers, without their owners' libraries: what is written is read again; what does not fit is named."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from minclip.clip import TOWERS
from minclip.data.tokenizer import WordPiece
from minclip.data.transforms import TransformConfig
from minclip.pretrained import load_image_tower, load_text_tower, save_image_tower, save_text_tower
from minclip.towers.resnet import ResNetConfig
from minclip.towers.text import BertTextConfig, GPTTextConfig
from minclip.towers.vit import VisionTransformerConfig

WORDS = WordPiece.train(["a dog on the beach", "the cat"] * 2, 60)
SIZES = {"d_model": 8, "n_heads": 2, "n_layers": 2}
VIT = {**SIZES, "patch_size": (8, 8), "image_size": (16, 24)}
TEXT = {**SIZES, "vocab_size": WORDS.vocab_size, "context_length": 9}
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


def drawn(config):
    """A tower with all of its numbers drawn, BatchNorm's and the patch bias included."""
    tower = TOWERS[type(config)](config).eval()
    for name, value in tower.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else 0.3 * torch.randn_like(value))
    return tower


def batch():
    mask = torch.tensor([9, 4])[:, None] > torch.arange(9)
    tokens = torch.randint(4, WORDS.vocab_size, (2, 9), generator=torch.Generator().manual_seed(3))
    tokens[:, 3] = WORDS.end_id
    return tokens, mask


@pytest.mark.parametrize("config", IMAGE_CONFIGS, ids=lambda config: type(config).__name__)
def test_image_towers_come_back(config, tmp_path):
    tower = drawn(config)
    save_image_tower(tower, TransformConfig(), tmp_path)
    # a state dict that does not name its network says no size of picture
    given = {"image_size": config.image_size} if isinstance(config, ResNetConfig) else {}
    again = load_image_tower(tmp_path, **given)
    assert not again.training
    images = torch.randn(2, 3, *config.image_size)
    torch.testing.assert_close(again(images), tower(images))
    torch.testing.assert_close(again.forward_tokens(images), tower.forward_tokens(images))
    assert again(images).shape == (2, again.width)


@pytest.mark.parametrize("config", TEXT_CONFIGS, ids=lambda config: type(config).__name__)
def test_text_towers_come_back(config, tmp_path):
    tower = drawn(config)
    save_text_tower(tower, WORDS, tmp_path)
    again = load_text_tower(tmp_path)
    assert torch.equal(again(*batch()), tower(*batch()))
    assert (
        again.config.pool == config.pool if hasattr(config, "pool") else again.config.end_id == config.end_id
    )
    assert WordPiece.load(tmp_path).digest == WORDS.digest


@given(st.sampled_from(["module.", "_orig_mod.", "bert.", "module.bert."]), st.booleans(), st.booleans())
def test_prefixes_heads_half_precision_and_old_names(tmp_path_factory, prefix, half, old):
    folder = tmp_path_factory.mktemp("bert")
    tower = drawn(TEXT_CONFIGS[1])
    save_text_tower(tower, WORDS, folder)
    tensors = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if old:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            )
        tensors[prefix + name] = value.half() if half else value
    if "bert" in prefix:
        outer = prefix.removesuffix("bert.")
        tensors[f"{outer}cls.predictions.bias"] = torch.zeros(3)
        tensors[f"{prefix}embeddings.position_ids"] = torch.arange(9)[None]
    save_file(tensors, folder / "model.safetensors")
    again = load_text_tower(folder)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    expected = drawn_half(tower) if half else tower
    assert torch.equal(again(*batch()), expected(*batch()))


def drawn_half(tower):
    """The tower with its numbers rounded to half precision."""
    tower.load_state_dict({name: value.half().float() for name, value in tower.state_dict().items()})
    return tower


def edit(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def resnet_folder(folder):
    save_image_tower(drawn(IMAGE_CONFIGS[1]), TransformConfig(), folder)
    return folder


def test_the_classifier_is_ignored_by_its_name_and_nothing_else_is(tmp_path):
    resnet_folder(tmp_path)
    edit(tmp_path, lambda x: x.update({"fc.weight": torch.zeros(3, 8), "fc.bias": torch.zeros(3)}))
    load_image_tower(tmp_path)
    edit(tmp_path, lambda x: x.update({"fc2.weight": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"1 not used: fc2.weight$"):
        load_image_tower(tmp_path)


def test_older_files_without_counters(tmp_path):
    resnet_folder(tmp_path)
    edit(tmp_path, lambda x: [x.pop(name) for name in list(x) if "num_batches" in name])
    assert load_image_tower(tmp_path).stem[0][1].num_batches_tracked == 0


def test_missing_tensors_are_named(tmp_path):
    resnet_folder(tmp_path)
    edit(tmp_path, lambda x: x.pop("layer2.0.downsample.1.running_var"))
    with pytest.raises(ValueError, match=r"model: 1 not filled: blocks.1.shortcut.1.running_var$"):
        load_image_tower(tmp_path)


def test_what_is_no_tower_is_named(tmp_path):
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError,
        match=r"holds no image tower of a known format \(torchvision's or timm's ResNet, .*its tensors are some.weight",
    ):
        load_image_tower(tmp_path)
    with pytest.raises(ValueError, match=r"holds no text tower of a known format \(BERT, DistilBERT, GPT-2"):
        load_text_tower(tmp_path)


def test_heads_and_activation_are_never_guessed(tmp_path):
    save_image_tower(drawn(IMAGE_CONFIGS[2]), TransformConfig(), tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="places, which is no square"):
        load_image_tower(tmp_path)
    save_image_tower(
        drawn(VisionTransformerConfig(**(VIT | {"image_size": (16, 16)}))), TransformConfig(), tmp_path
    )
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"does not say n_heads, activation: put its config.json beside it"):
        load_image_tower(tmp_path)
    assert load_image_tower(tmp_path, n_heads=2, activation="gelu", trained_blocks=0).frozen


def test_a_config_of_another_model_is_refused(tmp_path):
    save_image_tower(drawn(IMAGE_CONFIGS[2]), TransformConfig(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="has model_type='bert': only 'vit' can be loaded"):
        load_image_tower(tmp_path)


@pytest.mark.parametrize(
    "config, words",
    [
        (VisionTransformerConfig(**VIT, pool="mean"), "its norm_eps is 1e-05, not timm's 1e-06"),
        (VisionTransformerConfig(**VIT, pool="last", norm_eps=1e-6), "its ViT pools the last patch"),
        (VisionTransformerConfig(**VIT, norm_first=False), "LayerNorms after the sublayers"),
        (ResNetConfig(stem="small"), "stem='small' is this project's own"),
    ],
)
def test_towers_that_no_one_else_has_are_not_written(config, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        save_image_tower(TOWERS[type(config)](config), TransformConfig(), tmp_path)


@pytest.mark.parametrize(
    "config, words",
    [
        (BertTextConfig(**TEXT, pool="pooler"), "it has a pooler"),
        (BertTextConfig(**TEXT, norm_eps=1e-5), "its norm_eps is 1e-05, not DistilBERT's 1e-12"),
        (BertTextConfig(**TEXT, norm_first=True), "LayerNorms before the sublayers"),
        (GPTTextConfig(**TEXT, norm_first=False), "LayerNorms after the sublayers"),
    ],
)
def test_texts_that_no_one_else_has_are_not_written(config, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        save_text_tower(TOWERS[type(config)](config), WORDS, tmp_path)


ODD = st.sampled_from([None, True, -1, 0, 2.0, 10**9, "", "x", [], ["x"], [1, 2], {}, {"x": 1}])


def spoil(path, data) -> None:
    """Put something odd in the place of one value of a JSON file, at any depth."""
    place = whole = json.loads(path.read_text())
    key = data.draw(st.sampled_from(sorted(place)))
    while isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place)))
    place[key] = data.draw(ODD)
    path.write_text(json.dumps(whole))


def loads_or_says_why(load, folder) -> None:
    """An odd config is one that can be loaded all the same, or one line that names a file of the folder."""
    try:
        load(folder)
    except ValueError as error:
        assert str(folder) in str(error), error  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "config", [IMAGE_CONFIGS[2], *TEXT_CONFIGS], ids=lambda config: type(config).__name__
)
@given(data=st.data())
def test_odd_configs_are_one_line(config, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    if isinstance(config, VisionTransformerConfig):
        save_image_tower(TOWERS[type(config)](config), TransformConfig(), folder)
    else:
        save_text_tower(TOWERS[type(config)](config), WORDS, folder)
    spoil(folder / "config.json", data)
    loads_or_says_why(
        load_image_tower if isinstance(config, VisionTransformerConfig) else load_text_tower, folder
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model_args": []}, r"the option model_args=\[\] must be dict, not list"),
        ({"model_args": {"num_heads": 2.0}}, "n_heads=2.0 must be int, not float"),
        ({"model_args": {"num_heads": True}}, "n_heads=True must be int, not bool"),
        ({"pretrained_cfg": "x"}, "the option pretrained_cfg='x' must be dict, not str"),
        ({"pretrained_cfg": {"input_size": 16}}, "the option input_size=16 must be 3 values"),
        ({"pretrained_cfg": {"input_size": [3, "x", 8]}}, "the option input_size='x' must be int, not str"),
        ({"architecture": ["vit_tiny"]}, r"the option architecture=\['vit_tiny'\] must be str, not list"),
    ],
)
def test_timms_options_are_of_their_kind(options, message, tmp_path):
    config = VisionTransformerConfig(**VIT | {"image_size": (16, 16)}, pool="mean", norm_eps=1e-6)
    save_image_tower(drawn(config), TransformConfig(), tmp_path)
    known = {"architecture": "vit_x_patch8", "model_args": {"num_heads": 2}}
    (tmp_path / "config.json").write_text(json.dumps(known))
    load_image_tower(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(known | options))
    with pytest.raises(ValueError, match=f"^{tmp_path}.*: {message}"):
        load_image_tower(tmp_path)


@pytest.mark.parametrize(
    "config", [IMAGE_CONFIGS[2], *TEXT_CONFIGS], ids=lambda config: type(config).__name__
)
def test_hostile_sizes_are_refused_before_anything_is_built(config, tmp_path):
    """Each number of the config at a time: a billion Blocks, a picture of 10^60 pixels."""
    image = isinstance(config, VisionTransformerConfig)
    if image:
        save_image_tower(drawn(config), TransformConfig(), tmp_path)
    else:
        save_text_tower(drawn(config), WORDS, tmp_path)
    path = tmp_path / "config.json"
    options = json.loads(path.read_text())
    numbers = [
        name for name, value in options.items() if type(value) is int and not name.endswith("token_id")
    ]
    assert len(numbers) >= 5
    for name in numbers:
        for hostile in (10**9, 10**30):
            path.write_text(json.dumps(options | {name: hostile}))
            with pytest.raises(ValueError, match=f"^{tmp_path}.*{hostile}"):
                (load_image_tower if image else load_text_tower)(tmp_path)
    if image:
        path.write_text(json.dumps(options | {"image_size": [10**30, 10**30]}))
        with pytest.raises(ValueError, match="its positions are for 6 patches"):
            load_image_tower(tmp_path)


@pytest.mark.parametrize("given", [{"n_heads": 4}, {"activation": "relu"}])
def test_what_the_file_says_is_not_contradicted(given, tmp_path):
    """Other heads or another activation on the same weights are another function, and no error would show it."""
    config = VisionTransformerConfig(**VIT)
    save_image_tower(TOWERS[VisionTransformerConfig](config), TransformConfig(), tmp_path)
    assert load_image_tower(tmp_path, n_heads=2, activation="gelu").config.n_heads == 2
    name, value = next(iter(given.items()))
    with pytest.raises(ValueError, match=f"says {name}=.*, not {value!r}: the two must agree"):
        load_image_tower(tmp_path, **given)
