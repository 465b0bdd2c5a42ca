"""The doctor names each thing that will go wrong with a text, and nothing where all is well."""

import math
from dataclasses import replace

import pytest

from minlm.data import TextFileConfig
from minlm.doctor import examine, examine_leakage, examine_script
from minlm.lm import LMConfig
from minlm.presets import RunConfig
from minlm.runs import make_tokenizer
from minlm.screenplay.script import parse_script, reply_pairs
from minlm.seq2seq import Seq2SeqConfig
from minlm.task import TASKS
from minlm.tokenizer import CharTokenizer
from minlm.training.state import TrainConfig

SIZES = {"d_model": 8, "n_heads": 2, "n_layers": 1}


def scene(i, line="How many doors has number {}?"):
    return f"INT. ROOM {i} - DAY\n\nADA\n{line.format(i)}\n\nBEN\nThere are {i} of them.\n"


GOOD = [scene(i) for i in range(20)]


def findings(tmp_path, text, model=None, **changes):
    (tmp_path / "text.txt").write_text(text)
    options = {"data": TextFileConfig(path=str(tmp_path / "text.txt"), validation_fraction=0.25)} | changes
    config = RunConfig(
        model=model or LMConfig(**SIZES, context_length=32),
        train=options.pop("train", TrainConfig(steps=100, batch_size=4)),
        **options,
    )
    return list(examine(config)), config


def task_of(config, tokenizer, texts, folder):
    return TASKS[type(config.model)](config, tokenizer, texts, folder)


def told(found, part):
    """The one finding with these words in it."""
    [finding] = [(level, text) for level, text in found if part in text]
    return finding


def problems(found):
    return [text for level, text in found if level == "problem"]


@pytest.mark.parametrize("model", [None, Seq2SeqConfig(**SIZES, context_length=32)])
def test_nothing_is_wrong_with_a_good_script(tmp_path, model):
    found, config = findings(tmp_path, "\n".join(GOOD), model)
    texts = config.data.read()
    assert {level for level, _ in found} == {"ok"}
    for name, text in texts.items():
        told(found, f"split {name}: {len(text):,} characters")
    script = parse_script(texts["train"])
    told(found, f"a script of {len(script.scenes)} scenes, {len(script.turns)} turns, 2 characters")
    tokenizer = make_tokenizer(config, texts)
    losses = task_of(config, tokenizer, texts, tmp_path).baselines()
    told(found, f"of unigrams {losses['unigram']:.3f}, of bigrams {losses['bigram']:.3f}")
    n = tokenizer.vocab_size
    told(found, f"in nats per character at chance {losses['chance']:.3f}")
    told(found, f"ln({n}) = {math.log(n):.3f} nats per token")
    n_items = len(reply_pairs(script)) if model else (len(texts["train"]) - 32) // 32  # windows of 32
    assert f"at most 100 steps, {100 / (n_items // 4):.1f} epochs" in told(found, "at most 100 steps")[1]


def test_lines_that_stand_in_both_splits_are_leakage(tmp_path):
    lines = [f"line number {i} of a text that is plain\n" for i in range(40)]
    few = "".join([*lines, lines[3]])
    level, text = told(findings(tmp_path, few)[0], "are also in training")
    assert (level, text) == (
        "note",
        "1 of 10 long lines of validation are also in training, as 'line number 3 of a text that is plain'",
    )
    many = "".join(lines[:8]) * 5
    assert "10 of 10 long lines" in problems(findings(tmp_path, many)[0])[0]


@pytest.mark.parametrize("line, long", [("x" * 29, 0), ("x" * 30, 1), (" " * 10 + "x" * 25, 0)])
def test_a_short_line_may_stand_in_both_splits(line, long):
    _, text = examine_leakage({"train": f"{line}\n", "validation": f"{line}\nanother"})
    assert text.startswith(f"{long} of {long} long lines")


def test_a_plain_text_is_a_problem_only_for_replies(tmp_path):
    text = "".join(f"once upon a time there was a king of {i} towns\n" for i in range(40))
    level, said = told(findings(tmp_path, text)[0], "read as plain text: no dialogue found")
    assert level == "note"
    (tmp_path / "text.txt").write_text(text)
    config = RunConfig(
        model=Seq2SeqConfig(**SIZES),
        data=TextFileConfig(path=str(tmp_path / "text.txt"), validation_fraction=0.25),
        train=TrainConfig(steps=9),
    )
    found = []
    with pytest.raises(ValueError, match="no dialogue found"):
        found.extend(examine(config))
    first = [finding for _, finding in zip(range(5), examine(config), strict=False)]
    assert ("problem", said) in first


MISREAD = {
    "only": (
        "The sea is grey and nobody is there to see it. " * 40 + "\n\nADA\nYes.\n\n",
        "only 0% of its words are",
    ),
    "empty": ("ADA\n(nods)\n\nBEN\nYes.\n\n" * 10, "10 of 20 turns are empty"),
    "giant": (
        "ADA\n" + "and so on\n" * 250 + "\nBEN\nYes.\n\n",
        "ADA says 750 words in one turn, from 'and so on",
    ),
}


