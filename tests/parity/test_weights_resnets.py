"""ResNets of torchvision and timm."""

import pytest
import torch

from minclip.data.transforms import TransformConfig
from minclip.pretrained import load_image_tower, save_image_tower
from minclip.pretrained.load import plan_tower, read_source
from tests.parity.drawing import agree, assert_identity, difference, randomise, save

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet  # noqa: E402


def compare(theirs, path, side: int, theirs_tokens, dtypes=(torch.float32, torch.float64)) -> None:
    ours = load_image_tower(path)
    images = torch.randn(2, 3, side, side)
    source = read_source(path)
    rows = plan_tower(source, "image tower", {}).rows
    assert_identity(ours, rows, source.tensors)

    def run(dtype):
        tokens = theirs_tokens(images.to(dtype)).flatten(2).mT
        x = images.to(dtype)
        return [ours.forward_tokens(x), ours(x)], [tokens, tokens.mean(dim=1)]

    agree(ours, theirs, rows, run, dtypes=dtypes)


def torchvision_tokens(model):
    def tokens(x):
        x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        return model.layer4(model.layer3(model.layer2(model.layer1(x))))

    return tokens


DRAWN = [(BasicBlock, [1, 2, 1, 1]), (BasicBlock, [2, 1, 1, 2]), (Bottleneck, [1, 1, 2, 1])]


@pytest.mark.parametrize("block, depths", DRAWN)
def test_drawn_networks_of_torchvision(block, depths, tmp_path):
    theirs = randomise(ResNet(block, depths, num_classes=5), sum(depths))
    compare(theirs, save(theirs, tmp_path / "any.pth"), 64, torchvision_tokens(theirs))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_published_sizes_of_torchvision(name, tmp_path):
    theirs = randomise(getattr(torchvision.models, name)(), 3)
    compare(theirs, save(theirs, tmp_path / "net.pth"), 64, torchvision_tokens(theirs), (torch.float32,))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("safe", [True, False])
def test_timm(name, safe, tmp_path):
    theirs = randomise(timm.create_model(name), 4)
    timm.models.save_for_hf(theirs, tmp_path, safe_serialization=safe)
    compare(theirs, tmp_path, 64, theirs.forward_features, (torch.float32,))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_written_files_open_in_both_libraries(name, tmp_path):
    theirs = randomise(getattr(torchvision.models, name)(), 5)
    theirs.fc = torch.nn.Identity()
    ours = load_image_tower(save(theirs, tmp_path / "net.pth"))
    save_image_tower(ours, TransformConfig(), tmp_path / "out")
    images = torch.randn(2, 3, 64, 64)
    in_timm = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert in_timm.num_classes == 0
    assert difference(in_timm(images), theirs(images)) <= 1e-5
    in_torchvision = getattr(torchvision.models, name)()
    in_torchvision.fc = torch.nn.Identity()
    in_torchvision.load_state_dict(read_source(tmp_path / "out").tensors)
    assert torch.equal(in_torchvision.eval()(images), theirs(images))


def test_other_networks_of_the_family_are_refused_with_their_names(tmp_path):
    wide = torchvision.models.wide_resnet50_2()
    with pytest.raises(ValueError, match=r"shapes: blocks.0.branch.0.0.weight \(128, 64, 1, 1\)"):
        load_image_tower(save(wide, tmp_path / "wide.pth"))
    deep_stem = timm.create_model("resnet18d")
    with pytest.raises(ValueError, match=r"conv1.weight"):
        load_image_tower(save(deep_stem, tmp_path / "deep.pth"))
