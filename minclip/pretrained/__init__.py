"""Published weights in and out: one file per format, which reads and writes it; load.py and export.py choose."""

from minclip.pretrained.export import Format, export, save_image_tower, save_text_tower
from minclip.pretrained.load import (
    is_published,
    load_clip,
    load_clip_model,
    load_image_tower,
    load_text_tower,
)
from minclip.pretrained.start import pretrained_towers

__all__ = [
    "Format",
    "export",
    "is_published",
    "load_clip",
    "load_clip_model",
    "load_image_tower",
    "load_text_tower",
    "pretrained_towers",
    "save_image_tower",
    "save_text_tower",
]