@pytest.mark.parametrize("needed, level", [(True, "problem"), (False, "note")])
@pytest.mark.parametrize("text, message", MISREAD.values(), ids=MISREAD)
def test_a_script_that_was_misread_is_told(text, message, needed, level):
    first, *others = examine_script(text, needed)
    assert first[0] == "ok"
    assert [(found, said[: len(message)]) for found, said in others] == [(level, message)]
    assert others[0][1].endswith("is its layout read right?")


@pytest.mark.parametrize("n_scenes, told_of", [(3, 1), (40, 0)])
def test_scenes_too_few_for_a_split_are_told(tmp_path, n_scenes, told_of):
    path = tmp_path / "text.txt"
    data = TextFileConfig(path=str(path), split="scenes", validation_fraction=0.1)
    found, _ = findings(tmp_path, "\n".join(map(scene, range(n_scenes))), data=data)
    note = (
        "note",
        "its scenes are too few or too long to hold out 10%: the end of the text is held out instead",
    )
    assert found.count(note) == told_of


def test_a_context_longer_than_the_text_is_told(tmp_path):
    found, config = findings(tmp_path, "\n".join(GOOD), LMConfig(**SIZES, context_length=5000))
    n_validation = len(config.data.read()["validation"])
    level, text = told(found, "would be shortened")
    assert (level, text) == ("note", f"context_length=5000 would be shortened to {n_validation - 1}")


@pytest.mark.parametrize("n_scenes, level", [(20, "problem"), (60, "note")])
def test_replies_cut_are_counted(tmp_path, n_scenes, level):
    long = scene(99, "{} " + "and so on " * 9)
    text = "\n".join([long, *map(scene, range(n_scenes))])
    found, config = findings(tmp_path, text, Seq2SeqConfig(**SIZES, context_length=32))
    n = len(reply_pairs(parse_script(config.data.read()["train"])))
    assert (level, f"train: {n} pairs, 1 ({1 / n:.1%}) cut at context_length=32") in found


def test_too_large_a_batch_would_be_lowered(tmp_path):
    train = TrainConfig(steps=100, batch_size=500)
    found = findings(tmp_path, "\n".join(GOOD), train=train)[0]
    assert any(level == "note" and text.endswith("windows of training text") for level, text in found)
    seq2seq = Seq2SeqConfig(**SIZES, context_length=32)
    note = "--train.batch_size 500 would be lowered to 15: there are 15 pairs"
    assert ("note", note) in findings(tmp_path, "\n".join(GOOD), seq2seq, train=train)[0]


def test_too_short_a_warm_up_is_a_problem(tmp_path):
    train = TrainConfig(steps=5, batch_size=4)
    assert "warm-up takes 0 of them" in problems(findings(tmp_path, "\n".join(GOOD), train=train)[0])[0]


def test_a_vocabulary_that_cannot_be_used_is_refused(tmp_path):
    text = "\n".join(GOOD)
    for name, tokenizer in {"plain": CharTokenizer(text), "short": CharTokenizer("abc")}.items():
        tokenizer.save(tmp_path / name)
    with pytest.raises(ValueError, match="needs start, end and pad ids"):
        findings(tmp_path, text, Seq2SeqConfig(**SIZES), vocabulary=str(tmp_path / "plain"))
    with pytest.raises(ValueError, match="is not among the 3 characters"):
        findings(tmp_path, text, vocabulary=str(tmp_path / "short"))


def test_byte_pairs_are_counted(tmp_path):
    model = replace(LMConfig(**SIZES, context_length=16), vocab_size=270)
    found, config = findings(tmp_path, "\n".join(GOOD), model, tokens="byte-pairs")
    _, text = told(found, "of 270 kinds")
    n_tokens = int(text.split(" tokens")[0].replace(",", ""))
    n_characters = len(config.data.read()["train"])
    assert n_tokens < n_characters
    assert text.endswith(f"{n_characters / n_tokens:.2f} characters per token")


@pytest.mark.parametrize(
    "positions, message",
    [
        ("rotary", "the head size 3 = d_model / n_heads is odd: rotary positions need an even one"),
        ("sinusoidal", "d_model=9 is odd: sinusoidal positions need an even width"),
    ],
)
def test_a_model_that_cannot_be_made_is_a_problem(tmp_path, positions, message):
    model = LMConfig(d_model=9, n_heads=3, n_layers=1, context_length=32, positions=positions)
    assert problems(findings(tmp_path, "\n".join(GOOD), model)[0]) == [message]


def test_a_precision_that_the_machine_lacks_is_a_problem(tmp_path):
    train = TrainConfig(steps=100, batch_size=4, device="cpu", precision="fp16")
    assert problems(findings(tmp_path, "\n".join(GOOD), train=train)[0]) == [
        "--train.precision fp16 needs a GPU: use bf16 or float32 on a CPU"
    ]
