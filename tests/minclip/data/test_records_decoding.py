"""Decoding of every mode, orientation and kind of damage."""

import io
import random
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from minclip.data import records
from minclip.data.records import (
    FORMATS,
    decode_image,
    open_image,
)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(folder: Path, image: Image.Image, name: str = "a.png", **options) -> Path:
    image.save(folder / name, **options)
    return folder / name


def pixels(path: Path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_comes_back_exactly(tmp_path):
    array = noise(5, 7)
    np.testing.assert_array_equal(pixels(saved(tmp_path, Image.fromarray(array))), array)


@pytest.mark.parametrize("mode, name", [("L", "a.png"), ("1", "a.png"), ("CMYK", "a.tif"), ("P", "a.png")])
def test_opaque_modes_are_converted_by_pillow(tmp_path, mode, name):
    image = Image.fromarray(noise(6, 4)).convert(mode)
    np.testing.assert_array_equal(pixels(saved(tmp_path, image, name)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_deep_grey_is_scaled_not_clipped(tmp_path, name):
    grey = noise(6, 4, channels=1)
    path = saved(tmp_path, Image.fromarray(grey.astype(np.uint16) * 257), name)
    np.testing.assert_array_equal(pixels(path), np.stack([grey] * 3, axis=-1))


def test_deep_grey_keeps_its_greys_beside_a_transparent_one(tmp_path):
    grey = np.array([[100, 200, 0, 255]], dtype=np.uint16) * 257
    path = saved(tmp_path, Image.fromarray(grey), transparency=100 * 257)
    assert pixels(path)[0, :, 0].tolist() == [255, 200, 0, 255]


def test_deep_colours_keep_their_high_byte(tmp_path):
    """Pillow reads 16 bits per colour but cannot write them, so this PNG of two pixels is written by hand."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header, row = (
        struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0),
        struct.pack(">x6H", 65535, 0x8080, 257, 0, 1, 2),
    )
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(row)), chunk(b"IEND", b"")]
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert pixels(tmp_path / "deep.png").tolist() == [[[255, 128, 1], [0, 0, 0]]]


def test_the_inks_of_a_jpeg_and_the_first_frame(tmp_path):
    """CMYK JPEGs have inverted inks; MPO, which phones write, is a JPEG with more images after the first."""
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert pixels(saved(tmp_path, red, "print.jpg"))[0, 0].tolist() == [255, 0, 0]
    frames = {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "blue")]}
    for name, tolerance in (("a.gif", 0), ("a.mpo", 2)):
        shown = pixels(saved(tmp_path, Image.new("RGB", (8, 8), "red"), name, **frames)).astype(int)
        assert np.abs(shown - [255, 0, 0]).max() <= tolerance


@pytest.mark.parametrize("name", ["eps", "ppm", "ico", "tga", "spider", "pcx", "jp2"])
def test_only_the_listed_formats_are_decoded(tmp_path, monkeypatch, name):
    """The file's name does not matter; other decoders may start programs (EPS) or raise anything (SPIDER)."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("a program is started"))
    image = Image.new("L" if name == "spider" else "RGB", (20, 20))
    buffer = io.BytesIO()
    image.save(buffer, {"jp2": "JPEG2000"}.get(name, name.upper()))
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    if name == "ppm":
        assert open_image(tmp_path / "a.jpg").size == (20, 20)
    else:
        assert "cannot identify it as JPEG, PNG, WEBP" in refusal(tmp_path / "a.jpg")


def test_32_bit_and_float_grey(tmp_path):
    grey = noise(6, 4, channels=1)
    expected = np.stack([grey] * 3, axis=-1)
    deep = saved(tmp_path, Image.fromarray(grey.astype(np.int32) * 257), "i.tif")
    np.testing.assert_array_equal(pixels(deep), expected)
    floats = saved(tmp_path, Image.fromarray((grey / 255).astype(np.float32)), "f.tif")
    np.testing.assert_array_equal(pixels(floats), expected)
    odd = np.array(
        [[-0.5, 1.5, 1.7 / 255, 1.3 / 255]], dtype=np.float32
    )  # out of range, and between two greys
    assert pixels(saved(tmp_path, Image.fromarray(odd), "odd.tif"))[0, :, 0].tolist() == [0, 255, 2, 1]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_shown_on_white(tmp_path, mode):
    image = Image.fromarray(noise(6, 4)).convert(mode)
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 2, 6))
    image.putalpha(alpha)
    shown = pixels(saved(tmp_path, image))
    assert (shown[:, :2] == 255).all()
    np.testing.assert_array_equal(shown[:, 2:], np.asarray(image.convert("RGB"))[:, 2:])


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_is_shown_on_white(tmp_path, mode):
    image = Image.new("RGB", (4, 2), (10, 10, 10)).convert(mode)
    image.paste(image.getpixel((0, 0)) if mode != "P" else 0, (0, 0, 4, 2))
    if mode == "P":
        image.putpalette([0, 0, 0, 200, 0, 0])
        image.paste(1, (2, 0, 4, 2))
    else:
        image.paste((200,) * len(mode) if mode == "RGB" else 200, (2, 0, 4, 2))
    hidden = {"P": 0, "L": 10, "RGB": (10, 10, 10)}[mode]
    shown = pixels(saved(tmp_path, image, transparency=hidden))
    assert (shown[:, :2] == 255).all()
    assert (shown[:, 2:, 0] == 200).all()


UPRIGHT = {  # orientation -> how the stored rows are turned to be upright (EXIF 2.3, tag 0x0112)
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = noise(3, 5)
    path = saved(tmp_path, Image.fromarray(array), exif=exif)
    np.testing.assert_array_equal(pixels(path), UPRIGHT[orientation](array))


def refusal(path: Path) -> str:
    """Return the one-line message of the ValueError for this file."""
    with pytest.raises(ValueError, match="cannot decode image") as caught:
        open_image(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def test_a_missing_file_a_folder_and_a_text(tmp_path):
    assert refusal(tmp_path / "none.png").endswith("none.png': it is not a file; check the name")
    (tmp_path / "folder.png").mkdir()
    assert "not a file" in refusal(tmp_path / "folder.png")
    (tmp_path / "text.png").write_text("no image")
    assert "cannot identify" in refusal(tmp_path / "text.png")
    (tmp_path / "empty.png").write_bytes(b"")
    assert "cannot identify" in refusal(tmp_path / "empty.png")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp"])
def test_a_truncated_file(tmp_path, name):
    path = saved(tmp_path, Image.fromarray(noise(40, 40)), name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refusal(path)


def test_a_decompression_bomb(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.new("RGB", (40, 40)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "decompression bomb" in refusal(path)


SCRIPT = """
import sys
exec(open(sys.argv[1]).read())  # alone: importing the package imports torch
Image.MAX_IMAGE_PIXELS = 1000
print(open_image(sys.argv[2]).size)
"""


def test_the_warning_of_a_large_image_names_it(tmp_path):
    """A new process, since pytest resets the filters of warnings."""
    path = saved(tmp_path, Image.new("RGB", (40, 40)))
    command = [sys.executable, "-c", SCRIPT, records.__file__, path]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == "(40, 40)\n"
    assert ran.stderr.count("Warning") == 1
    assert f"image {str(path)!r} has 1,600 pixels: shrink it" in ran.stderr


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of damaged metadata and of large images
@given(st.sampled_from(FORMATS), st.integers(0, 2**32), st.integers(1, 20), st.booleans())
def test_a_damaged_file_gives_an_image_or_one_line(name, seed, changes, cut):
    buffer = io.BytesIO()
    Image.fromarray(noise(12, 10)).save(buffer, name)
    data, rng = bytearray(buffer.getvalue()), random.Random(seed)
    if cut:
        del data[rng.randrange(len(data)) :]
    for _ in range(changes if data else 0):
        data[rng.randrange(min(len(data), rng.choice((64, 10_000))))] = rng.randrange(256)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "damaged.bin")
        path.write_bytes(data)
        try:
            assert open_image(path).mode == "RGB"
        except ValueError:
            refusal(path)


@pytest.mark.parametrize(
    "error, reason",
    [
        (AttributeError("no attribute 'seek'"), ": no attribute 'seek';"),
        (RuntimeError("Failed\nto decode"), ": Failed to decode;"),
        (EOFError(), ": EOFError;"),
        (NotImplementedError("flags"), ": flags;"),
    ],
)
def test_any_error_of_a_decoder_becomes_one_line(tmp_path, monkeypatch, error, reason):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    assert reason in refusal(tmp_path / "a.avif")


def test_an_image_inside_another_file(tmp_path):
    array = noise(5, 7)
    content = saved(tmp_path, Image.fromarray(array)).read_bytes()
    np.testing.assert_array_equal(np.asarray(decode_image(content, "x")), array)
    with pytest.raises(ValueError, match=r"cannot decode image 'shard/key': .*repair or remove") as caught:
        decode_image(content[:-30], "shard/key")
    assert "\n" not in str(caught.value)
