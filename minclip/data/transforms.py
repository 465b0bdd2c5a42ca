"""From a picture to the image tower's input, with Pillow for resampling and torch for normalisation.

Evaluation is the preprocessing of CLIP as published: resize until the target is just covered, crop its
centre, normalise. Training takes a random-resized crop (Szegedy et al. 2015, section 6) and may flip it.
"""

import math
import random
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minlm.training.bounds import Bounded, at_least, within

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
MAX_STRETCH = 4 / 3  # a crop is wider or higher than the target by at most this factor
CROP_ATTEMPTS = 10  # both as in Inception's training
WHOLE_RESIZE = 16  # pictures are resized whole, then cropped, up to this many times the target's area


@dataclass(frozen=True, kw_only=True)
class TransformConfig(Bounded):
    """How pictures become tensors.

    mean: subtracted from each colour, which lies in 0 to 1 (default: CLIP's)
    std: each colour is divided by it (default: CLIP's)
    interpolation: how pictures are resampled
    crop_scale: range of the share of a picture's area that a training crop shows; 1 1 = no random crop
    flip: mirror half of the training pictures; leave it off where captions say left and right
    color_jitter: brightness, contrast and saturation of training pictures each change by up to this share
    """

    mean: tuple[float, float, float] = OPENAI_MEAN
    std: Annotated[tuple[float, float, float], at_least(1e-6)] = OPENAI_STD
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    crop_scale: Annotated[tuple[float, float], within("(0, 1]")] = (1.0, 1.0)
    flip: bool = False
    color_jitter: Annotated[float, within("[0, 1]")] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean={self.mean} and std={self.std} must be three finite colours each")
        if self.interpolation not in RESAMPLING:
            raise ValueError(f"interpolation={self.interpolation!r} must be one of {', '.join(RESAMPLING)}")
        if len(self.crop_scale) != 2 or self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale={self.crop_scale} must be two shares of the area, low,high")


