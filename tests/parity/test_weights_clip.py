"""Whole CLIPs: open_clip's, transformers', and OpenAI's archives (traced from open_clip's model of the same code)."""

import json
import random

import pytest
import torch

from minclip.data.tokenizer import WordPiece
from minclip.data.transforms import ImageTransform, TransformConfig
from minclip.pretrained import export, load_clip, load_clip_model, load_image_tower, load_text_tower
from minclip.pretrained.load import plan_clip, read_source
from minlm.pretrained.weight_files import read_file
from tests.parity.drawing import agree, assert_identity, difference, randomise, save

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")
BOTH = (torch.float32, torch.float64)
MARKERS = ("input_resolution", "context_length", "vocab_size")


def draw_options(seed: int, head_width: int = 16) -> dict:
    """Draw model_cfg of a small open_clip model: a ViT if the seed is even, else a ResNet."""
    rng = random.Random(f"clip/{seed}")
    if seed % 2:
        layers = [rng.randint(1, 2) for _ in range(4)]
        vision = {"layers": layers, "width": 2 * head_width // rng.choice([1, 2, 4]), "image_size": 64}
    else:
        patch = rng.choice([4, 8])
        vision = {"layers": rng.randint(1, 2), "width": head_width * rng.randint(1, 2), "patch_size": patch}
        vision["image_size"] = patch * rng.randint(2, 3)
    heads = rng.randint(1, 2)
    text = {"context_length": rng.randint(8, 12), "vocab_size": rng.randint(20, 50), "heads": heads}
    text |= {"width": heads * head_width, "layers": rng.randint(1, 2)}
    vision["head_width"] = head_width
    return {
        "embed_dim": rng.choice([6, 16]),
        "quick_gelu": rng.random() < 0.5,
        "vision_cfg": vision,
        "text_cfg": text,
    }


def draw_texts(vocab_size: int, length: int):
    """Draw rows with the last id, the end of text, at different positions, and ids after it."""
    tokens = torch.randint(vocab_size - 1, (3, length))
    tokens[torch.arange(3), torch.tensor([2, length - 1, 4])] = vocab_size - 1
    return tokens, torch.ones_like(tokens, dtype=torch.bool)


def compare(ours, theirs, source, encode_image, encode_text, given=None, dtypes=BOTH) -> None:
    """Compare embeddings and gradients; encode_image, encode_text: theirs, of any length."""
    rows = plan_clip(source, given or {}).rows
    assert_identity(ours, rows, source.tensors)
    images = torch.randn(3, 3, *ours.config.image.image_size)
    tokens, mask = draw_texts(ours.config.text.vocab_size, ours.config.text.context_length)

    def run(dtype):
        x = images.to(dtype)
        theirs_pair = [
            torch.nn.functional.normalize(e, dim=-1) for e in (encode_image(x), encode_text(tokens))
        ]
        assert difference(ours.logit_scale.exp(), theirs.logit_scale.exp()) <= 1e-6
        return [ours.encode_image(x), ours.encode_text(tokens, mask)], theirs_pair

    agree(ours, theirs, rows, run, dtypes=dtypes)


@pytest.mark.parametrize("seed", range(8))
def test_drawn_open_clips(seed, tmp_path):
    """As open_clip saves them: either file with its config, or a training checkpoint of a distributed run."""
    options = draw_options(seed)
    theirs = randomise(open_clip.CLIP(**options), seed)
    config = {"model_cfg": options, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    if seed % 4 < 2:
        wrapped = {f"module.{name}": value for name, value in theirs.state_dict().items()}
        torch.save({"epoch": 3, "name": "a", "state_dict": wrapped}, tmp_path / "epoch_3.pt")
    else:
        save(theirs, tmp_path / "open_clip_pytorch_model.bin")
    compare(load_clip_model(tmp_path), theirs, read_source(tmp_path), theirs.encode_image, theirs.encode_text)


@pytest.mark.parametrize("seed", range(4))
def test_open_clip_with_a_text_tower_of_its_own_and_a_sigmoid_loss(seed, tmp_path):
    options = draw_options(2 * seed) | {"init_logit_bias": -7.0}
    theirs = randomise(open_clip.CustomTextCLIP(**options), seed)
    config = {"model_cfg": options | {"custom_text": True}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save(theirs, tmp_path / "open_clip_pytorch_model.bin")
    ours = load_clip_model(tmp_path)
    assert difference(ours.logit_bias, theirs.logit_bias) == 0
    compare(ours, theirs, read_source(tmp_path), theirs.encode_image, theirs.encode_text)


@pytest.mark.parametrize("side", [28, 56, 84])
def test_positions_are_interpolated_as_by_open_clip(side, tmp_path):
    """Positions for 14 x 14 patches, shrunk and enlarged."""
    options = draw_options(0)
    options["vision_cfg"] |= {"patch_size": 4, "image_size": 56}
    theirs = randomise(open_clip.CLIP(**options), 1)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": options}))
    save(theirs, tmp_path / "open_clip_pytorch_model.bin")
    weights = theirs.state_dict()
    options["vision_cfg"]["image_size"] = side
    resized = open_clip.CLIP(**options).eval()
    open_clip.model.resize_pos_embed(weights, resized)
    resized.load_state_dict(weights)
    ours = load_clip_model(tmp_path, image_size=(side, side))
    images = torch.randn(2, 3, side, side)
    assert difference(ours.encode_image(images), resized.encode_image(images, normalize=True)) <= 1e-5


class Published(torch.nn.Module):
    """The module that OpenAI traced: the parts of a CLIP at the top, and three numbers among its buffers."""

    def __init__(self, clip, numbers):
        super().__init__()
        for name, child in clip.named_children():
            self.add_module(name, child)
        for name, parameter in clip.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, number in zip(MARKERS, numbers, strict=True):
            self.register_buffer(name, torch.tensor(number))
        self.__dict__["mask"] = clip.attn_mask

    def forward(self, image, text):
        x = self.token_embedding(text) + self.positional_embedding.to(self.logit_scale.dtype)
        x = self.ln_final(self.transformer(x, attn_mask=self.mask.to(x.dtype)))
        ends = x[torch.arange(x.shape[0]), text.argmax(dim=-1)]
        return self.visual(image), ends @ self.text_projection


def write_archive(clip, options, path):
    """Write a true TorchScript archive of OpenAI's layout."""
    side = options["vision_cfg"]["image_size"]
    text = options["text_cfg"]
    numbers = (side, text["context_length"], text["vocab_size"])
    module = Published(clip, numbers).eval()
    example = torch.randn(2, 3, side, side), torch.randint(text["vocab_size"], (2, text["context_length"]))
    torch.jit.trace(module, example, check_trace=False).save(str(path))
    return path


@pytest.mark.parametrize("seed", range(4))
def test_drawn_archives_of_openai(seed, tmp_path):
    options = draw_options(seed, head_width=64) | {"quick_gelu": True}
    theirs = randomise(open_clip.CLIP(**options), seed)
    path = write_archive(theirs, options, tmp_path / "any-name.pt")
    ours = load_clip_model(path)
    assert ours.config.text.activation == "quick_gelu"
    compare(ours, theirs, read_source(path), theirs.encode_image, theirs.encode_text)
    ours.float()
    images = torch.randn(2, 3, *ours.config.image.image_size)
    assert torch.equal(load_image_tower(path)(images), ours.image_tower(images))
    tokens, mask = draw_texts(ours.config.text.vocab_size, ours.config.text.context_length)
    assert torch.equal(load_text_tower(path)(tokens, mask), ours.text_tower(tokens, mask))


def test_half_precision_becomes_float32_masters(tmp_path):
    options = draw_options(0, head_width=64) | {"quick_gelu": True}
    theirs = randomise(open_clip.CLIP(**options), 0)
    whole = write_archive(theirs, options, tmp_path / "whole.pt")
    tensors = {name: x.half() if x.is_floating_point() else x for name, x in read_file(whole).items()}
    torch.save(tensors, tmp_path / "half.pt")
    ours = load_clip_model(tmp_path / "half.pt")
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert torch.equal(ours.text_projection.weight, theirs.text_projection.half().float().T)


PUBLISHED = {
    "ViT-B/32": ("ViT-B-32", torch.float32),
    "RN50": ("RN50", torch.float32),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_size(name, tmp_path):
    """As OpenAI publishes it: a TorchScript archive; loaded here and by open_clip's own loader."""
    options = open_clip.get_model_config(PUBLISHED[name][0]) | {"quick_gelu": True}
    theirs = randomise(open_clip.CLIP(**options), 1)
    path = write_archive(theirs, options, tmp_path / "published.pt")
    ours = load_clip_model(path)
    compare(ours, theirs, read_source(path), theirs.encode_image, theirs.encode_text, dtypes=(torch.float32,))


def hf_clip(seed: int, legacy: bool = False):
    """Draw a small CLIPModel; legacy: with the eos_token_id 2 of older config files."""
    rng = random.Random(f"hf-clip/{seed}")

    def tower():
        heads = rng.choice([1, 2])
        return {
            "hidden_size": heads * 8,
            "num_attention_heads": heads,
            "num_hidden_layers": rng.randint(1, 2),
            "intermediate_size": rng.choice([12, 32]),
            "hidden_act": rng.choice(["quick_gelu", "gelu"]),
        }

    vocab_size, patch = rng.randint(20, 50), rng.choice([4, 8])
    text = tower() | {"vocab_size": vocab_size, "max_position_embeddings": rng.randint(8, 12)}
    text |= {"eos_token_id": 2 if legacy else vocab_size - 1, "bos_token_id": 0, "pad_token_id": 1}
    vision = tower() | {"image_size": patch * rng.randint(2, 3), "patch_size": patch}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=rng.choice([6, 16])
    )
    return randomise(transformers.CLIPModel(config), seed)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("legacy", [False, True])
def test_drawn_clips_of_transformers(seed, legacy, tmp_path):
    theirs = hf_clip(seed, legacy)
    theirs.save_pretrained(tmp_path)

    def embed_image(x):
        return theirs.visual_projection(theirs.vision_model(x).pooler_output)

    def embed_text(tokens):
        return theirs.text_projection(theirs.text_model(tokens).pooler_output)

    compare(load_clip_model(tmp_path), theirs, read_source(tmp_path), embed_image, embed_text)


@pytest.mark.parametrize("seed", range(2))
def test_single_towers_of_transformers(seed, tmp_path):
    config = hf_clip(seed).config
    vision = randomise(transformers.CLIPVisionModel(config.vision_config), seed)
    vision.save_pretrained(tmp_path / "vision")
    images = torch.randn(2, 3, *[config.vision_config.image_size] * 2)
    assert difference(load_image_tower(tmp_path / "vision")(images), vision(images).pooler_output) <= 1e-5
    text = randomise(transformers.CLIPTextModelWithProjection(config.text_config), seed)
    text.save_pretrained(tmp_path / "text")
    tokens, mask = draw_texts(config.text_config.vocab_size, 8)
    expected = text.text_model(tokens).pooler_output
    assert difference(load_text_tower(tmp_path / "text")(tokens, mask), expected) <= 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_export_opens_in_its_owners_library(seed, tmp_path):
    """A model of transformers, written as hf-clip and as open_clip, with a WordPiece whose last id ends no text."""
    tokenizer = WordPiece.train(["a dog on the beach", "the cat"] * 2, 60)
    theirs = hf_clip(seed)
    theirs.config.text_config.eos_token_id = tokenizer.end_id
    if len({theirs.config.text_config.hidden_act, theirs.config.vision_config.hidden_act}) > 1:
        theirs.config.text_config.hidden_act = theirs.config.vision_config.hidden_act
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_clip_model(tmp_path / "theirs")
    transform = ImageTransform(
        TransformConfig(mean=(0.1, 0.2, 0.3)), ours.config.image.image_size, train=False
    )
    length, vocab_size = ours.config.text.context_length, ours.config.text.vocab_size
    tokens, mask = draw_texts(vocab_size, length)
    tokens = tokens.where(tokens < vocab_size - 1, tokenizer.end_id)
    images = torch.randn(3, 3, *ours.config.image.image_size)
    export(ours, tokenizer, transform, tmp_path / "hf", "hf-clip")
    back = transformers.CLIPModel.from_pretrained(tmp_path / "hf").eval()
    logits = back(pixel_values=images, input_ids=tokens).logits_per_image
    assert difference(logits, ours(images, tokens, mask)) <= 1e-5
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "hf")
    assert tuple(processor.image_mean) == (0.1, 0.2, 0.3)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")("a dog")["input_ids"] == [
        tokenizer.start_id,
        *tokenizer.encode("a dog"),
        tokenizer.end_id,
    ]
    export(ours, tokenizer, transform, tmp_path / "oc", "open_clip")
    back = open_clip.create_model(f"local-dir:{tmp_path / 'oc'}").eval()
    assert difference(back.encode_image(images, normalize=True), ours.encode_image(images)) <= 1e-5
    assert difference(back.encode_text(tokens, normalize=True), ours.encode_text(tokens, mask)) <= 1e-5
    assert tuple(back.visual.image_mean) == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("seed", range(2))
def test_export_to_openai_opens_with_its_loader(seed, tmp_path, data_root):
    """And with CLIP's vocabulary. OpenAI's loader rounds weights to half precision: so are these."""
    vocabulary = data_root / "vocab" / "bpe_simple_vocab_16e6.txt.gz"
    options = draw_options(seed, head_width=64) | {"quick_gelu": True}
    options["text_cfg"]["vocab_size"] = 49408
    theirs = randomise(open_clip.CLIP(**options), seed)
    for parameter in theirs.parameters():
        parameter.data = parameter.data.half().float()
    path = write_archive(theirs, options, tmp_path / "theirs.pt")
    ours, tokenizer, transform = load_clip(path, vocabulary)
    export(ours, tokenizer, transform, tmp_path / "out", "openai")
    back = open_clip.load_openai_model(str(tmp_path / "out" / "model.pt"), precision="fp32", device="cpu")
    images = torch.randn(2, 3, *ours.config.image.image_size)
    tokens = open_clip.SimpleTokenizer(context_length=options["text_cfg"]["context_length"])(
        ["a dog", "two cats"]
    )
    mask = torch.ones_like(tokens, dtype=torch.bool)
    assert difference(back.encode_image(images, normalize=True), ours.encode_image(images)) <= 1e-5
    assert difference(back.encode_text(tokens, normalize=True), ours.encode_text(tokens, mask)) <= 1e-5
    again, same, _ = load_clip(tmp_path / "out")
    assert same.digest == tokenizer.digest
    for name, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
