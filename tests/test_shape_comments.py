"""Shape comments cannot lie: the models run on drawn sizes, and each comment is compared with its line's tensor."""

import importlib.util

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minclip.clip
import minclip.embed
import minclip.gradcache
import minclip.losses
import minclip.modified_resnet
import minclip.projection
import minclip.resnet
import minclip.retrieval
import minclip.text
import minclip.vit
import minlm.embeddings
import minlm.lm
import minlm.losses
import minlm.masks
import minlm.seq2seq
import minlm.transformer
from minclip.clip import CLIP, CLIPConfig
from minclip.modified_resnet import ModifiedResNetConfig
from minclip.resnet import ResNetConfig
from minclip.text import BertTextConfig, GPTTextConfig
from minclip.vit import VisionTransformerConfig
from minlm.lm import LMConfig
from minlm.seq2seq import Seq2SeqConfig
from minlm.transformer import record_attention
from tests.minclip.tiny_clip import TOKENIZER, TinyCLIP, record, transform, units
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
    minclip.gradcache,
    minclip.vit,
    minclip.resnet,
    minclip.modified_resnet,
    minclip.text,
    minclip.projection,
    minclip.embed,
    minclip.retrieval,
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


def drive_language_models(comments: ShapeComments) -> None:
    @given(
        sizes("B", "T", "V"),
        st.sampled_from(["learned", "sinusoidal", "rotary"]),
        st.booleans(),
        st.booleans(),
    )
    def run(sizes, positions, tied, masked):
        B, T, V = (sizes[letter] for letter in "BTV")
        comments.known = {letter: sizes[letter] for letter in "BHKDV"}
        model = minlm.lm.TransformerLM(
            LMConfig(
                d_model=sizes["D"],
                n_heads=sizes["H"],
                n_layers=1,
                vocab_size=V,
                context_length=T + 1,
                positions=positions,
                tied=tied,
            )
        )
        tokens, mask = torch.randint(V, (B, T + 1)), torch.ones(B, T + 1, dtype=torch.bool)
        logits = model(tokens[:, :T], mask[:, :T] if masked else None)
        minlm.losses.token_loss(logits, tokens[:, 1:], mask[:, 1:] if masked else None)
        with record_attention(model):
            caches = model.new_caches(B)
            model(tokens[:, :T], mask[:, :T] if masked else None, caches)
            model(tokens[:, T:], mask if masked else None, caches)

    run()


def drive_encoder_decoder(comments: ShapeComments) -> None:
    @given(sizes("B", "T", "S", "V"), st.booleans(), st.booleans())
    def run(sizes, norm_first, masked):
        B, T, S, V = (sizes[letter] for letter in "BTSV")
        comments.known = {letter: sizes[letter] for letter in "BHKDV"}
        stack = {"d_model": sizes["D"], "n_heads": sizes["H"], "n_layers": 1, "norm_first": norm_first}
        model = minlm.seq2seq.EncoderDecoder(
            Seq2SeqConfig(**stack, vocab_size=V, context_length=max(T + 1, S))
        )
        source, target = torch.randint(V, (B, S)), torch.randint(V, (B, T + 1))
        mask = torch.ones(B, S, dtype=torch.bool) if masked else None
        model(source, target[:, :T], mask)
        memory, caches = model.encode(source, mask), model.new_caches(B, S)
        with record_attention(model):
            for part in (target[:, :T], target[:, T:]):
                model.to_logits(model.features(part, memory, mask, caches=caches))

    run()


