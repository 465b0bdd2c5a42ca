"""Image transforms: Pillow resamples, torch normalises.

Evaluation is CLIP's published preprocessing: resize until the target is just covered, crop the centre, normalise.
Training can take a random resized crop (Szegedy et al. 2015, section 6), flip it and change its colours.
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
MAX_STRETCH = 4 / 3  # largest aspect ratio of a crop, relative to the target's
CROP_ATTEMPTS = 10  # both as in Inception's training
WHOLE_RESIZE = 16  # images are resized whole, then cropped, up to this many times the target's area


@dataclass(frozen=True, kw_only=True)
class TransformConfig(Bounded):
    """Preprocessing of images.

    mean: subtracted from each colour, which lies in 0 to 1 (default: CLIP's)
    std: each colour is divided by it (default: CLIP's)
    interpolation: resampling filter
    crop_scale: smallest and largest share of the image's area in a training crop; 1 1 = no random crop
    flip: mirror half of the training images; leave it off where captions say left and right
    color_jitter: brightness, contrast and saturation of training images each change by up to this share
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
    """Image of any size -> normalised tensor (C, h, w) float32.

    With `train=True`, crop, colours and flip are drawn from the `rng` of each call alone. Otherwise the result is
    that of CLIP's evaluation, bit for bit.
    """

    def __init__(self, config: TransformConfig, image_size: tuple[int, int], train: bool):
        """Prepare the transform; image_size: height and width of the tensors, in pixels."""
        self.config, self.image_size = config, image_size
        self.resampling = RESAMPLING[config.interpolation]
        self.crops = train and min(config.crop_scale) < 1
        self.flips = train and config.flip
        self.color_jitters = train and config.color_jitter > 0
        self.mean = torch.tensor(config.mean).view(3, 1, 1)
        self.std = torch.tensor(config.std).view(3, 1, 1)

    def __call__(self, image: Image.Image, rng: random.Random | None = None) -> Tensor:
        """Transform an RGB image to (C, h, w). ValueError if a random view is wanted without `rng`."""
        if rng is None:
            if self.crops or self.flips or self.color_jitters:
                raise ValueError("a training transform draws its views: call it with rng=random.Random(seed)")
            rng = random.Random(0)  # nothing is drawn from it
        image = self.random_crop(image, rng) if self.crops else self.cover(image)
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()  # (C, h, w)
        colours = pixels.float().div_(255)
        if self.color_jitters:
            colours = self.change_colours(colours, rng)
        normal = colours.sub_(self.mean).div_(self.std)
        return normal.flip(-1) if self.flips and rng.random() < 0.5 else normal

    def cover(self, image: Image.Image) -> Image.Image:
        """Resize until the target is just covered, then crop the centre to the target's size.

        For a square target this is torchvision's `Resize(size)` and `CenterCrop(size)`, with their rounding: the
        longer side is rounded down, the crop's corner to the nearest integer (half to even).
        """
        height, width = self.image_size
        if height * image.width >= width * image.height:
            resized = (int(height * image.width / image.height), height)
        else:
            resized = (width, int(width * image.height / image.width))
        left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
        if resized[0] * resized[1] > WHOLE_RESIZE * height * width:
            return self.part_of_strip(image, resized, left, top)
        return image.resize(resized, self.resampling).crop((left, top, left + width, top + height))

    def part_of_strip(self, image: Image.Image, resized: tuple[int, int], left: int, top: int) -> Image.Image:
        """Resize only the visible part of a long strip, which would take gigabytes as a whole.

        The part is cut out first, with a margin that bicubic weights reach: Pillow rounds a box to float32.
        """
        height, width = self.image_size
        x, y = image.width / resized[0], image.height / resized[1]  # source pixels per pixel
        right, bottom = (left + width) * x, (top + height) * y
        margin = math.ceil(2 * max(x, y, 1)) + 1
        first_x, first_y = max(0, int(left * x) - margin), max(0, int(top * y) - margin)
        last_x = min(image.width, math.ceil(right) + margin)
        last_y = min(image.height, math.ceil(bottom) + margin)
        box = (left * x - first_x, top * y - first_y, right - first_x, bottom - first_y)
        part = image.crop((first_x, first_y, last_x, last_y))
        return part.resize((width, height), self.resampling, box=box)

    def random_crop(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """Cut a box of random area, aspect ratio and position out of the image and resize it to the target.

        The area is uniform in `crop_scale`; the aspect ratio, relative to the target's, is log-uniform within
        MAX_STRETCH. If no attempt fits into the image, the centre is taken as in evaluation.
        """
        height, width = self.image_size
        limit = math.log(MAX_STRETCH)
        for _ in range(CROP_ATTEMPTS):
            area = image.width * image.height * rng.uniform(*self.config.crop_scale)
            aspect = width / height * math.exp(rng.uniform(-limit, limit))
            crop_width, crop_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
            if crop_width <= image.width and crop_height <= image.height:
                left = rng.uniform(0, image.width - crop_width)
                top = rng.uniform(0, image.height - crop_height)
                right, bottom = min(left + crop_width, image.width), min(top + crop_height, image.height)
                return image.resize((width, height), self.resampling, box=(left, top, right, bottom))
        return self.cover(image)

    def change_colours(self, colours: Tensor, rng: random.Random) -> Tensor:
        """Scale brightness by b, contrast about the mean by c, and saturation about each pixel's grey by s.

        colours (C, h, w) in 0 to 1. b, c and s are uniform within `color_jitter` of 1. The result is clipped.
        """
        b, c, s = (1 + rng.uniform(-self.config.color_jitter, self.config.color_jitter) for _ in range(3))
        grey = colours.mean(dim=0, keepdim=True)  # (1, h, w)
        mean = grey.mean()
        return (b * (mean + c * (grey - mean) + c * s * (colours - grey))).clamp_(0, 1)

    def shrink(self, image: Image.Image) -> Image.Image:
        """Reduce an image to the pixels that training needs, to be kept in memory and cropped in each epoch.

        Without random crops the transform's result stays the same. With them, the smallest crop still has the
        target's pixels; images of less than twice the area needed are returned unchanged.
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

    def invert(self, image: Tensor) -> Image.Image:
        """Convert a normalised tensor (C, h, w) back to an image; colours out of range are clipped."""
        pixels = (image.detach().cpu() * self.std + self.mean).mul(255).round().clamp(0, 255)
        return Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())  # (h, w, C)
