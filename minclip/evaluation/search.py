"""Embeddings of the images in a folder, cached beside the model so that the next search decodes only new images."""

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from minclip.clip import CLIP
from minclip.data.records import Record, open_image, warn_of_missing
from minclip.data.transforms import ImageTransform
from minclip.evaluation.embed import embed_images

IMAGE_ENDINGS = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
CACHE_NAME = "search-cache"


def image_files(folder: Path) -> list[Path]:
    """Find the image files of a folder and its subfolders; warn of files with other endings.

    Raises ValueError if the folder is absent or has no image.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: name one that holds images with --folder")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    paths = [path for path in files if path.suffix.lower() in IMAGE_ENDINGS]
    others = Counter(path.suffix.lower() or "without ending" for path in files).items()
    left_out = [f"{count:,} {ending}" for ending, count in sorted(others) if ending not in IMAGE_ENDINGS]
    note = f"; left out: {', '.join(left_out)}" if left_out else ""
    if not paths:
        raise ValueError(f"no image in {folder}: names must end in {', '.join(IMAGE_ENDINGS)}{note}")
    if left_out:
        warnings.warn(f"{len(paths):,} images are searched{note}", stacklevel=2)
    return paths


def embed_folder(
    model: CLIP, transform: ImageTransform, folder: Path, paths: Sequence[Path], checkpoint: Path
) -> tuple[list[Path], Tensor]:
    """Embed images of a folder -> (paths, embeddings (N, E)), without the images that cannot be decoded.

    Embeddings are cached in `search-cache` beside the checkpoint's weights, one file per folder, which may be deleted
    at any time. They are recomputed for files whose size or time has changed, and for another model.
    Raises ValueError if no image can be decoded.
    """
    beside = checkpoint if checkpoint.is_dir() else checkpoint.parent
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    cache = beside / CACHE_NAME / f"{name}.safetensors"
    digest = image_digest(model, transform)
    kept = read_cache(cache, digest)
    key_of = {path: file_key(folder, path) for path in paths}
    new = [path for path in paths if key_of[path] not in kept]
    if new:
        damaged: set[str] = set()
        records = [Record(str(path), partial(open_or_blank, path, damaged), ("",), 0) for path in new]
        embeddings = embed_images(model, records, transform)  # (new, E)
        fresh = {
            key_of[path]: row for path, row in zip(new, embeddings, strict=True) if str(path) not in damaged
        }
        warn_of_missing(damaged, "images that cannot be decoded", "repair or remove them")
        kept |= fresh
    found = [path for path in paths if key_of[path] in kept]
    if not found:
        raise ValueError(f"none of the {len(paths)} images in {folder} can be decoded: repair them")
    embeddings = torch.stack([kept[key_of[path]] for path in found])  # (N, E)
    if new:
        write_cache(cache, digest, [key_of[path] for path in found], embeddings)
    return found, embeddings


def open_or_blank(path: Path, damaged: set[str]) -> Image.Image:
    """Decode an image; on failure, add its path to `damaged` and return a blank image."""
    try:
        return open_image(path)
    except ValueError:
        damaged.add(str(path))
        return Image.new("RGB", (1, 1))


def file_key(folder: Path, path: Path) -> str:
    """Return the key of this version of a file: its name in the folder, its size and its modification time."""
    stat = path.stat()
    return f"{path.relative_to(folder).as_posix()}|{stat.st_size}|{stat.st_mtime_ns}"


def image_digest(model: CLIP, transform: ImageTransform) -> str:
    """Compute the SHA-256 of all that an image embedding depends on: image tower, projection and transform."""
    digest = hashlib.sha256(repr((model.config.image, transform.config, transform.image_size)).encode())
    for part in (model.image_tower, model.image_projection):
        for name, value in part.state_dict().items():
            digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


def read_cache(path: Path, digest: str) -> dict[str, Tensor]:
    """Read {image key: embedding (E)} from a cache file; empty if it is absent, damaged or of another model."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            if metadata["model"] != digest:
                return {}
            return dict(zip(json.loads(metadata["images"]), file.get_tensor("embeddings"), strict=True))
    except Exception:  # absent, or damaged in any way: the embeddings are computed again
        return {}


def write_cache(path: Path, digest: str, keys: list[str], embeddings: Tensor) -> None:
    """Replace a cache file atomically; warn if it cannot be written."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(exist_ok=True)
        save_file({"embeddings": embeddings}, temporary, {"model": digest, "images": json.dumps(keys)})
        os.replace(temporary, path)
    except Exception as error:
        if temporary.exists():
            temporary.unlink()
        warnings.warn(
            f"{path} cannot be written ({error}): the next search embeds the images again", stacklevel=2
        )
