"""Any classifier of timm loads by folder, file or name, and is prepared as timm prepares it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from ppap_plugin_classifier.checkpoint import load_checkpoint
from ppap_plugin_classifier.checkpoint.from_timm import read_preparation
from ppap_plugin_classifier.guide import ClassifierGuide
from ppap_plugin_classifier.shipped import BUNDLED
from safetensors.torch import load_file, save_file

from ppap_host.files.errors import CheckpointError
from ppap_host.files.images import to_tensor

NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "resnet": ("resnet10t", dict(channels=[8, 8, 8, 8], stem_width=8), (32, 32)),
    "vit": (
        "vit_tiny_patch16_224",
        dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2),
        (32, 32),
    ),
    "convnext": ("convnext_atto", dict(depths=[1, 1, 1, 1], dims=[8, 8, 8, 8]), (48, 48)),
    "efficientnet": ("mobilenetv3_small_050", {}, (40, 56)),
}


def store(folder: Path, name: str, **config: Any) -> Path:
    """A random network in timm's format, with five classes unless ``config`` says otherwise."""
    architecture, arguments, size = NETWORKS[name]
    torch.manual_seed(0)
    network = timm.create_model(architecture, num_classes=5, **arguments)
    for parameter in network.parameters():
        if parameter.ndim > 1:  # heads start at zero in some of them
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    folder.mkdir(exist_ok=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    described: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": 5,
        "label_names": ["ant", "bee", "cat", "dog", "eel"],
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, *size],
            "interpolation": "bicubic",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "num_classes": 5,
            "first_conv": network.pretrained_cfg["first_conv"],
            "classifier": network.pretrained_cfg["classifier"],
        },
    }
    described |= config
    (folder / "config.json").write_text(json.dumps(described))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("networks")
    return {name: store(root / name, name) for name in NETWORKS}


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    return store(tmp_path / "resnet", "resnet")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_a_folder_gives_finite_gradients(
    folders: dict[str, Path], name: str, size: tuple[int, int]
) -> None:
    guide = ClassifierGuide(str(folders[name]))
    torch.manual_seed(1)
    x = torch.rand(2, 3, *size).mul(2).sub(1).requires_grad_()
    target = guide.read_target("cat", size)
    output = guide.see(x)
    assert output.shape == (2, 5)
    (gradient,) = torch.autograd.grad(guide.loss(output, target.value).sum(), x)
    assert torch.isfinite(gradient).all()
    assert gradient.flatten(1).norm(dim=1).min() > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_the_weights_are_those_of_the_file(folders: dict[str, Path], name: str) -> None:
    guide = ClassifierGuide(str(folders[name]))
    stored = load_file(folders[name] / "model.safetensors")
    loaded = guide.network().state_dict()
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[k], stored[k]) for k in stored)
    assert not guide.network().training
    assert not any(p.requires_grad for p in guide.network().parameters())
    assert guide.network() is guide.network()
    assert [file.name for file in guide.files()] == ["config.json", "model.safetensors"]


def test_timm_itself_reads_the_bundled_folder() -> None:
    theirs = timm.create_model(f"local-dir:{BUNDLED}", pretrained=True).eval()
    ours = ClassifierGuide()
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), ours.see(x))
    assert theirs.pretrained_cfg["label_names"] == list(ours.labels.names)


@pytest.mark.parametrize("form", ["folder", "scheme", "file", "architecture"])
def test_ways_to_write_the_same_network(tmp_path: Path, form: str) -> None:
    # An architecture as timm has it, so that its name alone says everything.
    network = timm.create_model("mobilenetv3_small_050", num_classes=5).eval()
    folder = store(tmp_path / "net", "efficientnet")
    save_file(network.state_dict(), folder / "model.safetensors")
    written = {
        "folder": str(folder),
        "scheme": f"local-dir:{folder}",
        "file": str(folder / "model.safetensors"),
        "architecture": f"mobilenetv3_small_050:{folder / 'model.safetensors'}",
    }[form]
    checkpoint = load_checkpoint(written)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.network(x), network(x))
    assert len(checkpoint.labels) == 5
    named = form != "architecture"
    assert checkpoint.labels.find("bee" if named else "class 1") == 1
    assert checkpoint.preparation.size == ((40, 56) if named else (224, 224))
    assert checkpoint.files[-1] == folder / "model.safetensors"


