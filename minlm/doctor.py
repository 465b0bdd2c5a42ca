"""Problems of a text and a config, reported before step 0."""

from collections.abc import Iterator
from math import log
from pathlib import Path
from tempfile import TemporaryDirectory

from minlm.data import TextFileConfig
from minlm.presets import RunConfig
from minlm.runs import MODELS, make_tokenizer
from minlm.screenplay.script import parse_script, read_script
from minlm.seq2seq import Seq2SeqConfig
from minlm.task import Continuation, Replies, TokenTask
from minlm.tokenizer import Tokenizer
from minlm.training.findings import Finding, examine_hardware, examine_model, examine_schedule

MAX_SHARE = 0.05  # of replies cut; more is a problem
MIN_SPOKEN = 0.1  # of a script's words
MAX_EMPTY = 0.05  # of its turns
LONG_TURN = 600  # words
LONG_LINE = 30  # characters; shorter lines may be in both splits by chance


def examine(config: RunConfig) -> Iterator[Finding]:
    """Examine a run before it starts. ValueError if the text cannot be read."""
    texts = config.data.read()
    yield examine_hardware(config.train)
    for name, text in texts.items():
        yield "ok", f"split {name}: {len(text):,} characters"
    yield examine_leakage(texts)
    if isinstance(config.data, TextFileConfig):
        yield from examine_scenes(config.data)
    yield from examine_script(texts["train"], needed=isinstance(config.model, Seq2SeqConfig))
    tokenizer = make_tokenizer(config, texts)
    config = config.with_tokenizer(tokenizer)
    yield examine_model(lambda: MODELS[type(config.model)](config.model))
    examined = examine_replies if isinstance(config.model, Seq2SeqConfig) else examine_windows
    yield from examined(config, tokenizer, texts)


def examine_leakage(texts: dict[str, str]) -> Finding:
    """Count long lines of the validation text that are also in the training text."""
    known = set(texts["train"].split("\n"))
    lines = [line for line in texts["validation"].split("\n") if len(line.strip()) >= LONG_LINE]
    both = [line for line in lines if line in known]
    text = f"{len(both):,} of {len(lines):,} long lines of validation are also in training"
    if both:
        text += f", as {both[0].strip()[:60]!r}"
    return "problem" if 2 * len(both) > len(lines) > 0 else "note" if both else "ok", text


def examine_script(text: str, needed: bool) -> Iterator[Finding]:
    """Report a script's scenes and speakers, and signs that it was misread: problems if the script is `needed`."""
    level = "problem" if needed else "note"
    try:
        script = parse_script(text)
    except ValueError as error:
        yield level, f"read as plain text: {error}"
        return
    turns, names = script.turns, {turn.character for turn in script.turns}
    lengths = [len(turn.line.split()) for turn in turns]
    share = sum(lengths) / len(text.split())
    counts = f"{len(script.scenes):,} scenes, {len(turns):,} turns, {len(names):,} characters"
    yield "ok", f"a script of {counts}; {share:.0%} of its words are spoken"
    if share < MIN_SPOKEN:
        yield level, f"only {share:.0%} of its words are spoken: is its layout read right?"
    n_empty, longest = lengths.count(0), lengths.index(max(lengths))
    if n_empty > MAX_EMPTY * len(turns):
        yield level, f"{n_empty:,} of {len(turns):,} turns are empty: is its layout read right?"
    if lengths[longest] > LONG_TURN:
        text = f"{turns[longest].character} says {lengths[longest]:,} words in one turn"
        yield level, f"{text}, from {turns[longest].line[:40]!r} on: is its layout read right?"


def examine_scenes(data: TextFileConfig) -> Iterator[Finding]:
    """Report scenes that are too few or too long for a split by scenes."""
    if data.split == "scenes" and data.scene_splits(read_script(data.path)) is None:
        text = f"its scenes are too few or too long to hold out {data.validation_fraction:.0%}"
        yield "note", f"{text}: the end of the text is held out instead"


def examine_windows(config: RunConfig, tokenizer: Tokenizer, texts: dict[str, str]) -> Iterator[Finding]:
    """Report tokens, context and epochs of a run that continues text."""
    with TemporaryDirectory() as folder:
        task = Continuation(config, tokenizer, texts, Path(folder))
        n_train = len(task.splits["train"])
        per_token = len(texts["train"]) / n_train
        yield (
            "ok",
            f"{n_train:,} tokens of {tokenizer.vocab_size:,} kinds, {per_token:.2f} characters per token",
        )
        length = task.config.model.context_length
        if length < config.model.context_length:
            yield "note", f"context_length={config.model.context_length} would be shortened to {length}"
        yield from examine_schedule(config.train, len(task.dataset), "windows of training text")
        yield examine_baselines(task)


def examine_replies(config: RunConfig, tokenizer: Tokenizer, texts: dict[str, str]) -> Iterator[Finding]:
    """Report pairs, cut lines and epochs of a run that replies."""
    task, length = Replies(config, tokenizer, texts, Path()), config.model.context_length
    for name, pairs in {"train": task.dataset, "validation": task.validation}.items():
        share = pairs.n_cut / len(pairs)
        text = f"{name}: {len(pairs):,} pairs, {pairs.n_cut:,} ({share:.1%}) cut at context_length={length}"
        yield "problem" if share > MAX_SHARE else "note" if pairs.n_cut else "ok", text
    yield from examine_schedule(config.train, len(task.dataset), "pairs")
    yield examine_baselines(task)


def examine_baselines(task: TokenTask) -> Finding:
    """Report baselines on the validation split."""
    losses = task.baselines()
    return "ok", (
        f"validation loss in nats per character at chance {losses['chance']:.3f}, of unigrams "
        f"{losses['unigram']:.3f}, of bigrams {losses['bigram']:.3f}; "
        f"chance is ln({task.tokenizer.vocab_size}) = {log(task.tokenizer.vocab_size):.3f} nats per token"
    )
