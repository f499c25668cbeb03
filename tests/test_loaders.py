"""Every loader reads the files that it names, runs nothing of a folder, and asks nobody."""

from __future__ import annotations

import ast
import builtins
import json
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from ppap_plugin_dit import dit
from ppap_plugin_edm import checkpoint as edm
from ppap_plugin_openai import adm, glide
from robustness.kinds.models import GUIDES, write_model
from safetensors.torch import load_file, save_file

from ppap_host.files import models
from ppap_host.files.errors import CheckpointError
from ppap_host.files.models import ModelFolder, build, from_pretrained, no_larger_than, read_json
from ppap_host.pipelines.autoencoder import Autoencoder
from ppap_host.plugins.loading import load_backbone, load_guide
from ppap_host.plugins.registry import registry

ROOT = Path(__file__).parents[1]
SOURCES = [*ROOT.glob("ppap_host/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")]
ASKING: tuple[Any, ...] = (
    transformers.AutoConfig, transformers.AutoImageProcessor, transformers.AutoTokenizer,
    transformers.PreTrainedModel, diffusers.DiffusionPipeline, diffusers.ModelMixin,
)  # fmt: skip
"""Classes whose ``from_pretrained`` is watched."""


def test_there_is_one_place_that_loads_by_name() -> None:
    calls = {
        str(path.relative_to(ROOT)): node.func.attr
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "from_pretrained"
    }
    assert calls == {"ppap_host/files/models.py": "from_pretrained"}
    text = (ROOT / "ppap_host/files/models.py").read_text("utf-8")
    assert "trust_remote_code=False" in text and "trust_remote_code=True" not in text


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The keywords of every ``from_pretrained``; any question or connection fails the test."""
    found: list[dict[str, Any]] = []
    for kind in ASKING:
        own = kind.from_pretrained.__func__

        def watched(cls: Any, *args: Any, _own: Any = own, **kwargs: Any) -> Any:
            found.append(dict(kwargs, where=str(args[0]) if args else None))
            return _own(cls, *args, **kwargs)

        monkeypatch.setattr(kind, "from_pretrained", classmethod(watched))

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was asked or fetched")

    monkeypatch.setattr(builtins, "input", never)
    monkeypatch.setattr(socket, "getaddrinfo", never)
    monkeypatch.setattr(socket.socket, "connect", never)
    return found


def _pipeline(folder: Path) -> None:
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder)


def _vae(folder: Path) -> None:
    diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=2, sample_size=8
    ).save_pretrained(folder)


def _guide(name: str, folder: Path) -> Any:
    guide = load_guide(registry(), name, str(folder))
    with torch.no_grad():
        guide.see(torch.zeros(1, 3, 64, 64))
    return guide


LOADERS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    **{
        name: (
            lambda place, name=name: write_model(name, place.parent),  # type: ignore[misc]
            lambda place, name=name: _guide(name, place),  # type: ignore[misc]
        )
        for name in GUIDES
    },
    "diffusers": (_pipeline, lambda place: load_backbone(registry(), "diffusers", str(place))),
    "autoencoder": (_vae, lambda place: Autoencoder(str(place)).network),
    "shapes": (lambda place: place.mkdir(), lambda place: load_backbone(registry(), "shapes")),
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.filterwarnings("ignore::ppap_host.files.errors.CheckpointWarning")
def test_no_loader_trusts_a_folder(tmp_path: Path, asked: list[dict[str, Any]], name: str) -> None:
    make, load = LOADERS[name]
    place = tmp_path / "m"
    make(place)
    for file in place.rglob("*config.json"):  # whatever it says
        described = json.loads(file.read_text())
        evil = {f"Auto{kind}": "evil.X" for kind in ("Config", "Model", "ImageProcessor")}
        if name in GUIDES:
            file.write_text(json.dumps(described | {"auto_map": evil}))
    (place / "evil.py").write_text("raise SystemExit('run')")
    load(place)
    assert asked
    for keywords in asked:
        # Parts of a pipeline are classes of diffusers, which take no code of others.
        part = name == "diffusers" and keywords is not asked[0]
        assert keywords.get("trust_remote_code", not part) is False
        assert keywords.get("local_files_only", part) is True
        # transformers is never shown the folder itself.
        assert name not in GUIDES or not str(keywords["where"]).startswith(str(tmp_path))


@pytest.mark.parametrize("name", GUIDES)
def test_a_home_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_model(name, tmp_path)
    _guide(name, Path("~/m"))


@pytest.mark.parametrize("name", ["adm", "edm", "dit", "glide", "diffusers", "shapes"])
def test_a_home_of_checkpoints_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here.pt").write_bytes(b"GIF89a")
    with pytest.raises(CheckpointError) as caught:
        load_backbone(registry(), name, "~/here.pt")
    assert "no such" not in str(caught.value) and "There is no file" not in str(caught.value)


def test_half_precision_of_a_pipeline_is_taken_and_said(tmp_path: Path) -> None:
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipe = diffusers.DDPMPipeline(unet.half(), diffusers.DDPMScheduler())
    pipe.save_pretrained(tmp_path, variant="fp16")
    with pytest.warns(match="half-precision"):
        backbone = load_backbone(registry(), "diffusers", str(tmp_path))
    names = {path.name for path in backbone.files()}
    assert "diffusion_pytorch_model.fp16.safetensors" in names
    pipe.unet.float()
    pipe.save_pretrained(tmp_path)
    names = {path.name for path in load_backbone(registry(), "diffusers", str(tmp_path)).files()}
    assert "diffusion_pytorch_model.safetensors" in names
    assert "diffusion_pytorch_model.fp16.safetensors" not in names, "it is there and not read"


# Models of transformers


@pytest.fixture(params=GUIDES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """The name of a guide, and a folder with a small model for it."""
    return request.param, write_model(request.param, tmp_path)


def test_weights_are_frozen_in_float32_and_their_files_named(model: tuple[str, Path]) -> None:
    name, place = model
    weights = place / "model.safetensors"
    half = {key: tensor.half() for key, tensor in load_file(weights).items()}
    save_file(half, weights, metadata={"format": "pt"})
    guide = load_guide(registry(), name, str(place))
    network = guide.network()
    assert network is guide.network() and not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    named = {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert named <= {file.name for file in guide.files()}


def test_pickled_weights_are_never_opened(model: tuple[str, Path]) -> None:
    name, place = model
    torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        load_guide(registry(), name, str(place))


@pytest.mark.parametrize("keep", [0, 4, 0.5])
def test_damaged_weights_are_said(model: tuple[str, Path], keep: float) -> None:
    name, place = model
    weights = place / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    with pytest.raises(CheckpointError, match=r"cut short|empty|neither a PyTorch nor"):
        load_guide(registry(), name, str(place))


def test_a_class_of_a_folders_own_is_never_run(model: tuple[str, Path]) -> None:
    name, place = model
    (place / "evil.py").write_text("raise SystemExit('run')")
    described = json.loads((place / "config.json").read_text())
    own = {"auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}, "model_type": "evil"}
    (place / "config.json").write_text(json.dumps(described | own))
    with pytest.raises(CheckpointError, match="evil"):
        load_guide(registry(), name, str(place))


@pytest.mark.parametrize("name", ["clip", "depth", "segmentation"])
@pytest.mark.parametrize(
    ("model", "words"),
    [("/none/of/it", "no model folder"), ("no-such-owner/no-such", "no-such-owner/no-such")],
)
def test_a_model_that_is_nowhere_is_said(
    monkeypatch: pytest.MonkeyPatch, name: str, model: str, words: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_guide(registry(), name, model)
    assert "model" in caught.value.remedy


# Checkpoints


READERS: dict[str, Callable[[Path], Any]] = {
    "adm": lambda path: adm.load_adm(path, adm.PUBLISHED_ADM["adm-256-uncond"].config),
    "adm-classifier": lambda path: adm.load_adm_classifier(
        path, adm.PUBLISHED_CLASSIFIERS["adm-256-classifier"].config
    ),
    "glide": lambda path: glide.load_glide(path, glide.PUBLISHED_GLIDE["glide"].config),
    "dit": dit.load_dit,
    "edm": edm.load,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no file"),
        (b"", "empty"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error>BlobNotFound</Error>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "LFS"),
        (b"just text", "neither a"),
    ],
)
def test_what_is_no_checkpoint_is_named(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / "model.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        READERS[name](path)
    assert str(path) in caught.value.message and caught.value.remedy


class Hostile:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", READERS)
def test_nothing_in_a_checkpoint_is_run(tmp_path: Path, name: str) -> None:
    path, trace = tmp_path / "model.pt", tmp_path / "was-run"
    path.write_bytes(pickle.dumps({"ema": Hostile(trace)}, protocol=4))
    with pytest.raises(CheckpointError, match="nothing in it was run"):
        READERS[name](path)
    assert not trace.exists()


# Folders


def test_a_folder_remembers_what_was_asked_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": 1}')
    (tmp_path / "b.json").write_text("[1]")
    folder = ModelFolder(str(tmp_path))
    assert folder.json("a.json") == {"x": 1} and folder.json("none.json") is None
    assert folder.files == (tmp_path / "a.json",)
    with pytest.raises(CheckpointError, match="holds a list"):
        folder.json("b.json")
    folder.forget("b.json")
    assert folder.files == (tmp_path / "a.json",)
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        folder.weights()
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match="is a pickle") as caught:
        folder.weights()
    assert "clone().contiguous()" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "readable JSON"),
        ("[" * 5000, "readable JSON"),
        ('{"a": 1' + "0" * 9 + "0}", "1e"),
        ('{"a": ' + "9" * 5000 + "}", "4300 digits"),
        ("[" * 70 + "]" * 70, "nested"),
        ('{"depths": [200000]}', "2e"),
        ("", "empty|readable"),
    ],
    ids=range(7),
)
def test_documents_have_budgets(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        read_json(tmp_path / "c.json")


def test_names_of_classes_are_no_numbers_of_layers(tmp_path: Path) -> None:
    table = {"label2id": {"layers": 200_000}, "depth": 12, "x": float("inf")}
    (tmp_path / "c.json").write_text(json.dumps(table))
    assert read_json(tmp_path / "c.json") == table


def test_a_network_may_not_be_far_larger_than_its_weights() -> None:
    state = {"w": torch.zeros(10)}
    with pytest.raises(CheckpointError, match="far larger"):
        build(lambda: torch.nn.Linear(10**6, 10**6), state, "x")
    with pytest.raises(CheckpointError, match="far larger"), no_larger_than("x", 10, 1):
        torch.nn.ModuleList(torch.nn.Identity() for _ in range(10**6))
    before = torch.get_rng_state()
    assert isinstance(build(lambda: torch.nn.Linear(3, 4), state, "x"), torch.nn.Linear)
    assert torch.equal(torch.get_rng_state(), before)


def test_reports_of_libraries_stay_unsaid(capfd: pytest.CaptureFixture[str]) -> None:
    class Loud:
        @staticmethod
        def from_pretrained(*_: Any, **__: Any) -> int:
            transformers.utils.logging.get_logger("transformers").warning("ninety lines")
            diffusers.utils.logging.get_logger("diffusers").error("and more")
            return 3

    level = transformers.utils.logging.get_verbosity()
    assert from_pretrained(Loud, None) == 3
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.get_verbosity() == level
    assert models.CONFIG == "config.json"