def test_a_flat_config_of_older_timm(resnet: Path) -> None:
    def flatten(config: dict[str, Any]) -> None:
        config |= config.pop("pretrained_cfg")
        config["labels"] = config.pop("label_names")

    edit(resnet, flatten)
    guide = ClassifierGuide(str(resnet))
    assert guide.labels.find("eel") == 4
    assert guide.prepare(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 32, 32)


def test_descriptions_name_the_classes(tmp_path: Path) -> None:
    described = {"n1": "ant, pismire", "n2": "bee"}
    folder = store(
        tmp_path / "net",
        "resnet",
        label_names=["n1", "n2", "n3", "n4", "n5"],
        label_descriptions=described,
    )
    labels = load_checkpoint(str(folder)).labels
    assert [labels.find(t) for t in ("pismire", "n1", "bee", "n5")] == [0, 0, 1, 4]


def test_labels_by_index_may_have_gaps(tmp_path: Path) -> None:
    folder = store(tmp_path / "net", "resnet", label_names={"0": "ant", "4": "eel"})
    labels = load_checkpoint(str(folder)).labels
    assert [labels.find(t) for t in ("ant", "eel", "2", "class 2")] == [0, 4, 2, 2]


@pytest.mark.parametrize(
    "names", [["ant"], ["a", "b", "c", "d", "e", "f"], {"0": "ant", "5": "fly"}]
)
def test_labels_that_do_not_fit_are_said(tmp_path: Path, names: Any) -> None:
    folder = store(tmp_path / "net", "resnet", label_names=names)
    with pytest.raises(CheckpointError, match="5 classes but") as caught:
        ClassifierGuide(str(folder))
    assert "label_names" in caught.value.remedy


