"""Shape comments cannot lie: the models run on drawn sizes, and each comment is compared with its line's tensor."""

import importlib.util
import itertools
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minclip.clip
import minclip.evaluation.embed
import minclip.evaluation.retrieval
import minclip.gradcache
import minclip.losses
import minclip.tiled_losses
import minclip.towers.modified_resnet
import minclip.towers.projection
import minclip.towers.resnet
import minclip.towers.text
import minclip.towers.vit
import minlm.embeddings
import minlm.lm
import minlm.losses
import minlm.masks
import minlm.seq2seq
import minlm.transformer
from minclip.clip import CLIP, CLIPConfig
from minclip.towers.modified_resnet import ModifiedResNetConfig
from minclip.towers.resnet import ResNetConfig
from minclip.towers.text import BertTextConfig, GPTTextConfig
from minclip.towers.vit import VisionTransformerConfig
from minlm.lm import LMConfig
from minlm.seq2seq import Seq2SeqConfig
from minlm.transformer import record_attention
from tests.drawing import backward
from tests.minclip.tiny_clip import TOKENIZER, WORDS, TinyCLIP, record, transform, units
from tests.shape_comments import ShapeComments

MODULES = (
    minlm.masks,
    minlm.embeddings,
    minlm.transformer,
    minlm.lm,
    minlm.seq2seq,
    minlm.losses,
    minclip.clip,
    minclip.losses,
    minclip.tiled_losses,
    minclip.gradcache,
    minclip.towers.vit,
    minclip.towers.resnet,
    minclip.towers.modified_resnet,
    minclip.towers.text,
    minclip.towers.projection,
    minclip.evaluation.embed,
    minclip.evaluation.retrieval,
)


@st.composite
def sizes(draw, *letters: str) -> dict[str, int]:
    """A size for each letter, no two equal; D = H K with an even K."""
    heads = draw(st.sampled_from([2, 3, 5]))
    size = draw(st.sampled_from([4, 6]))
    taken = {"H": heads, "K": size, "D": heads * size}
    free = [n for n in range(2, 14) if n not in taken.values()]
    drawn = draw(st.permutations(free))
    return taken | dict(zip(letters, drawn, strict=False))


@given(sizes=sizes("B", "T", "V"))
def drive_language_models(comments, sizes):
    B, T, V = (sizes[letter] for letter in "BTV")
    comments.known = {letter: sizes[letter] for letter in "BHKDV"}
    stack = {"d_model": sizes["D"], "n_heads": sizes["H"], "n_layers": 1, "vocab_size": V}
    tokens, mask = torch.randint(V, (B, T + 2)), torch.ones(B, T + 2, dtype=torch.bool)
    for positions, tied, masked in (
        ("learned", True, False),
        ("sinusoidal", False, True),
        ("rotary", True, True),
    ):
        config = LMConfig(**stack, context_length=T + 2, positions=positions, tied=tied)
        model = minlm.lm.TransformerLM(config)
        logits = model(tokens[:, :T], mask[:, :T] if masked else None)
        minlm.losses.token_loss(logits, tokens[:, 2:], mask[:, 2:] if masked else None)
        with record_attention(model):
            caches = model.new_caches(B)
            model(tokens[:, :T], mask[:, :T] if masked else None, caches)
            model(tokens[:, T:], mask if masked else None, caches)


@given(sizes=sizes("B", "T", "S", "V"))
def drive_encoder_decoder(comments, sizes):
    B, T, S, V = (sizes[letter] for letter in "BTSV")
    comments.known = {letter: sizes[letter] for letter in "BHKDV"}
    stack = {"d_model": sizes["D"], "n_heads": sizes["H"], "n_layers": 1, "vocab_size": V}
    model = minlm.seq2seq.EncoderDecoder(Seq2SeqConfig(**stack, context_length=max(T + 2, S)))
    source, target = torch.randint(V, (B, S)), torch.randint(V, (B, T + 2))
    mask = torch.ones(B, S, dtype=torch.bool)
    model(source, target[:, :T], mask)
    memory, caches = model.encode(source, mask), model.new_caches(B, S)
    with record_attention(model):
        for part in (target[:, :T], target[:, T:]):
            model.features(part, memory, mask, caches=caches)


