"""The model and tokenizer of a run: made for it, and loaded from its checkpoints."""

from pathlib import Path

from minlm.lm import LMConfig, TransformerLM
from minlm.presets import RunConfig
from minlm.seq2seq import EncoderDecoder, Seq2SeqConfig
from minlm.tokenizer import CharTokenizer, Tokenizer, load_tokenizer, train_bpe
from minlm.training.checkpoint import check_depth, check_digest, last_checkpoint, load_into
from minlm.training.config import load_config

MODELS = {LMConfig: TransformerLM, Seq2SeqConfig: EncoderDecoder}


def make_tokenizer(config: RunConfig, texts: dict[str, str]) -> Tokenizer:
    """Load the config's vocabulary, or make one: all characters of the texts, or byte pairs of the training text."""
    if config.vocabulary:
        return load_tokenizer(config.vocabulary)
    specials = ("end", "pad", "start") if isinstance(config.model, Seq2SeqConfig) else ("end",)
    if config.tokens == "characters":
        return CharTokenizer("".join(set().union(*texts.values())), specials if len(specials) > 1 else ())
    return train_bpe(texts["train"], config.model.vocab_size, specials)


def load(path: str | Path) -> tuple[TransformerLM | EncoderDecoder, Tokenizer, RunConfig]:
    """Load (model in eval mode, tokenizer, config) of a run's folder or one of its checkpoints.

    Raises ValueError if files are missing or damaged, weights and config disagree, weights are NaN or infinite, or the
    vocabulary is not the one of training.
    """
    folder = last_checkpoint(Path(path))
    config: RunConfig = load_config(RunConfig, folder / "config.json")
    tokenizer = load_tokenizer(folder)
    check_digest(tokenizer.digest, config.model.vocab_digest, folder)
    check_depth(config.model.n_layers, folder)
    model = MODELS[type(config.model)](config.model)
    if isinstance(model, EncoderDecoder) and model.config.start_id != tokenizer.start_id:
        raise ValueError(
            f"a reply begins with id {tokenizer.start_id} in the vocabulary of {folder}, its config.json says "
            f"start_id={model.config.start_id}: put the run's own config.json back"
        )
    load_into(model, folder)
    return model, tokenizer, config
