"""A language model and its tokenizer: made for a run, kept in its checkpoints, and loaded again."""

from pathlib import Path

from minlm.lm import LMConfig, TransformerLM
from minlm.presets import RunConfig
from minlm.seq2seq import EncoderDecoder, Seq2SeqConfig
from minlm.tokenizer import BPETokenizer, CharTokenizer, load_tokenizer, train_bpe
from minlm.training.checkpoint import check_depth, check_digest, last_checkpoint, load_into
from minlm.training.config import load_config

MODELS = {LMConfig: TransformerLM, Seq2SeqConfig: EncoderDecoder}
Tokenizer = CharTokenizer | BPETokenizer


def make_tokenizer(config: RunConfig, texts: dict[str, str]) -> Tokenizer:
    """The vocabulary the config names; else all characters of the texts, or byte pairs of the training text."""
    if config.vocabulary:
        return load_tokenizer(config.vocabulary)
    specials = ("end", "pad", "start") if isinstance(config.model, Seq2SeqConfig) else ("end",)
    if config.tokens == "characters":
        return CharTokenizer("".join(set().union(*texts.values())), specials if len(specials) > 1 else ())
    return train_bpe(texts["train"], config.model.vocab_size, specials)


def load(path: str | Path) -> tuple[TransformerLM | EncoderDecoder, Tokenizer, RunConfig]:
    """(model in eval mode, tokenizer, config) of a run folder or of one of its checkpoints.

    Raises ValueError where files are missing or damaged, weights and config disagree, numbers are NaN or infinite,
    or the vocabulary is not the one the model was trained with.
    """
    folder = last_checkpoint(Path(path))
    config: RunConfig = load_config(RunConfig, folder / "config.json")
    tokenizer = load_tokenizer(folder)
    check_digest(tokenizer.digest, config.model.vocab_digest, folder)
    start_id = getattr(config.model, "start_id", tokenizer.start_id)  # of an encoder-decoder
    if start_id != tokenizer.start_id:
        raise ValueError(
            f"a reply begins with id {tokenizer.start_id} in the vocabulary of {folder}, its config.json says "
            f"start_id={start_id}: put the run's own config.json back"
        )
    check_depth(config.model.n_layers, folder)
    model = MODELS[type(config.model)](config.model)
    return load_into(model, folder), tokenizer, config
