"""Published weights in and out: towers and whole CLIPs, in the formats of their owners."""

from minclip.pretrained.clips import is_published, load_clip, load_clip_model
from minclip.pretrained.export import Format, export
from minclip.pretrained.owners import save_image_tower, save_text_tower
from minclip.pretrained.start import pretrained_towers
from minclip.pretrained.towers import load_image_tower, load_text_tower

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