@pytest.mark.parametrize("picture", [(64, 64), (60, 90), (90, 61), (200, 150)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(96, 96), (48, 64)])
def test_prepare_matches_timms_own_transform(
    picture: tuple[int, int], interpolation: str, size: tuple[int, int]
) -> None:
    cfg = {
        "input_size": (3, *size),
        "interpolation": interpolation,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
    rng = np.random.default_rng(0)
    # Smooth, so that the transform's 8-bit rounding and clipping while resizing do not matter.
    coarse = rng.integers(60, 190, (6, 7, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(picture[::-1], Image.Resampling.BICUBIC)
    transform = timm.data.create_transform(**cfg, crop_pct=1.0, crop_mode="squash")
    expected = transform(image)[None]
    prepared = read_preparation("test", cfg)(to_tensor(image))
    assert prepared.shape == expected.shape
    # One 8-bit step, in units of the smallest standard deviation.
    torch.testing.assert_close(prepared, expected, atol=1.2 / 255 / 0.22, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prepare_has_a_gradient_for_every_pixel(dtype: torch.dtype) -> None:
    preparation = read_preparation("test", {"input_size": (3, 8, 8), "interpolation": "bicubic"})
    x = torch.zeros(1, 3, 40, 40, dtype=dtype, requires_grad=True)
    prepared = preparation(x)
    assert prepared.dtype == dtype
    (gradient,) = torch.autograd.grad(prepared.sum(), x)
    # Without antialiasing four fifths of them would have none.
    assert (gradient > 0).all()


@pytest.mark.parametrize(
    ("cfg", "wrong"),
    [
        ({"interpolation": "hamming"}, "hamming"),
        ({"input_size": (1, 32, 32)}, "1 channels"),
        ({"mean": (0.5,), "std": (0.5,)}, "RGB"),
    ],
)
def test_strange_preprocessing_is_refused(cfg: dict[str, Any], wrong: str) -> None:
    with pytest.raises(CheckpointError, match=wrong):
        read_preparation("test", cfg)


def test_lanczos_and_random_have_stand_ins() -> None:
    modes = [
        read_preparation("test", {"interpolation": kind}).mode for kind in ("lanczos", "random")
    ]
    assert modes == ["bicubic", "bilinear"]


@pytest.mark.parametrize(
    ("name", "like"), [("resnet81", "resnet18"), ("vit_base_patch61_224", "vit_base_patch16_224")]
)
def test_unknown_architectures_get_suggestions(name: str, like: str) -> None:
    with pytest.raises(CheckpointError, match=f"no architecture '{name}'") as caught:
        ClassifierGuide(name)
    assert like in caught.value.remedy


def test_unknown_tags_list_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match="no pretrained weights 'nonsense'") as caught:
        ClassifierGuide("resnet18.nonsense")
    assert "resnet18.a1_in1k" in caught.value.remedy


def test_architectures_without_weights_are_said() -> None:
    name = next(n for n in timm.list_models() if timm.get_pretrained_cfg(n).hf_hub_id is None)
    with pytest.raises(CheckpointError, match="no pretrained weights") as caught:
        ClassifierGuide(name)
    assert ".safetensors" in caught.value.remedy


@pytest.mark.parametrize(
    "name", ["resnet18", "no-such-owner/no-such-model", "hf-hub:owner/model@main"]
)
def test_an_unreachable_hub_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="hub cannot be reached") as caught:
        ClassifierGuide(name)
    assert name in caught.value.message
    assert "local folder" in caught.value.remedy


def _hub(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str, str], str]) -> list[Any]:
    asked: list[Any] = []

    def download(repository: str, filename: str, revision: str | None = None) -> str:
        asked.append((repository, filename, revision))
        return answer(repository, filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


@pytest.mark.parametrize("name", ["owner/net", "hf-hub:owner/net", "hf_hub:owner/net@v2"])
def test_a_hub_model_is_its_two_files(
    monkeypatch: pytest.MonkeyPatch, resnet: Path, name: str
) -> None:
    asked = _hub(monkeypatch, lambda _, filename: str(resnet / filename))
    assert ClassifierGuide(name).labels.find("dog") == 3
    revision = "v2" if "@" in name else None
    assert asked == [
        ("owner/net", "config.json", revision),
        ("owner/net", "model.safetensors", revision),
    ]


def test_a_timm_name_takes_its_weights_from_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network = timm.create_model("test_resnet").eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    asked = _hub(monkeypatch, lambda _, filename: str(tmp_path / filename))
    guide = ClassifierGuide("test_resnet")
    ((repository, filename, _),) = asked
    assert repository.startswith("timm/test_resnet.") and filename == "model.safetensors"
    assert guide.labels.find("goldfish") == 1
    x = torch.rand(1, 3, *guide.prepare(torch.zeros(1, 3, 8, 8)).shape[-2:])
    with torch.no_grad():
        torch.testing.assert_close(guide.network()(x), network(x))


def _raise(error: Exception) -> Callable[[str, str], str]:
    def answer(_: str, __: str) -> str:
        raise error

    return answer


def test_what_the_hub_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = huggingface_hub.errors
    missing = errors.EntryNotFoundError.__new__(errors.EntryNotFoundError)
    _hub(monkeypatch, _raise(missing))
    with pytest.raises(CheckpointError, match=r"'owner/net' has no config\.json"):
        ClassifierGuide("owner/net")
    absent = errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)
    _hub(monkeypatch, _raise(absent))
    with pytest.raises(CheckpointError, match="no model 'owner/net' on the hub"):
        ClassifierGuide("owner/net")
    _hub(monkeypatch, _raise(OSError("No space left on device")))
    with pytest.raises(CheckpointError, match="No space left"):
        ClassifierGuide("owner/net")


def test_a_name_the_hub_cannot_have_is_said() -> None:
    with pytest.raises(CheckpointError, match="no name of a hub model"):
        ClassifierGuide("own er/n*t")


@pytest.mark.parametrize(
    "name", ["nowhere/at/all", "./nowhere", "local-dir:nowhere", "x.safetensors"]
)
def test_missing_files_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no model") as caught:
        ClassifierGuide(name)
    assert "--model" in caught.value.remedy
    with pytest.raises(CheckpointError, match="no model file"):
        ClassifierGuide("resnet18:nowhere.safetensors")


