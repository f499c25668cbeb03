"""Classifiers of torchvision load with published or own weights, and never by unpickling."""

from __future__ import annotations

import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from ppap_plugin_classifier.checkpoint import from_torchvision, load_checkpoint
from ppap_plugin_classifier.checkpoint.from_torchvision import read_transform
from ppap_plugin_classifier.guide import ClassifierGuide
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from ppap_host.experts.patches import Patch
from ppap_host.files.errors import CheckpointError
from ppap_host.files.images import to_tensor

State = dict[str, Tensor]
SMALL = "shufflenet_v2_x0_5"


def network(name: str, classes: int, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):  # as if it had been trained
            layer.running_mean.normal_(std=0.1)
    return made.eval()


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "five.pth"
    torch.save(network("resnet18", 5).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def published() -> nn.Module:
    return network(SMALL, 1000)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "torch/hub/checkpoints"


def serve(monkeypatch: pytest.MonkeyPatch, content: Any) -> list[str]:
    """In place of the network; returns the addresses that were asked for."""
    asked: list[str] = []

    def fetch(url: str, target: str, hash_prefix: str | None, progress: bool = True) -> None:
        asked.append(url)
        if isinstance(content, Exception):
            raise content
        assert hash_prefix and hash_prefix in url
        torch.save(content, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    return asked


def test_default_weights_are_downloaded_once(
    published: nn.Module, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve(monkeypatch, published.state_dict())
    entry = models.get_model_weights(SMALL).DEFAULT
    for _ in range(2):
        checkpoint = load_checkpoint(f"torchvision:{SMALL}")
    assert asked == [entry.url]
    assert checkpoint.files == (cache / Path(entry.url).name,)
    assert checkpoint.preparation.size == (224, 224)
    labels = checkpoint.labels
    assert list(labels.names) == entry.meta["categories"]
    assert [labels.find(t) for t in ("golden retriever", "n02099601", "207")] == [207] * 3
    assert not checkpoint.network.training
    assert not any(p.requires_grad for p in checkpoint.network.parameters())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.network(x), published(x))


@pytest.mark.parametrize("file", [False, True])
def test_particular_weights_bring_their_own_preprocessing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, file: bool
) -> None:
    # Of this architecture one of the weights wants other pictures and another network.
    asked: dict[str, Any] = {}

    def build(_: str, __: Any, ___: str, entry: Any, state: State, ____: list[str]) -> Any:
        asked.update(entry=entry, state=state)
        return nn.Sequential(nn.Conv2d(3, 1000, 384), nn.Flatten()), 1000

    monkeypatch.setattr(from_torchvision, "_built", build)
    entry = models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1
    serve(monkeypatch, {"a": torch.ones(1)})
    name = "torchvision:vit_b_16.IMAGENET1K_SWAG_E2E_V1"
    if file:
        # A published file says by its name what it is.
        path = cache.parent / Path(entry.url).name
        path.parent.mkdir(parents=True)
        save_file({"a": torch.ones(1)}, path)
        name = f"torchvision:vit_b_16:{path}"
    preparation = load_checkpoint(name).preparation
    assert (preparation.size, preparation.mode) == ((384, 384), "bicubic")
    assert asked["entry"] is entry and list(asked["state"]) == ["a"]


@pytest.mark.parametrize("name", ["densenet121", "googlenet", "inception_v3"])
def test_what_torchvisions_builder_changes_is_kept(
    name: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    special = name != "densenet121"
    options: dict[str, Any] = {"init_weights": False} if special else {}
    theirs = network(name, 1000, **options)
    state = theirs.state_dict()
    if special:
        theirs.transform_input = True  # as the published weights need it
    else:
        # Names of the published file, from before there were counters.
        state = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k): v
            for k, v in state.items()
            if not k.endswith("num_batches_tracked")
        }
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    serve(monkeypatch, state)
    ours = load_checkpoint(f"torchvision:{name}").network
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    assert not any(part in k for k in ours.state_dict() for part in ("aux", "Aux"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_ones_own(tmp_path: Path, suffix: str) -> None:
    theirs = network("resnet18", 5)
    path = tmp_path / f"mine{suffix}"
    (torch.save if suffix == ".pth" else save_file)(theirs.state_dict(), path)
    guide = ClassifierGuide(f"torchvision:resnet18:{path}")
    assert list(guide.files()) == [path]
    assert len(guide.labels) == 5 and guide.labels.find("class 3") == 3
    stored = theirs.state_dict()
    assert all(torch.equal(v, stored[k]) for k, v in guide.network().state_dict().items())

    x = torch.rand(2, 3, 40, 72).mul(2).sub(1).requires_grad_()
    output = guide.see(x)
    assert output.shape == (2, 5)
    target = guide.read_target("3", (40, 72))
    (gradient,) = torch.autograd.grad(guide.loss(output, target.value).sum(), x)
    assert torch.isfinite(gradient).all()
    assert gradient.flatten(1).norm(dim=1).min() > 0


def test_as_many_classes_as_published_have_their_names(tmp_path: Path, published: Any) -> None:
    save_file(published.state_dict(), tmp_path / "mine.safetensors")
    labels = load_checkpoint(f"torchvision:{SMALL}:{tmp_path / 'mine.safetensors'}").labels
    assert labels.find("goldfish") == 1


def test_half_precision_and_files_without_counters_load(tmp_path: Path) -> None:
    state = network("resnet18", 3).state_dict()
    kept = {k: v.half() for k, v in state.items() if v.is_floating_point()}
    save_file(kept, tmp_path / "half.safetensors")
    loaded = load_checkpoint(f"torchvision:resnet18:{tmp_path / 'half.safetensors'}").network
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_building_does_not_move_the_callers_seed(resnet: Path) -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    load_checkpoint(f"torchvision:resnet18:{resnet}")
    assert torch.equal(torch.rand(3), expected)


def test_an_expert_lies_on_every_layer(resnet: Path) -> None:
    guide = ClassifierGuide(f"torchvision:resnet18:{resnet}")
    plan = guide.patch_plan(guide.network())
    patch = Patch.fresh(guide.network(), plan)
    kinds = nn.Conv2d | nn.Linear
    layers = {f"{n}.weight" for n, m in guide.network().named_modules() if isinstance(m, kinds)}
    assert len(layers) == 21 and layers <= patch.low_rank.keys() | patch.direct.keys()
    assert len(patch.low_rank) > 15
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = guide.network()(x)
        torch.testing.assert_close(patch.over(guide.network())(x), plain)
        for tensor in patch.trainable():
            tensor += 0.01
        assert (patch.over(guide.network())(x) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("picture", [48, 64, 200])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_prepare_matches_torchvisions_own_transform(picture: int, mode: str) -> None:
    # Where it does not crop: a square picture, resized to the size of the window.
    transform = ImageClassification(
        crop_size=64, resize_size=64, mean=(0.4, 0.5, 0.6), interpolation=InterpolationMode(mode)
    )
    rng = np.random.default_rng(0)
    # Smooth, so that the transform's 8-bit rounding and clipping while resizing do not matter.
    coarse = rng.integers(60, 190, (6, 7, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((picture, picture), Image.Resampling.BICUBIC)
    expected = transform(image)[None]
    prepared = read_transform("test", transform)(to_tensor(image))
    # One 8-bit step, in units of the smallest standard deviation.
    torch.testing.assert_close(prepared, expected, atol=1.2 / 255 / 0.22, rtol=0)


def test_the_whole_picture_is_squashed_into_the_window() -> None:
    preparation = read_transform("test", ImageClassification(crop_size=32, resize_size=40))
    x = torch.zeros(1, 3, 60, 90, requires_grad=True)
    prepared = preparation(x)
    assert prepared.shape == (1, 3, 32, 32)
    (gradient,) = torch.autograd.grad(prepared.sum(), x)
    assert (gradient > 0).all()


@pytest.mark.parametrize(
    ("transform", "wrong"),
    [
        (nn.Identity(), "not understood"),
        (
            ImageClassification(crop_size=8, interpolation=InterpolationMode.HAMMING),
            "not supported",
        ),
    ],
)
def test_strange_transforms_are_refused(transform: Any, wrong: str) -> None:
    with pytest.raises(CheckpointError, match=wrong):
        read_transform("test", transform)


# --- what cannot be loaded


def test_unknown_names_get_suggestions() -> None:
    with pytest.raises(CheckpointError, match="no classifier 'resnet51'") as caught:
        ClassifierGuide("torchvision:resnet51")
    assert "resnet50" in caught.value.remedy
    for other in ("fcn_resnet50", "quantized_resnet50"):  # no classifier, and no gradient
        with pytest.raises(CheckpointError, match="no classifier"):
            ClassifierGuide(f"torchvision:{other}")
    with pytest.raises(CheckpointError, match="weights 'V3' for resnet50") as caught:
        ClassifierGuide("torchvision:resnet50.V3")
    assert "IMAGENET1K_V1, IMAGENET1K_V2" in caught.value.remedy


def test_weights_of_a_backbone_are_no_classifiers() -> None:
    with pytest.raises(CheckpointError, match="IMAGENET1K_FEATURES"):
        ClassifierGuide("torchvision:vgg16.IMAGENET1K_FEATURES")


@pytest.mark.parametrize("error", [URLError("no route"), RuntimeError("invalid hash value")])
def test_a_failed_download_is_said(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    serve(monkeypatch, error)
    with pytest.raises(CheckpointError, match="cannot be downloaded from https") as caught:
        ClassifierGuide(f"torchvision:{SMALL}")
    assert "torchvision:ARCHITECTURE:FILE" in caught.value.remedy


class Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return (Path.touch, (self.trace,))


def test_nothing_is_ever_unpickled(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, path = tmp_path / "trace", tmp_path / "bad.pth"
    torch.save({"fc.weight": Trap(trace)}, path)
    with pytest.raises(CheckpointError, match="nothing in it was run"):
        ClassifierGuide(f"torchvision:resnet18:{path}")
    path.write_bytes(pickle.dumps({"fc.weight": Trap(trace)}))
    with pytest.raises(CheckpointError):
        ClassifierGuide(f"torchvision:resnet18:{path}")
    serve(monkeypatch, {"fc.weight": Trap(trace)})
    for _ in range(2):  # from the server, and then from the cache
        with pytest.raises(CheckpointError):
            ClassifierGuide(f"torchvision:{SMALL}")
    assert not trace.exists()


def test_a_missing_file_is_said() -> None:
    with pytest.raises(CheckpointError, match="no file"):
        ClassifierGuide("torchvision:resnet18:nowhere.pth")


def test_weights_of_another_network_name_the_first_that_differ(
    resnet: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"missing: layer1\.2\.") as caught:
        ClassifierGuide(f"torchvision:resnet34:{resnet}")
    assert "state dict of the whole network" in caught.value.remedy
    with pytest.raises(CheckpointError, match=r"of another shape: layer1\.0\.conv1\.weight is"):
        ClassifierGuide(f"torchvision:resnet50:{resnet}")
    state = torch.load(resnet, weights_only=True)
    del state["fc.weight"]
    torch.save(state, tmp_path / "headless.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: fc\.weight"):
        ClassifierGuide(f"torchvision:resnet18:{tmp_path / 'headless.pth'}")


def test_a_published_file_with_other_tensors_is_said(
    resnet: Path, published: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / Path(models.ResNet18_Weights.DEFAULT.url).name
    state = network("resnet18", 1000).state_dict()
    state["more"] = torch.ones(2)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"1 unexpected: more \(2,\)"):
        ClassifierGuide(f"torchvision:resnet18:{path}")
    # The name of a published file is not all that counts: this one has five classes.
    shutil.copy(resnet, path)
    assert len(ClassifierGuide(f"torchvision:resnet18:{path}").labels) == 5


def test_without_torchvision_it_is_said_what_to_install(
    resnet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(CheckpointError, match=r"needs torchvision") as caught:
        ClassifierGuide(f"torchvision:resnet18:{resnet}")
    assert "pip install 'torchvision'" in caught.value.remedy
