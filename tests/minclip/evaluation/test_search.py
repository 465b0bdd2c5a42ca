"""Embeddings of a folder equal those of its images, cached or not; damaged images and caches do not matter."""

import os
import re
import shutil

import pytest
import torch

from minclip import load
from minclip.clip import CLIP
from minclip.data.shapes import ShapesConfig
from minclip.data.transforms import ImageTransform, TransformConfig
from minclip.evaluation import search
from minclip.evaluation.embed import embed_images
from minclip.evaluation.search import CACHE_NAME, embed_folder, image_files
from tests.drawing import SMALL

TRANSFORM = ImageTransform(TransformConfig(), SMALL.image.image_size, train=False)
RECORDS = ShapesConfig(train_size=6, dev_size=3).read()["train"]


@pytest.fixture
def folder(tmp_path):
    """Three images, one of them deeper, one of another size and ending."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for record, name in zip(RECORDS, ("a.png", "deeper/b.png", "c.PNG"), strict=False):
        record.open().save(folder / name)
    return folder


@pytest.fixture
def decoded(monkeypatch):
    """The names of the images that are decoded from now on."""
    names, original = [], search.open_image
    monkeypatch.setattr(search, "open_image", lambda path: names.append(path.name) or original(path))
    return names


def test_only_new_and_changed_images_are_decoded(folder, decoded, tmp_path):
    run, model = tmp_path / "run", CLIP(SMALL)
    run.mkdir()

    def embed(model=model, transform=TRANSFORM):
        decoded.clear()
        return embed_folder(model, transform, folder, image_files(folder), run)

    paths, embeddings = embed()
    assert sorted(decoded) == ["a.png", "b.png", "c.PNG"]
    expected = embed_images(model, RECORDS[:3], TRANSFORM)
    torch.testing.assert_close(
        embeddings[[paths.index(folder / name) for name in ("a.png", "deeper/b.png", "c.PNG")]], expected
    )
    again, kept = embed()
    assert decoded == []
    assert again == paths
    assert torch.equal(kept, embeddings)
    assert {path.parent for path in tmp_path.rglob("*.safetensors")} == {run / CACHE_NAME}

    RECORDS[3].open().save(folder / "new.png")
    RECORDS[4].open().save(folder / "a.png")
    os.utime(folder / "a.png", ns=(1, 1))
    (folder / "deeper/b.png").unlink()
    paths, embeddings = embed()
    assert sorted(decoded) == ["a.png", "new.png"]
    assert [path.name for path in paths] == ["a.png", "c.PNG", "new.png"]
    torch.testing.assert_close(embeddings, embed_images(model, [RECORDS[i] for i in (4, 2, 3)], TRANSFORM))

    torch.manual_seed(1)
    other = CLIP(SMALL)
    assert torch.equal(embed(other)[1], embed_folder(other, TRANSFORM, folder, paths, tmp_path / "x")[1])
    embed(other)
    assert decoded == []
    embed(other, ImageTransform(TransformConfig(mean=(0.5, 0.5, 0.5)), SMALL.image.image_size, train=False))
    assert len(decoded) == 3
    (cache,) = (run / CACHE_NAME).iterdir()  # one file, whatever the model
    cache.write_bytes(cache.read_bytes()[:-5])
    embed(other)
    assert len(decoded) == 3
    shutil.rmtree(run / CACHE_NAME)
    embed(other)
    assert len(decoded) == 3


def test_two_folders_do_not_share_their_images(folder, decoded, tmp_path):
    """The same names, sizes and times in another folder are other images."""
    model, other = CLIP(SMALL), shutil.copytree(folder, tmp_path / "other")
    for some in (folder, other, folder):
        embed_folder(model, TRANSFORM, some, image_files(some), tmp_path / "model.pt")
    assert len(decoded) == 6
    assert len(list((tmp_path / CACHE_NAME).iterdir())) == 2  # beside the file of weights


def test_damaged_images_are_left_out_and_named(folder, tmp_path):
    model, damaged = CLIP(SMALL), [folder / "b1.png", folder / "z.jpg"]
    for path in damaged:
        path.write_bytes((folder / "a.png").read_bytes()[:60])
    told = f"left out 2 images that cannot be decoded, repair or remove them: {damaged[0]}, {damaged[1]}"
    for _ in range(2):  # the second time the others are from the cache
        with pytest.warns(UserWarning, match=re.escape(told)):
            paths, embeddings = embed_folder(model, TRANSFORM, folder, image_files(folder), tmp_path)
        assert [path.name for path in paths] == ["a.png", "c.PNG", "b.png"]
        expected = embed_images(model, [RECORDS[i] for i in (0, 2, 1)], TRANSFORM)
        torch.testing.assert_close(embeddings, expected)
    with pytest.raises(ValueError, match=r"none of the 1 images in .* can be decoded"):
        embed_folder(model, TRANSFORM, folder, [folder / "z.jpg"], tmp_path)


def test_a_model_in_a_folder_that_cannot_be_written_is_searched_with(folder, tmp_path, recwarn):
    (tmp_path / CACHE_NAME).write_text("in the way")
    paths, _ = embed_folder(CLIP(SMALL), TRANSFORM, folder, image_files(folder), tmp_path)
    assert len(paths) == 3
    (warning,) = recwarn
    assert "cannot be written" in str(warning.message)
    assert "\n" not in str(warning.message)


def test_files_that_are_no_images_are_counted_by_their_ending(folder, recwarn):
    assert len(image_files(folder)) == 3
    assert not recwarn
    for name in ("1.HEIC", "2.heic", "deeper/3.Heic", "notes.txt", "README"):
        (folder / name).write_text("")
    assert len(image_files(folder)) == 3
    (warning,) = recwarn
    assert str(warning.message) == "3 images are searched; left out: 3 .heic, 1 .txt, 1 without ending"
    for path in (folder / "a.png", folder / "deeper/b.png", folder / "c.PNG"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no image in .*; left out: 3 .heic, 1 .txt, 1 without ending"):
        image_files(folder)


def test_a_loaded_run_keeps_its_cache_beside_its_checkpoints(tiny_run, folder, tmp_path, decoded):
    run = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns(CACHE_NAME))
    for _ in range(2):
        model, _, transform = load(run)
        embed_folder(model, transform, folder, image_files(folder), run)
    assert len(decoded) == 3
    assert (run / CACHE_NAME).is_dir()
