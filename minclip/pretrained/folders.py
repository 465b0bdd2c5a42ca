"""What every exported folder has: weights under their owner's names, a vocabulary, options as JSON."""

from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from minclip.data.clip_bpe import ClipBPE
from minclip.data.tokenizer import Tokenizer
from minlm.pretrained.gpt2 import write_bpe
from minlm.pretrained.key_map import Row, export_weights
from minlm.tokenizer import BPETokenizer
from minlm.training.files import write_json


def require(to: str, *conditions: tuple[bool, str]) -> None:
    """ValueError with every reason whose condition does not hold."""
    reasons = [reason for holds, reason in conditions if not holds]
    if reasons:
        raise ValueError(f"this model cannot be written as {to}: {'; '.join(reasons)} (try another --to)")


def write_weights(model: nn.Module, rows: Iterable[Row], path: Path) -> None:
    weights = export_weights(model.state_dict(), rows, "the model")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path, {"format": "pt"})


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """The vocabulary, in files that Hugging Face's tokenizers read too."""
    tokenizer.save(folder)
    if isinstance(tokenizer, BPETokenizer):
        write_bpe(tokenizer, folder)
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    elif isinstance(tokenizer, ClipBPE):
        write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokenizer.tokens)})
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer"})
    else:
        options = {"tokenizer_class": "BertTokenizer", "do_lower_case": tokenizer.lower_case}
        write_json(folder / "tokenizer_config.json", options)