def test_a_name_too_long_for_a_file_is_said() -> None:
    with pytest.raises(CheckpointError):
        ClassifierGuide("r" * 5000)


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".pt", ".PTH", ".ckpt", ".pth.tar"])
def test_weights_without_an_architecture_and_pickles_without_any_are_said(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps({"fc.weight": 1}))
    with pytest.raises(CheckpointError, match="does not say what network") as caught:
        ClassifierGuide(str(path))
    assert f"resnet18:{path}" in caught.value.remedy
    with pytest.raises(CheckpointError, match=r"'fc\.weight' is no plain tensor"):
        ClassifierGuide(f"resnet18:{path}")


def test_a_folder_with_a_pickle_only_is_refused(resnet: Path) -> None:
    (resnet / "model.safetensors").unlink()
    torch.save({}, resnet / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle"):
        ClassifierGuide(str(resnet))


def test_an_empty_folder_and_a_lone_file_are_said(resnet: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        ClassifierGuide(str(tmp_path / "empty"))
    (resnet / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json") as caught:
        ClassifierGuide(str(resnet / "model.safetensors"))
    assert "ARCHITECTURE:" in caught.value.remedy


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "{}", '{"architecture": "resnet18", "num_classes": "many"}']
)
def test_a_damaged_config_is_said(resnet: Path, text: str) -> None:
    (resnet / "config.json").write_text(text)
    with pytest.raises(
        CheckpointError, match=r"does not describe a model|no readable JSON|no JSON object|empty"
    ):
        ClassifierGuide(str(resnet))


def test_a_config_of_an_unknown_architecture_is_said(resnet: Path) -> None:
    edit(resnet, lambda c: c.update(architecture="resnet81"))
    with pytest.raises(CheckpointError, match="no architecture 'resnet81'"):
        ClassifierGuide(str(resnet))


def test_a_backbone_is_no_classifier(resnet: Path) -> None:
    edit(resnet, lambda c: c.update(num_classes=0))
    with pytest.raises(CheckpointError, match="no classes"):
        ClassifierGuide(str(resnet))
    with pytest.raises(CheckpointError, match="no classes"):
        ClassifierGuide("vit_small_patch14_dinov2")


def test_another_number_of_classes_is_said(resnet: Path) -> None:
    edit(resnet, lambda c: c.update(num_classes=7, label_names=None))
    with pytest.raises(CheckpointError, match="for 5 classes, its configuration says 7"):
        ClassifierGuide(str(resnet))


def test_missing_weights_are_said(resnet: Path) -> None:
    state = load_file(resnet / "model.safetensors")
    for key in ("fc.weight", "fc.bias"):
        del state[key]
    save_file(state, resnet / "model.safetensors")
    with pytest.raises(CheckpointError, match="lack some of its weights"):
        ClassifierGuide(str(resnet))
    with pytest.raises(CheckpointError, match=r"lack the classifier 'fc\.weight'"):
        ClassifierGuide(f"resnet10t:{resnet / 'model.safetensors'}")


def test_weights_of_another_network_are_said(folders: dict[str, Path], resnet: Path) -> None:
    edit(resnet, lambda c: c.update(model_args={}))
    with pytest.raises(CheckpointError, match="do not fit"):
        ClassifierGuide(str(resnet))
    (resnet / "model.safetensors").write_bytes((folders["vit"] / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError):
        ClassifierGuide(str(resnet))


def test_arguments_timm_does_not_know_are_said(resnet: Path) -> None:
    edit(resnet, lambda c: c["model_args"].update(sparkle=True))
    with pytest.raises(CheckpointError, match="sparkle"):
        ClassifierGuide(str(resnet))


@pytest.mark.parametrize("keep", [0, 4, 0.5])
def test_damaged_weights_are_said(resnet: Path, keep: float) -> None:
    path = resnet / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    with pytest.raises(CheckpointError, match="damaged"):
        ClassifierGuide(str(resnet))


def test_half_precision_weights_load_as_single(resnet: Path) -> None:
    path = resnet / "model.safetensors"
    state = load_file(path)
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
    guide = ClassifierGuide(str(resnet))
    assert {p.dtype for p in guide.network().parameters()} == {torch.float32}
    assert guide.see(torch.zeros(1, 3, 64, 64)).dtype == torch.float32