class ImageTransform:
    """Picture of any size -> (C, h, w) float32, normalised.

    In training (`train=True`) the crop and the flip are drawn from the `rng` that each call is given, and
    from nothing else; otherwise the result is that of CLIP's evaluation, bit for bit.
    """

    def __init__(self, config: TransformConfig, image_size: tuple[int, int], train: bool):
        """image_size: height and width of the tensors, in pixels."""
        self.config, self.image_size = config, image_size
        self.crops = train and min(config.crop_scale) < 1
        self.flips = train and config.flip
        self.color_jitters = train and config.color_jitter > 0
        self.mean = torch.tensor(config.mean).view(3, 1, 1)
        self.std = torch.tensor(config.std).view(3, 1, 1)

    def __call__(self, image: Image.Image, rng: random.Random | None = None) -> Tensor:
        """RGB picture -> (C, h, w). Raises ValueError where a random view is wanted and there is no `rng`."""
        if rng is None and (self.crops or self.flips or self.color_jitters):
            raise ValueError(
                "a training transform draws crops, flips and colours: call it with rng=random.Random(seed)"
            )
        image = self.random_crop(image, rng) if self.crops else self.cover(image)
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()  # (C, h, w)
        colours = pixels.float().div_(255)
        if self.color_jitters:
            colours = self.change_colours(colours, rng)
        normal = colours.sub_(self.mean).div_(self.std)
        return normal.flip(-1) if self.flips and rng.random() < 0.5 else normal

    def cover(self, image: Image.Image) -> Image.Image:
        """Resize so that the target is just covered, then crop its centre; the target's size.

        For a square target this is `Resize(size)` and `CenterCrop(size)` of torchvision, with their rounding:
        the longer side is rounded down, the crop's corner to the nearest (half to even). For other targets
        the side that needs the larger scale is made to fit exactly and the other one is cropped.
        """
        height, width = self.image_size
        if height * image.width >= width * image.height:
            resized = (int(height * image.width / image.height), height)
        else:
            resized = (width, int(width * image.height / image.width))
        resampling = RESAMPLING[self.config.interpolation]
        left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
        if resized[0] * resized[1] <= WHOLE_RESIZE * height * width:
            return image.resize(resized, resampling).crop((left, top, left + width, top + height))
        # Of a long strip, which would take gigabytes, only the part that is shown is resized. It is cut out first, with
        # as much around it as bicubic weights reach, for Pillow rounds the corners of a box to float32.
        x, y = image.width / resized[0], image.height / resized[1]  # source pixels per pixel
        right, bottom = (left + width) * x, (top + height) * y
        margin = math.ceil(2 * max(x, y, 1)) + 1
        first_x, first_y = max(0, int(left * x) - margin), max(0, int(top * y) - margin)
        last_x = min(image.width, math.ceil(right) + margin)
        last_y = min(image.height, math.ceil(bottom) + margin)
        box = (left * x - first_x, top * y - first_y, right - first_x, bottom - first_y)
        part = image.crop((first_x, first_y, last_x, last_y))
        return part.resize((width, height), resampling, box=box)

    def random_crop(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """A part of the picture of random area, stretch and place, cut and resized in one pass.

        Area: uniform in `crop_scale`. Stretch: width over height, relative to the target's, log-uniform
        within MAX_STRETCH. When no attempt fits into the picture, its centre is taken as in evaluation.
        """
        height, width = self.image_size
        for _ in range(CROP_ATTEMPTS):
            area = image.width * image.height * rng.uniform(*self.config.crop_scale)
            limit = math.log(MAX_STRETCH)
            aspect = width / height * math.exp(rng.uniform(-limit, limit))
            crop_width, crop_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
            if crop_width <= image.width and crop_height <= image.height:
                left = rng.uniform(0, image.width - crop_width)
                top = rng.uniform(0, image.height - crop_height)
                right, bottom = min(left + crop_width, image.width), min(top + crop_height, image.height)
                box = (left, top, right, bottom)
                return image.resize((width, height), RESAMPLING[self.config.interpolation], box=box)
        return self.cover(image)

    def change_colours(self, colours: Tensor, rng: random.Random) -> Tensor:
        """Brightness times b, contrast times c about the mean, saturation times s about each pixel's grey.

        colours (C, h, w) in 0 to 1; b, c and s are uniform within `jitter` of one; clipped to 0 to 1 at the end.
        """
        b, c, s = (1 + rng.uniform(-self.config.color_jitter, self.config.color_jitter) for _ in range(3))
        grey = colours.mean(dim=0, keepdim=True)  # (1, h, w)
        mean = grey.mean()
        return (b * (mean + c * (grey - mean) + c * s * (colours - grey))).clamp_(0, 1)

    def shrink(self, image: Image.Image) -> Image.Image:
        """Reduce an image to what training needs of it, to be kept in memory and cropped anew in each epoch.

        Without random crops it is all that the transform shows, and the transform's result stays the same. With
        them, the smallest crop, stretched, keeps the target's pixels; images of less than twice the area that this
        takes are returned as they are.
        """
        if not self.crops:
            return self.cover(image)
        height, width = self.image_size
        area = height * width * MAX_STRETCH / self.config.crop_scale[0]
        scale = max(
            math.sqrt(area / (image.width * image.height)), width / image.width, height / image.height
        )
        if scale > math.sqrt(1 / 2):
            return image
        size = (math.ceil(image.width * scale), math.ceil(image.height * scale))
        return image.resize(size, Image.Resampling.HAMMING)  # as fast as bilinear, and sharper

    def invert(self, images: Tensor) -> Image.Image:
        """(C, h, w) -> the picture it was made from, for plots; colours out of range are clipped."""
        pixels = (images.detach().cpu() * self.std + self.mean).mul(255).round().clamp(0, 255)
        return Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())  # (h, w, C)
