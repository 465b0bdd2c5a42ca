"""What will go wrong with this data and this config, said before step 0."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from math import log

from tqdm import tqdm

from minclip.clip import CLIP
from minclip.data.dataset import in_threads
from minclip.data.records import Record
from minclip.data.tokenizer import Tokenizer, WordPiece, encode_batch
from minclip.presets import RunConfig
from minclip.pretrained import pretrained_towers
from minclip.runs import check_splits, make_tokenizer
from minclip.towers.vit import VisionTransformerConfig
from minlm.training.findings import Finding, examine_hardware, examine_model, examine_schedule

FEW_PATCHES = 16
MAX_SHARE = 0.05  # of captions cut or images damaged, before it is a problem


def examine(config: RunConfig) -> Iterator[Finding]:
    """Everything that can be known of a run before it starts. ValueError where the data cannot be read."""
    splits = config.data.read()
    yield examine_hardware(config.train)
    for name, records in splits.items():
        captions = sum(len(record.captions) for record in records)
        yield "ok", f"split {name}: {len(records):,} images, {captions:,} captions"
    check_splits(splits)
    tokenizer = make_tokenizer(config, splits["train"])
    config = config.with_tokenizer(tokenizer)
    yield from examine_captions(splits["train"], tokenizer, config.text.context_length)
    yield examine_towers(config)
    if isinstance(config.image, VisionTransformerConfig):
        n = config.image.n_patches
        few = n < FEW_PATCHES
        advice = ", too few to see much: use a smaller patch_size or larger images" if few else ""
        yield "problem" if few else "ok", f"the image tower sees {n} patches{advice}"
    yield from examine_schedule(config.train, len(splits["train"]), "training images")
    size = min(config.train.batch_size, len(splits["train"]))
    chance = f"ln({size}) = {log(size):.3f}"
    yield "ok", f"the loss of a model that knows nothing is {chance}: a run that stays there does not learn"
    yield from examine_images(splits)


def examine_towers(config: RunConfig) -> Finding:
    """Whether the files of weights that the config names fit, and the model of their sizes can be made."""
    try:
        config, _ = pretrained_towers(config)
    except ValueError as error:
        return "problem", str(error)
    return examine_model(lambda: CLIP(config))


def examine_captions(records: Sequence[Record], tokenizer: Tokenizer, length: int) -> Iterator[Finding]:
    """Truncation, unknown words, and captions that stand with several images."""
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
    text = f"{shared:,} captions stand with more than one image"
    if shared:
        text += "; the data groups them" if grouped else "; in one batch they are false negatives"
    yield "note" if shared and not grouped else "ok", text


def examine_images(splits: dict[str, list[Record]]) -> Iterator[Finding]:
    """Decode every image once: damaged files by name, and pictures that stand in two splits."""
    digests: dict[str, set[str]] = {}
    for name, records in splits.items():
        looks = in_threads(look, records)
        found = list(tqdm(looks, f"decoding {name}", len(records), unit="image", leave=False))
        damaged = [message for digest, message in found if not digest]
        digests[name] = {digest for digest, _ in found if digest}
        text = f"split {name}: {len(damaged):,} of {len(records):,} images cannot be decoded"
        text += "".join(f"; {message}" for message in damaged[:3])
        bearable = 0 if name == "dev" else MAX_SHARE * len(records)  # as in training
        yield "problem" if len(damaged) > bearable else "note" if damaged else "ok", text
    for first, second in combinations(digests, 2):
        both = len(digests[first] & digests[second])
        yield "problem" if both else "ok", f"{both:,} pictures stand both in {first} and in {second}"


def look(record: Record) -> tuple[str, str]:
    """(digest of the picture, "") or ("", why it cannot be decoded)."""
    try:
        return hashlib.sha256(record.open().tobytes()).hexdigest(), ""
    except ValueError as error:
        return "", str(error)
