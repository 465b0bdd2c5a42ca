"""The doctor names each problem of data and config, and none if there is none."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from minclip.data.dataset import check_images
from minclip.data.records import Record
from minclip.data.table import TableConfig
from minclip.data.transforms import TransformConfig
from minclip.doctor import examine, examine_captions, examine_images
from minclip.presets import PRESETS
from minclip.pretrained import save_image_tower
from minclip.runs import make_tokenizer
from minclip.towers.vit import VisionTransformer, VisionTransformerConfig
from minlm.training.state import TrainConfig


@pytest.fixture
def folder(tmp_path):
    """Twenty different images, each with its own caption; the last five are `dev`."""
    rng = np.random.default_rng(0)
    lines = ["image,caption,split"]
    for i in range(20):
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,picture number {'i' * (i + 1)},{'train' if i < 15 else 'dev'}")
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def findings(folder, image=None, **changes):
    model = replace(PRESETS["pairs"].model, image=image or PRESETS["pairs"].model.image)
    config = replace(
        PRESETS["pairs"],
        model=model,
        data=TableConfig(path=str(folder / "captions.csv")),
        **{"train": TrainConfig(steps=100, batch_size=5)} | changes,
    )
    return list(examine(config))


def problems(found):
    return [text for level, text in found if level == "problem"]


def rewrite(folder, old, new):
    path = folder / "captions.csv"
    path.write_text(path.read_text().replace(old, new))


def test_good_data_has_no_problem(folder):
    found = findings(folder)
    assert {level for level, _ in found} == {"ok"}
    said = "\n".join(text for _, text in found)
    assert "split train: 15 images, 15 captions" in said
    assert "split dev: 5 images, 5 captions" in said
    assert "0 images are in both train and dev" in said
    assert "ln(5) = 1.609" in said
    assert "at most 100 steps, 33.3 epochs" in said  # of the fifteen


def test_damaged_files_are_counted_and_named(folder):
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:200])
    found = findings(folder)
    [(level, text)] = [(level, text) for level, text in found if "3.png" in text]
    assert level == "problem"  # one of fifteen is more than five per cent
    assert "split train: 1 of 15 images cannot be decoded" in text


def test_one_damaged_image_of_twenty_is_a_note():
    def image(i):
        if i == 3:
            raise ValueError("3.png is broken")
        return Image.new("RGB", (2, 2), (i, 0, 0))

    train = [Record(str(i), partial(image, i), ("a",), i) for i in range(20)]
    assert list(examine_images({"train": train, "dev": train[3:4]})) == [
        ("note", "split train: 1 of 20 images cannot be decoded; 3.png is broken"),
        ("problem", "split dev: 1 of 1 images cannot be decoded; 3.png is broken"),
        ("ok", "0 images are in both train and dev"),  # two damaged ones are not the same image
    ]


@pytest.mark.parametrize("damaged", [None, 0, 39])
def test_a_damaged_dev_image_is_a_problem_as_in_training(damaged):
    """One damaged image of forty, which training would replace in train."""

    def image(i):
        if i == damaged:
            raise ValueError(f"{i}.png is broken")
        return Image.new("RGB", (2, 2), (i, 0, 0))

    records = [Record(str(i), partial(image, i), ("a",), i) for i in range(40)]
    [(level, text)] = examine_images({"dev": records})
    assert ("broken" in text) == (damaged is not None)
    if level == "problem":
        with pytest.raises(ValueError, match=f"{damaged}.png is broken"):
            check_images(records)
    else:
        check_images(records)
    [(level, _)] = examine_images({"train": records})
    assert level == ("ok" if damaged is None else "note")


def test_an_image_in_two_splits_is_a_problem(folder):
    (folder / "19.png").write_bytes((folder / "2.png").read_bytes())
    assert problems(findings(folder)) == ["1 images are in both train and dev"]


def test_captions_too_long_are_counted(folder):
    rewrite(
        folder, "picture number i,", "a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g h i,"
    )
    [text] = problems(findings(folder))
    assert text.startswith("1 of 15 captions (6.67%) are cut at context_length=32")


def captioned(i, *captions, group=None):
    return Record(str(i), None, captions, i if group is None else group)


def captions_examined(records, length):
    return list(examine_captions(records, make_tokenizer(PRESETS["pairs"], records), length))


def test_few_captions_too_long_are_a_note():
    """A share of the captions, not of the images: one of 121, of one image in ten."""
    long = "a b c d e f g h i j"
    records = [captioned(i, *(f"{word} {i}" for word in "abcdefghijkl"), *[long][i:]) for i in range(10)]
    [(level, text)] = [finding for finding in captions_examined(records, 8) if "are cut" in finding[1]]
    assert (level, text.split(";")[0]) == (
        "note",
        "1 of 121 captions (0.83%) are cut at context_length=8",
    )


@pytest.mark.parametrize(
    "records, text",
    [
        (
            [captioned(0, "a dog", "a dog"), captioned(1, "a cat")],
            "0 captions belong to more than one image",
        ),
        (
            [captioned(i, "a dog", group=0) for i in range(2)],
            "2 captions belong to more than one image; the data groups them",
        ),
    ],
)
def test_repeated_captions_of_one_image_or_group_are_no_problem(records, text):
    assert ("ok", text) in captions_examined(records, 32)


def test_captions_of_several_images_are_false_negatives(folder):
    rewrite(folder, "picture number ii,", "picture number i,")
    [(level, text)] = [(level, text) for level, text in findings(folder) if "more than one image" in text]
    assert (level, text) == (
        "note",
        "2 captions belong to more than one image; in one batch they are false negatives",
    )


def test_four_patches_are_too_few_and_sixteen_are_not(folder):
    image = VisionTransformerConfig(image_size=(32, 32), patch_size=(16, 16))
    [text] = problems(findings(folder, image=image))
    assert text.startswith("the image tower has 4 patches, fewer than 16: use a smaller patch_size")
    image = replace(image, patch_size=(8, 8))
    assert ("ok", "the image tower has 16 patches") in findings(folder, image=image)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_data_without_a_split_is_refused(folder, split):
    rewrite(folder, f",{split}\n", ",test\n")
    other = {"train", "dev"} - {split}
    with pytest.raises(
        ValueError, match=rf"no split {split}, only .*{other.pop()}.*: train and dev are needed"
    ):
        findings(folder)


def test_towers_that_cannot_be_made_are_problems(folder):
    [text] = problems(findings(folder, image=VisionTransformerConfig(weights=str(folder / "nowhere"))))
    assert text == f"no weights at {folder / 'nowhere'}: there is no such file or folder"
    [text] = problems(findings(folder, image=VisionTransformerConfig(trained_blocks=99)))
    assert text == "trained_blocks=99, but this tower has 4; -1 trains all of it"


def test_towers_of_weights_have_the_files_sizes(folder):
    tower = VisionTransformer(VisionTransformerConfig(d_model=8, n_heads=2, n_layers=3))
    save_image_tower(tower, TransformConfig(), folder / "tower")
    config = VisionTransformerConfig(weights=str(folder / "tower"), trained_blocks=3)
    assert not problems(findings(folder, image=config))
    [text] = problems(findings(folder, image=replace(config, trained_blocks=4)))
    assert text == "trained_blocks=4, but this tower has 3; -1 trains all of it"


def test_a_precision_that_the_machine_lacks_is_a_problem(folder):
    train = TrainConfig(steps=100, batch_size=5, device="cpu", precision="fp16")
    assert problems(findings(folder, train=train)) == [
        "--train.precision fp16 needs a GPU: use bf16 or float32 on a CPU"
    ]