@given(sizes=sizes("B", "T", "V", "h", "w", "rows", "columns"))
def drive_transformer_towers(comments, sizes):
    B, T, V, D = (sizes[letter] for letter in "BTVD")
    patch, grid = (sizes["h"] // 2, sizes["w"] // 2), (sizes["rows"], sizes["columns"])
    image_size = (patch[0] * grid[0], patch[1] * grid[1])
    stack = {"d_model": D, "n_heads": sizes["H"], "n_layers": 1}
    comments.known = {letter: sizes[letter] for letter in "BDHK"} | {"C": 3, "N": grid[0] * grid[1]}
    images = torch.randn(B, 3, *image_size)
    for pool, dropped in (("class", 0.5), ("class", 0.0), ("mean", 0.5), ("mean_norm", 0.0), ("last", 0.0)):
        fields = {"image_size": image_size, "patch_size": patch, "pool": pool, "patch_dropout": dropped}
        minclip.towers.vit.VisionTransformer(VisionTransformerConfig(**stack, **fields))(images)
    new_grid = (grid[1], grid[0] + 1)
    comments.known = {"rows": grid[0], "columns": grid[1], "rows'": new_grid[0], "columns'": new_grid[1]}
    minclip.towers.vit.resize_positions(torch.randn(1 + grid[0] * grid[1], D), grid, new_grid)

    comments.known = {letter: sizes[letter] for letter in "BTDHK"}
    tokens, mask = torch.randint(V, (B, T)), torch.ones(B, T, dtype=torch.bool)
    tokens[:, -1] = 0  # the end of the text
    text = {**stack, "vocab_size": V, "context_length": max(T, 3)}
    minclip.towers.text.GPTTextEncoder(GPTTextConfig(**text, end_id=0))(tokens)
    for pool in ("first", "pooler", "mean"):
        minclip.towers.text.BertTextEncoder(BertTextConfig(**text, pool=pool))(tokens, mask)


@given(sizes=sizes("B", "h", "w"))
def drive_resnets(comments, sizes):
    B, h, w, width = sizes["B"], 8 * sizes["h"], 8 * sizes["w"], 4
    feature_map, images = torch.randn(B, width, h, w), torch.randn(B, 3, h, w)
    comments.known = {"B": B, "C'": 5 * width, "h'": h // 2, "w'": w // 2}
    minclip.towers.resnet.ResidualBlock(width, 5 * width, stride=2, bottleneck=False)(feature_map)
    comments.known["C'"] = 4 * width
    minclip.towers.modified_resnet.AntialiasedBlock(width, width, stride=2)(feature_map)

    fields = {"d_model": width, "image_size": (h, w), "depths": (1,)}
    config = ResNetConfig(**fields, block="bottleneck")
    comments.known = {"B": B, "D": config.width, "d_model": width, "h'": h // 4, "w'": w // 4}
    minclip.towers.resnet.ResNet(config)(images)
    config = ModifiedResNetConfig(**fields, n_heads=2)
    comments.known = {"B": B, "D": config.width, "d_model": width, "H": 2}
    minclip.towers.modified_resnet.ModifiedResNet(config)(images)


@given(sizes=sizes("B", "T", "V", "E", "M"))
def drive_clip(comments, sizes):
    B, T, V, E, M, D = (sizes[letter] for letter in "BTVEMD")
    stack = {"n_heads": 1, "n_layers": 1}
    image = VisionTransformerConfig(**stack, d_model=D, image_size=(6, 4), patch_size=(2, 2))
    text = BertTextConfig(**stack, d_model=D + 2, vocab_size=V, context_length=14)
    batch = {
        "images": torch.randn(B, 3, 6, 4),
        "tokens": torch.randint(V, (B, T)),
        "token_mask": torch.ones(B, T, dtype=torch.bool),
        "groups": torch.arange(B) // 2,
    }
    features = {"image_features": torch.randn(B, D), "text_features": torch.randn(B, D + 2)}
    losses = itertools.cycle(("infonce", "sigmoid", "soft_targets"))
    for projection, loss in zip(
        ("linear", "linear_norm", "residual", "ndlinear", "low_rank"), losses, strict=False
    ):
        model = CLIP(CLIPConfig(image=image, text=text, embed_dim=E, projection=projection, loss=loss))
        comments.known = {"E": E}  # B is a part's size in the towers, the batch's in the loss
        backward(model, batch, 2)
        comments.known = {"B": B, "E": E}
        model(batch["images"], batch["tokens"], batch["token_mask"])
        backward(model, batch | features)
        comments.known = {"N": B, "M": M, "E": E}
        model.logits(torch.randn(B, E), torch.randn(M, E))


@given(sizes=sizes("R", "E"))
def drive_tiles(comments, sizes):
    R, E = sizes["R"], sizes["E"]
    comments.known = {"B": 2 * R, "R": R, "E": E}
    images, texts = units(2 * R, E, 0), units(2 * R, E, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minclip.losses, "TILE_SIZE", R * 2 * R)
        scale, groups = torch.zeros((), requires_grad=True), torch.arange(2 * R) // 2
        minclip.losses.contrastive_metrics(images, texts, scale, groups)
        minclip.tiled_losses.tiled_clip_loss(images, texts, scale, groups)[0].backward()
        minclip.tiled_losses.tiled_sigmoid_loss(images, texts, scale, scale, groups)[0].backward()


@given(sizes=sizes("chunk", "blocks", "more", "classes", "templates"))
def drive_evaluation(comments, sizes):
    chunk, more, E = sizes["chunk"], sizes["more"], 8
    N = chunk * min(sizes["blocks"], 3)  # whole blocks: the last one is as large as the others
    M = N + more
    comments.known = {"N": N, "M": M, "E": E}
    image_of_text = torch.cat([torch.arange(N), torch.arange(more) % N])
    minclip.evaluation.retrieval.retrieval(
        units(N, E, 0), units(M, E, 1), image_of_text, most_scores=chunk * M
    )

    model, records = TinyCLIP(), [record(i, ("a star",)) for i in range(more)]
    comments.known = {"N": more, "B": more, "E": E, "D": 3}
    minclip.evaluation.embed.embed_images(model, records, transform)
    minclip.evaluation.embed.image_features(model, records, transform)
    pairs = [" ".join(pair) for pair in itertools.product(WORDS, WORDS)]
    names, templates = pairs[: sizes["classes"]], [f"{pair} {{}}" for pair in pairs[: sizes["templates"]]]
    comments.known = {"E": E, "classes": len(names), "templates": len(templates)}
    minclip.evaluation.embed.embed_classes(model, TOKENIZER, names, templates)


def test_shape_comments_are_true(capsys):
    """The models' comments are reached (95 % or more) and true; with two dimensions swapped, none would be."""
    drives = (
        drive_language_models,
        drive_encoder_decoder,
        drive_transformer_towers,
        drive_resnets,
        drive_clip,
        drive_tiles,
        drive_evaluation,
    )
    with ShapeComments(*MODULES) as comments:
        for drive in drives:
            drive(comments=comments)
    with capsys.disabled():
        print(f"\n{comments.summary()}")
    reached = len(comments.verified) / len(comments.comments)
    assert reached >= 0.95, "\n".join([f"not reached, of {reached:.1%}:", *comments.unreached()])
    blind = sorted(comments.swaps - comments.refused)
    assert not blind, f"with two dimensions swapped, these would be passed too: {blind}"


TURNED = torch.zeros(2, 3, 5, 4), (torch.ones(5, 2), torch.zeros(5, 2))  # what rotate takes: x, rotation


def planted(folder: Path, right: str, wrong: str) -> tuple[ModuleType, str]:
    """A copy of minlm/embeddings.py with another comment in place of a right one, and that comment's file:line."""
    text = Path(minlm.embeddings.__file__).read_text(encoding="utf-8")
    assert text.count(right) == 1
    path = folder / "planted.py"
    path.write_text(text.replace(right, wrong), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("planted", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, f"{path}:{text[: text.index(right)].count(chr(10)) + 1}"


@pytest.mark.parametrize(
    "right, wrong, actual",
    [
        ("(B, H, T, K/2) each", "(B, H, T, K) each", "(2, 3, 5, 2), (2, 3, 5, 2)"),
        ("(B, H, T, K/2) each", "(B, H, K/2, T) each", "(2, 3, 5, 2), (2, 3, 5, 2)"),
        ("(B, H, T, K/2) each", "(B, H, T, K/2)", "(2, 3, 5, 2), (2, 3, 5, 2)"),
        ("(B, H, T, K)\n", "(B, T, H, K)\n", "(2, 3, 5, 4)"),
        ("(B, H, T, K)\n", "(B, H, K)\n", "(2, 3, 5, 4)"),
        ("(B, H, T, K)\n", "(B, H, 1 + T, K)\n", "(2, 3, 5, 4)"),
        ("(B, H, T, K)\n", "(..., K, T)\n", "(2, 3, 5, 4)"),
    ],
)
def test_a_wrong_comment_is_named_with_its_line_and_the_true_shape(tmp_path, right, wrong, actual):
    module, place = planted(tmp_path, right, wrong)
    report = f"{place}: the comment says {wrong.strip()}, the line makes {actual}: B = 2, H = 3, T = 5, K = 4"
    with ShapeComments(module), pytest.raises(AssertionError, match=f"^{re.escape(report)}$"):
        module.rotate(*TURNED)
    module.rotate(*TURNED)  # nothing is compared any more


def test_a_wrong_shape_of_a_parameter_is_named(tmp_path):
    module, _ = planted(tmp_path, "Rotate x (B, H, T, K)", "Rotate x (B, T, K)")
    with ShapeComments(module), pytest.raises(AssertionError, match=r"rotate is given x \(2, 3, 5, 4\), not"):
        module.rotate(*TURNED)


def test_comments_of_lines_that_do_not_run_are_listed(tmp_path):
    module, place = planted(tmp_path, "(B, H, T, K/2) each", "(B, H, T, W K/2) each")  # true for W = 1
    with ShapeComments(module) as comments:
        module.rotate(*TURNED)
    unreached = comments.unreached()
    assert comments.summary().startswith(f"2 of {2 + len(unreached)} ")
    assert not any(line.startswith(place) for line in unreached)
    assert any(line.endswith(": (length, D/2)") for line in unreached)
