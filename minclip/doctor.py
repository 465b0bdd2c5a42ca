"""Problems of a config and its data, reported before training."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import log

from tqdm import tqdm

from minclip.clip import CLIP
from minclip.config import RunConfig
from minclip.data.dataset import in_threads
from minclip.data.records import Record
from minclip.data.tokenizer import Tokenizer, WordPiece, encode_batch
from minclip.pretrained import pretrained_towers
from minclip.runs import check_splits, make_tokenizer
from minclip.towers.vit import VisionTransformerConfig
from minlm.training.findings import Finding, examine_hardware, examine_model, examine_schedule

FEW_PATCHES = 16
MAX_SHARE = 0.05  # of captions cut or images damaged; more is a problem


def examine(config: RunConfig) -> Iterator[Finding]:
    """Check data, tokenizer, model, schedule and images of a run; ValueError if the data cannot be read."""
    splits = config.data.read()
    yield examine_hardware(config.train)
    for name, records in splits.items():
        captions = sum(len(record.captions) for record in records)
        yield "ok", f"split {name}: {len(records):,} images, {captions:,} captions"
    check_splits(splits)
    tokenizer = make_tokenizer(config, splits["train"])
    config = config.with_tokenizer(tokenizer)
    yield from examine_captions(splits["train"], tokenizer, config.model.text.context_length)
    yield examine_towers(config)
    if isinstance(config.model.image, VisionTransformerConfig):
        n = config.model.image.n_patches
        few = n < FEW_PATCHES
        advice = f", fewer than {FEW_PATCHES}: use a smaller patch_size or larger images" if few else ""
        yield "problem" if few else "ok", f"the image tower has {n} patches{advice}"
    yield from examine_schedule(config.train, len(splits["train"]), "training images")
    size = min(config.train.batch_size, len(splits["train"]))
    yield "ok", f"the loss at chance is ln({size}) = {log(size):.3f}: a run that stays there does not learn"
    yield from examine_images(splits)


def examine_towers(config: RunConfig) -> Finding:
    """Check that the config's pretrained weights match it and that the model can be built."""
    try:
        with_towers, _ = pretrained_towers(config.model)
    except ValueError as error:
        return "problem", str(error)
    return examine_model(lambda: CLIP(with_towers))


def examine_captions(records: Sequence[Record], tokenizer: Tokenizer, length: int) -> Iterator[Finding]:
    """Count captions that are cut, words unknown to the vocabulary, and captions shared by several images."""
    captions = [caption for record in records for caption in record.captions]
    tokens, _, cut = encode_batch(tokenizer, captions, length)
    text = f"{cut:,} of {len(captions):,} captions ({cut / len(captions):.2%}) are cut at context_length={length}"
    text += f"; the longest row has {tokens.shape[1]} tokens"
    yield "problem" if cut > MAX_SHARE * len(captions) else "note" if cut else "ok", text
    if isinstance(tokenizer, WordPiece):
        unknown = int((tokens == tokenizer.unk_id).sum())
        yield "note" if unknown else "ok", f"{unknown:,} words of the captions are unknown to the vocabulary"

    images_of = Counter(caption for record in records for caption in set(record.captions))
    shared = sum(count for count in images_of.values() if count > 1)
    grouped = len({record.group for record in records}) < len(records)
    text = f"{shared:,} captions belong to more than one image"
    if shared:
        text += "; the data groups them" if grouped else "; in one batch they are false negatives"
    yield "note" if shared and not grouped else "ok", text


def examine_images(splits: Mapping[str, Sequence[Record]]) -> Iterator[Finding]:
    """Decode every image once; report damaged files by name and images that are in two splits."""
    digests: dict[str, set[str]] = {}
    for name, records in splits.items():
        decoded = in_threads(image_digest, records)
        found = list(tqdm(decoded, f"decoding {name}", len(records), unit="image", leave=False))
        damaged = [message for digest, message in found if not digest]
        digests[name] = {digest for digest, _ in found if digest}
        text = f"split {name}: {len(damaged):,} of {len(records):,} images cannot be decoded"
        text += "".join(f"; {message}" for message in damaged[:3])
        allowed = 0 if name == "dev" else MAX_SHARE * len(records)  # as in training
        yield "problem" if len(damaged) > allowed else "note" if damaged else "ok", text
    for first, second in combinations(digests, 2):
        both = len(digests[first] & digests[second])
        yield "problem" if both else "ok", f"{both:,} images are in both {first} and {second}"


def image_digest(record: Record) -> tuple[str, str]:
    """Return (SHA-256 of the decoded image, ""), or ("", reason) if it cannot be decoded."""
    try:
        return hashlib.sha256(record.open().tobytes()).hexdigest(), ""
    except ValueError as error:
        return "", str(error)
