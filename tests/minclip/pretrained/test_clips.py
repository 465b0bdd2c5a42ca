"""Whole CLIPs of others, without their libraries: their files are made here, by hand and by export."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import minclip.data.clip_bpe
from minclip.clip import CLIP, CLIPConfig
from minclip.data.clip_bpe import ClipBPE
from minclip.data.tokenizer import WordPiece
from minclip.data.transforms import OPENAI_MEAN, ImageTransform, TransformConfig
from minclip.pretrained import (
    export,
    is_published,
    load_clip,
    load_clip_model,
    load_image_tower,
    load_text_tower,
)
from minclip.towers.modified_resnet import ModifiedResNetConfig
from minclip.towers.text import GPTTextConfig
from minclip.towers.vit import VisionTransformerConfig
from tests.minclip.pretrained.test_towers import drawn_half, loads_or_says_why, spoil

# [UNK] and the like come first, so that the end of text is no last id; see test_pretrained_export for others.
WORDS = WordPiece.train(["a dog on the beach", "the cat"] * 2, 60)
VIT = VisionTransformerConfig(
    d_model=64,
    n_heads=1,
    n_layers=2,
    image_size=(16, 16),
    patch_size=(8, 8),
    norm_input=True,
    activation="quick_gelu",
)
RESNET = ModifiedResNetConfig(d_model=16, n_heads=8, depths=(1, 2, 1, 1), image_size=(64, 64))


def text_config(tokenizer=WORDS, **options) -> GPTTextConfig:
    return GPTTextConfig(
        d_model=64,
        n_heads=1,
        n_layers=2,
        context_length=9,
        activation="quick_gelu",
        vocab_size=tokenizer.vocab_size,
        vocab_digest=tokenizer.digest,
        **{"end_id": tokenizer.end_id} | options,
    )


def drawn(image=VIT, text=None, **options) -> CLIP:
    """A CLIP with all of its numbers drawn."""
    model = CLIP(CLIPConfig(image=image, text=text or text_config(), embed_dim=6, **options)).eval()
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.dim():
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else 0.1 * torch.randn_like(value))
    return model


def batch(model, end_id=WORDS.end_id):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(4, WORDS.vocab_size - 1, (3, 9), generator=generator)
    tokens[:, 5] = end_id
    images = torch.randn(3, 3, *model.config.image.image_size, generator=generator)
    return images, tokens, torch.ones_like(tokens, dtype=torch.bool)


def transform_of(model, **options) -> ImageTransform:
    return ImageTransform(TransformConfig(**options), model.config.image.image_size, train=False)


def openai_file(folder, image=VIT, tokenizer=WORDS):
    """(model, its state dict in OpenAI's layout, markers included)."""
    model = drawn(image, text_config(tokenizer, end_id=tokenizer.vocab_size - 1))
    export(model, tokenizer, transform_of(model), folder, "openai")
    return model, torch.load(folder / "model.pt", weights_only=True)


def archive(tensors, path):
    """A TorchScript archive whose state dict is `tensors`."""

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


@pytest.mark.parametrize("image", [VIT, RESNET], ids=["ViT", "ResNet"])
@pytest.mark.parametrize("half", [False, True])
def test_openais_archive_is_read_as_data(image, half, tmp_path):
    model, tensors = openai_file(tmp_path, image)
    if half:
        tensors = {name: x.half() if x.is_floating_point() else x for name, x in tensors.items()}
        drawn_half(model)
    archive(tensors, tmp_path / "any.pt")
    again = load_clip_model(tmp_path / "any.pt")
    assert again.config.text.n_heads == 1
    assert again.config.text.end_id == WORDS.vocab_size - 1
    batch_of = batch(model, WORDS.vocab_size - 1)
    torch.testing.assert_close(again(*batch_of), model(*batch_of))
    images, tokens, mask = batch_of
    torch.testing.assert_close(load_image_tower(tmp_path / "any.pt")(images), model.image_tower(images))
    torch.testing.assert_close(
        load_text_tower(tmp_path / "any.pt")(tokens, mask), model.text_tower(tokens, mask)
    )


def test_a_bare_state_dict_is_no_ones_for_certain(tmp_path):
    """Without OpenAI's numbers or open_clip's config, heads and activation must be given."""
    model, tensors = openai_file(tmp_path)
    bare = {
        f"module.{name}": tensors[name] for name in tensors if "." in name or "_p" in name or "logit" in name
    }
    bare["module.positional_embedding"] = tensors["positional_embedding"]
    torch.save({"state_dict": bare}, tmp_path / "bare.pt")
    with pytest.raises(
        ValueError, match=r"n_heads=1, activation='quick_gelu'; .*image_heads=... and text_heads="
    ):
        load_clip_model(tmp_path / "bare.pt")
    given = {"activation": "quick_gelu", "image_heads": 1, "text_heads": 1}
    again = load_clip_model(tmp_path / "bare.pt", **given)
    end_id = again.config.text.end_id
    torch.testing.assert_close(again(*batch(model, end_id)), model(*batch(model, end_id)))
    with pytest.raises(ValueError, match=r"\['heads'\] are no options of a published CLIP"):
        load_clip_model(tmp_path / "bare.pt", heads=3)


def test_quick_gelu_is_a_stored_fact(tmp_path):
    """The same tensors with another config are another function, in both formats that say it."""
    for activation, name in (("gelu", "open_clip"), ("quick_gelu", "hf-clip"), ("gelu", "hf-clip")):
        folder = tmp_path / f"{name}-{activation}"
        model = drawn(replace(VIT, activation=activation), replace(text_config(), activation=activation))
        export(model, WORDS, transform_of(model), folder, name)
        again = load_clip_model(folder)
        assert again.config.text.activation == again.config.image.activation == activation


def test_another_picture_size_only_when_asked(tmp_path):
    openai_file(tmp_path)
    assert load_clip_model(tmp_path).config.image.image_size == (16, 16)
    resized = load_clip_model(tmp_path, image_size=(24, 32))
    assert resized.image_tower.positions.shape == (13, 64)
    assert resized.image_tower(torch.randn(1, 3, 24, 32)).shape == (1, 64)


def hf_folder(folder, **options):
    model = drawn()
    export(model, WORDS, transform_of(model, **options), folder, "hf-clip")
    return model


def edit_json(path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_hugging_faces_end_of_text(tmp_path):
    """An eos_token_id of 2 is that of old config files, and stands for the largest id."""
    hf_folder(tmp_path)
    assert load_clip_model(tmp_path).config.text.end_id == WORDS.end_id
    edit_json(tmp_path / "config.json", lambda c: c["text_config"].update(eos_token_id=2))
    assert load_clip_model(tmp_path).config.text.end_id == WORDS.vocab_size - 1
    edit_json(tmp_path / "config.json", lambda c: c["text_config"].pop("eos_token_id"))
    assert load_clip_model(tmp_path).config.text.end_id == 49407


def test_pictures_are_prepared_as_the_folder_says(tmp_path):
    hf_folder(tmp_path, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bilinear")
    _, _, transform = load_clip(tmp_path)
    assert transform.config == TransformConfig(
        mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bilinear"
    )
    assert transform.image_size == (16, 16)
    edit_json(tmp_path / "preprocessor_config.json", lambda c: c.update(do_center_crop=False))
    with pytest.raises(ValueError, match="do_center_crop=False: only True"):
        load_clip(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    assert load_clip(tmp_path)[2].config.mean == OPENAI_MEAN


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": {"shortest_edge": 20}}, r"size=\{'shortest_edge': 20\}, the model takes \(16, 16\): only"),
        (
            {"size": {"height": 16, "width": 16}},
            r"size=\{'height': 16, 'width': 16\}, .* only \{'shortest_edge': 16\}",
        ),
        ({"size": {"shortest_edge": 16, "longest_edge": 20}}, "size=.* the model takes"),
        (
            {"crop_size": 14},
            r"crop_size=14, the model takes \(16, 16\): only \{'height': 16, 'width': 16\} can be",
        ),
        ({"crop_size": {"height": 16, "width": 14}}, "crop_size=.* the model takes"),
        ({"rescale_factor": 1.0}, "has rescale_factor=1.0: only 1/255 can be loaded"),
        ({"rescale_factor": "x"}, "the option rescale_factor='x' must be float, not str"),
        ({"do_pad": True}, "has do_pad=True: only False can be loaded"),
        ({"size": 16, "crop_size": 16, "rescale_factor": 0.00392156862745098}, None),
    ],
)
def test_pictures_prepared_otherwise_are_refused(change, message, tmp_path):
    hf_folder(tmp_path)
    edit_json(tmp_path / "preprocessor_config.json", lambda config: config.update(change))
    if message is None:
        assert load_clip(tmp_path)[2].image_size == (16, 16)
        assert load_clip(tmp_path, image_size=(24, 24))[2].image_size == (24, 24)
        return
    with pytest.raises(ValueError, match=f"^{tmp_path}[^\n]*{message}"):
        load_clip(tmp_path)


def test_the_vocabulary_lies_beside_or_is_given(tmp_path):
    model = hf_folder(tmp_path)
    again, tokenizer, _ = load_clip(tmp_path)
    assert tokenizer.digest == WORDS.digest == again.config.text.vocab_digest
    torch.testing.assert_close(again(*batch(model)), model(*batch(model)))
    words = (tmp_path / "vocab.txt").rename(tmp_path.parent / f"{tmp_path.name}.txt")
    with pytest.raises(
        ValueError,
        match=r"0 vocabularies beside .*: put one of vocab.txt, merges.txt.* load_image_tower",
    ):
        load_clip(tmp_path)
    assert load_clip(tmp_path, words)[1].digest == WORDS.digest
    tokens = {token: i for i, token in enumerate(WORDS.tokens)}
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    normalizer |= {"lowercase": True, "strip_accents": None}
    saved = {"normalizer": normalizer, "model": {"type": "WordPiece", "vocab": tokens}}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(saved))
    assert load_clip(tmp_path)[1].digest == WORDS.digest
    path.write_text(json.dumps(saved | {"normalizer": normalizer | {"lowercase": False}}))
    assert not load_clip(tmp_path)[1].lower_case
    for change in (
        {"strip_accents": False},
        {"type": "Sequence"},
        {"lowercase": "yes"},
        {"clean_text": False},
    ):
        path.write_text(json.dumps(saved | {"normalizer": normalizer | change}))
        with pytest.raises(ValueError, match="is of another tokenizer"):
            load_clip(tmp_path)
    path.write_text(json.dumps(saved | {"model": {"type": "WordPiece", "vocab": tokens | {"the": 90}}}))
    with pytest.raises(ValueError, match=r"tokenizer.json is damaged \(its ids are not 0 to 35\)"):
        load_clip(tmp_path)
    WordPiece([*WORDS.tokens, "more"]).save(tmp_path)
    with pytest.raises(
        ValueError, match=r"has 37 tokens and its text ends with id 3; the model in .* has 36 and 3"
    ):
        load_clip(tmp_path)


def test_merges_from_a_tokenizer_json(tmp_path, monkeypatch):
    """CLIP's merges stand there as pairs or as strings."""
    monkeypatch.setattr(minclip.data.clip_bpe, "N_MERGES", 2)
    bpe = ClipBPE([("a", "b"), ("ab", "c</w>")])
    model = drawn(text=text_config(bpe))
    export(model, bpe, transform_of(model), tmp_path, "hf-clip")
    (tmp_path / "merges.txt").unlink()
    for merges in ([["a", "b"], ["ab", "c</w>"]], ["a b", "ab c</w>"]):
        saved = {"normalizer": None, "model": {"type": "BPE", "end_of_word_suffix": "</w>", "merges": merges}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
        assert load_clip(tmp_path)[1].digest == bpe.digest


def test_leftovers_and_strangers_are_named(tmp_path):
    hf_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"vision_model.head.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"1 not used: vision_model.head.weight$"):
        load_clip_model(tmp_path)
    short = {name: x for name, x in tensors.items() if name != "vision_model.post_layernorm.bias"}
    save_file(short, path)
    with pytest.raises(ValueError, match=r"1 not filled: image_tower.transformer.norm.bias$"):
        load_clip_model(tmp_path)
    save_file({"a.b": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"holds no CLIP of a known format \(.*\): its tensors are a.b, ..."):
        load_clip_model(tmp_path)


@pytest.mark.parametrize(
    "tower, option, value",
    [
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "timm_model_name", "vit_x"),
        ("vision_cfg", "ls_init_value", 0.1),
        ("text_cfg", "no_causal_mask", True),
        ("text_cfg", "qk_norm", True),
    ],
)
def test_open_clips_other_functions_are_refused(tower, option, value, tmp_path):
    model = drawn()
    export(model, WORDS, transform_of(model), tmp_path, "open_clip")
    edit_json(tmp_path / "open_clip_config.json", lambda c: c["model_cfg"][tower].update({option: value}))
    with pytest.raises(ValueError, match=f"has {option}={value!r}"):
        load_clip_model(tmp_path)


@pytest.mark.parametrize(
    "to, name", [("open_clip", "open_clip_config"), ("hf-clip", "config"), ("hf-clip", "pre*")]
)
@given(data=st.data())
def test_odd_configs_are_one_line(to, name, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    model = drawn()
    export(model, WORDS, transform_of(model), folder, to)
    [path] = folder.glob(f"{name}.json")
    spoil(path, data)
    loads_or_says_why(load_clip, folder)


@pytest.mark.parametrize(
    "part, options, message",
    [
        ("model_cfg", [], r"the option model_cfg=\[\] must be dict, not list"),
        ("vision_cfg", "x", "the option vision_cfg='x' must be dict, not str"),
        ("text_cfg", 3, "the option text_cfg=3 must be dict, not int"),
        ("preprocess_cfg", [], r"the option preprocess_cfg=\[\] must be dict, not list"),
        ("vision_cfg", {"head_width": "8"}, "the option head_width='8' must be int, not str"),
        ("vision_cfg", {"head_width": 7}, "head_width=7 does not divide the width 64"),
        ("vision_cfg", {"head_width": 0}, "head_width=0 does not divide the width 64"),
        ("vision_cfg", {"norm_kwargs": []}, r"the option norm_kwargs=\[\] must be dict, not list"),
        ("text_cfg", {"norm_kwargs": {"eps": "x"}}, "norm_eps='x' must be float, not str"),
        ("text_cfg", {"norm_kwargs": {"eps": float("nan")}}, "norm_eps=nan must be a finite number"),
        ("text_cfg", {"heads": 2.0}, "n_heads=2.0 must be int, not float"),
        ("text_cfg", {"heads": True}, "n_heads=True must be int, not bool"),
        ("model_cfg", {"quick_gelu": "maybe"}, "the option quick_gelu='maybe' must be bool, not str"),
        ("preprocess_cfg", {"mean": 3}, "mean=3 must be 3 values"),
        ("preprocess_cfg", {"std": [0.5, float("nan"), 0.5]}, "std=nan must be a finite number"),
        ("preprocess_cfg", {"interpolation": ["bicubic"]}, r"interpolation=\['bicubic'\] must be one of"),
    ],
)
def test_open_clips_options_are_of_their_kind(part, options, message, tmp_path):
    model = drawn()
    export(model, WORDS, transform_of(model), tmp_path, "open_clip")

    def change(config):
        place = config if part in config else config["model_cfg"]
        place[part] = place[part] | options if isinstance(options, dict) else options

    edit_json(tmp_path / "open_clip_config.json", change)
    with pytest.raises(ValueError, match=f"^{tmp_path}[^ ]*: {message}"):
        load_clip(tmp_path)


@pytest.mark.parametrize(
    "part, options, message",
    [
        (
            "vision_cfg",
            {"global_average_pool": True},
            "has global_average_pool=True: only False can be loaded",
        ),
        ("vision_cfg", {"input_patchnorm": True}, "has options that are not known: input_patchnorm"),
        ("text_cfg", {"b": 1, "a": 0}, "has options that are not known: a, b"),
        ("text_cfg", {"norm_kwargs": {"bias": False}}, "has options that are not known: bias"),
        ("model_cfg", {"moe": 4}, "has options that are not known: moe"),
        ("model_cfg", {"nonscalar_logit_scale": True}, "has nonscalar_logit_scale=True"),
        ("preprocess_cfg", {"size": 20}, r"size=20, the model takes \(16, 16\)"),
        ("preprocess_cfg", {"blur": 1}, "has options that are not known: blur"),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "canonicalize"}}, "has tokenizer_kwargs="),
        (
            "vision_cfg",
            {"layers": 10**9},
            "its config says layers=1000000000, its tensors say 2: put its own config beside it",
        ),
        ("vision_cfg", {"no_ln_pre": True}, "its config says no_ln_pre=True, its tensors say False"),
        (
            "vision_cfg",
            {"image_size": 10**30},
            "its config says image_size=10+, its positions are for 4 patches",
        ),
        ("text_cfg", {"vocab_size": 10**9}, "its config says vocab_size=1000000000, its tensors say 36"),
        ("text_cfg", {"heads": 10**9}, "n_heads=1000000000 does not divide d_model=64"),
    ],
)
def test_every_option_of_open_clip_is_used_or_refused(part, options, message, tmp_path):
    model = drawn()
    export(model, WORDS, transform_of(model), tmp_path, "open_clip")

    def change(config):
        place = config if part in config else config["model_cfg"]
        place[part] = place[part] | options

    edit_json(tmp_path / "open_clip_config.json", change)
    with pytest.raises(ValueError, match=f"^{tmp_path}[^\n]*{message}"):
        load_clip(tmp_path)


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
@pytest.mark.parametrize(
    "name", ["hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"]
)
def test_hugging_faces_sizes_are_those_of_the_tensors(part, name, tmp_path):
    """Whatever a config says, nothing is built that the file has no numbers for."""
    hf_folder(tmp_path)
    edit_json(tmp_path / "config.json", lambda config: config[part].update({name: 10**9}))
    with pytest.raises(ValueError, match=f"^{tmp_path}[^\n]*1000000000"):
        load_clip(tmp_path)


def test_published_files_are_told_from_runs(tmp_path):
    model = hf_folder(tmp_path / "hf")
    export(model, WORDS, transform_of(model), tmp_path / "run", "safetensors")
    openai_file(tmp_path / "openai")
    assert is_published(tmp_path / "hf")
    assert is_published(tmp_path / "openai")
    assert is_published(tmp_path / "openai" / "model.pt")
    assert not is_published(tmp_path / "run")
    assert not is_published(tmp_path / "nowhere")