def drive_towers(comments: ShapeComments) -> None:
    @given(
        sizes("B", "T", "V", "h", "w", "rows", "columns"),
        st.sampled_from(["class", "mean", "mean_norm", "last"]),
        st.sampled_from([0.0, 0.5]),
        st.sampled_from(["first", "pooler", "mean"]),
        st.sampled_from(["imagenet", "cifar", "small"]),
        st.sampled_from(["basic", "bottleneck"]),
    )
    def run(sizes, pool, patch_dropout, text_pool, stem, block):
        B, T, V, D, H = (sizes[letter] for letter in "BTVDH")
        patch, grid = (sizes["h"] // 2 + 1, 3), (sizes["rows"], sizes["columns"])
        image_size = (patch[0] * grid[0], patch[1] * grid[1])
        stack = {"d_model": D, "n_heads": H, "n_layers": 1}
        comments.known = {letter: sizes[letter] for letter in "BDHK"} | {"C": 3, "N": grid[0] * grid[1]}
        images = torch.randn(B, 3, *image_size)
        minclip.vit.VisionTransformer(
            VisionTransformerConfig(
                **stack,
                image_size=image_size,
                patch_size=patch,
                pool=pool,
                patch_dropout=0.0 if pool == "last" else patch_dropout,
            )
        )(images)
        new_grid = (grid[1], grid[0] + 1)
        comments.known = {"rows": grid[0], "columns": grid[1], "rows'": new_grid[0], "columns'": new_grid[1]}
        minclip.vit.resize_positions(torch.randn(1 + grid[0] * grid[1], D), grid, new_grid)

        comments.known = {letter: sizes[letter] for letter in "BTDHK"}
        tokens = torch.randint(V, (B, T))
        tokens[:, -1] = 0
        text = {**stack, "vocab_size": V, "context_length": max(T, 3)}
        minclip.text.GPTTextEncoder(GPTTextConfig(**text, end_id=0))(tokens)
        mask = torch.ones(B, T, dtype=torch.bool)
        minclip.text.BertTextEncoder(BertTextConfig(**text, pool=text_pool))(tokens, mask)

        h, w, width, stride = 8 * sizes["h"], 8 * sizes["w"], 4, 1 if stem == "cifar" else 4
        comments.known = {"B": B, "C'": 5 * width, "h'": h // 2, "w'": w // 2}
        feature_map = torch.randn(B, width, h, w)
        minclip.resnet.ResidualBlock(width, 5 * width, stride=2, bottleneck=False)(feature_map)
        comments.known["C'"] = 4 * width
        minclip.modified_resnet.AntialiasedBlock(width, width, stride=2)(feature_map)

        images, residual = torch.randn(B, 3, h, w), {"d_model": width, "image_size": (h, w), "depths": (1,)}
        resnet = ResNetConfig(**residual, block=block, stem=stem)
        comments.known = {"B": B, "D": resnet.width, "d_model": width, "h'": h // stride, "w'": w // stride}
        minclip.resnet.ResNet(resnet)(images)
        modified = ModifiedResNetConfig(**residual, n_heads=2)
        comments.known = {"B": B, "D": modified.width, "d_model": width, "H": 2}
        minclip.modified_resnet.ModifiedResNet(modified)(images)

    run()


def drive_clip(comments: ShapeComments) -> None:
    @given(
        sizes("B", "T", "V", "E", "M"),
        st.sampled_from(["linear", "linear_norm", "residual", "ndlinear", "low_rank"]),
        st.sampled_from(["infonce", "sigmoid", "soft_targets"]),
        st.booleans(),
    )
    def run(sizes, projection, loss, features):
        B, T, V, E, M, D = (sizes[letter] for letter in "BTVEMD")
        comments.known = {"E": E}
        model = CLIP(
            CLIPConfig(
                image=VisionTransformerConfig(
                    d_model=D, n_heads=1, n_layers=1, image_size=(6, 4), patch_size=(2, 2)
                ),
                text=BertTextConfig(d_model=D + 2, n_heads=1, n_layers=1, vocab_size=V, context_length=14),
                embed_dim=E,
                projection=projection,
                loss=loss,
            )
        )
        batch = {
            "images": torch.randn(B, 3, 6, 4),
            "tokens": torch.randint(V, (B, T)),
            "token_mask": torch.ones(B, T, dtype=torch.bool),
            "groups": torch.arange(B) // 2,
        }
        if features:
            batch |= {"image_features": torch.randn(B, D), "text_features": torch.randn(B, D + 2)}
        minclip.gradcache.cached_backward(model, batch, minclip.clip.batch_loss, 2, lambda total: total)
        comments.known = {"B": B, "E": E}
        model(batch["images"], batch["tokens"], batch["token_mask"])
        total, _, _ = minclip.clip.batch_loss(model, batch)
        total.backward()
        comments.known = {"N": B, "M": M, "E": E}
        model.logits(torch.randn(B, E), torch.randn(M, E))

    run()


def drive_evaluation(comments: ShapeComments) -> None:
    @given(sizes("chunk", "blocks", "more", "classes", "templates"))
    def run(sizes):
        chunk, more = sizes["chunk"], sizes["more"]
        N = chunk * min(sizes["blocks"], 3)  # whole blocks: the last one is as large as the others
        M, E = N + more, 8
        comments.known = {"N": N, "M": M, "E": E}
        image_of_text = torch.cat([torch.arange(N), torch.arange(more) % N])
        minclip.retrieval.retrieval(units(N, E, 0), units(M, E, 1), image_of_text, most_scores=chunk * M)

        model = TinyCLIP()
        comments.known = {"N": N, "M": M, "E": E, "D": 3, "B": more}
        records = [record(i, ("a star",)) for i in range(more)]
        minclip.embed.embed_images(model, records, transform)
        minclip.embed.image_features(model, records, transform)
        names = [f"{'a ' * i}star" for i in range(sizes["classes"])]
        templates = [f"{'red ' * i}{{}}" for i in range(sizes["templates"])]
        comments.known = {"E": E, "classes": len(names), "templates": len(templates)}
        minclip.embed.embed_classes(model, TOKENIZER, names, templates)

    run()


def test_shape_comments_are_true(capsys):
    """Nearly all comments of the models are reached, all those are true, and none with two dimensions swapped is."""
    with ShapeComments(*MODULES) as comments:
        drive_language_models(comments)
        drive_encoder_decoder(comments)
        drive_towers(comments)
        drive_clip(comments)
        drive_evaluation(comments)
    with capsys.disabled():
        print(f"\n{comments.summary()}")
    assert len(comments.verified) >= 0.95 * len(comments.comments), "\n".join(
        ["not reached:", *comments.unreached()]
    )
    blind = sorted(comments.swaps - comments.refused)
    print(comments.unreached())
    assert not blind, f"with two dimensions swapped, these would be passed too: {blind}"
