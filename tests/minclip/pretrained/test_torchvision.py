"""ResNets: classifiers are ignored, counters may be absent."""

import pytest
import torch

from minclip.data.transforms import TransformConfig
from minclip.pretrained import load_image_tower, save_image_tower
from tests.minclip.pretrained.published import IMAGE_CONFIGS, drawn_tower, edit


def resnet_folder(folder):
    save_image_tower(drawn_tower(IMAGE_CONFIGS[1]), TransformConfig(), folder)
    return folder


def test_the_classifier_alone_is_ignored(tmp_path):
    resnet_folder(tmp_path)
    edit(tmp_path, lambda x: x.update({"fc.weight": torch.zeros(3, 8), "fc.bias": torch.zeros(3)}))
    load_image_tower(tmp_path)
    edit(tmp_path, lambda x: x.update({"fc2.weight": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"1 not used: fc2.weight$"):
        load_image_tower(tmp_path)


def test_older_files_without_counters(tmp_path):
    resnet_folder(tmp_path)
    edit(tmp_path, lambda x: [x.pop(name) for name in list(x) if "num_batches" in name])
    assert load_image_tower(tmp_path).stem[0][1].num_batches_tracked == 0


def test_missing_tensors_are_named(tmp_path):
    resnet_folder(tmp_path)
    edit(tmp_path, lambda x: x.pop("layer2.0.downsample.1.running_var"))
    with pytest.raises(ValueError, match=r"model: 1 not filled: blocks.1.shortcut.1.running_var$"):
        load_image_tower(tmp_path)
