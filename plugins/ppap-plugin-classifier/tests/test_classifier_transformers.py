"""Image classifiers of transformers load by folder or hub name, and are prepared as it does it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from ppap_plugin_classifier.checkpoint import load_checkpoint
from ppap_plugin_classifier.guide import ClassifierGuide
from safetensors.torch import load_file, save_file
from torch import nn

from ppap_host.experts.patches import Patch
from ppap_host.files.errors import CheckpointError
from ppap_host.files.images import to_tensor
from ppap_host.guides.preprocessing import read_processor

NAMES = {0: "ant", 1: "bee", 2: "cat, house cat", 3: "dog", 4: "eel"}


def attention(kind: str, **more: Any) -> Any:
    return getattr(transformers, f"{kind}Config")(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, id2label=NAMES, **more,
    )  # fmt: skip


NETWORKS: dict[str, tuple[str, Callable[[], Any], Callable[[], Any]]] = {
    "vit": (
        "ViTForImageClassification",
        lambda: attention("ViT"),
        lambda: transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
    ),
    "deit": (
        "DeiTForImageClassificationWithTeacher",
        lambda: attention("DeiT"),
        lambda: transformers.DeiTImageProcessor(
            size={"height": 40, "width": 40}, crop_size={"height": 32, "width": 32}
        ),
    ),
    "beit": (
        "BeitForImageClassification",
        lambda: attention("Beit"),
        lambda: transformers.BeitImageProcessor(size={"height": 32, "width": 32}),
    ),
    "swin": (
        "SwinForImageClassification",
        lambda: transformers.SwinConfig(
            image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2],
            window_size=4, id2label=NAMES,
        ),
        lambda: transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
    ),
    "resnet": (
        "ResNetForImageClassification",
        lambda: transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
            id2label=NAMES,
        ),
        lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 32}),
    ),
    "convnext": (
        "ConvNextForImageClassification",
        lambda: transformers.ConvNextConfig(
            hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], id2label=NAMES
        ),
        lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 32}),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _plain_terminal() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("networks")
    for name, (kind, config, processor) in NETWORKS.items():
        torch.manual_seed(0)
        model = getattr(transformers, kind)(config())
        for parameter in model.parameters():
            if parameter.ndim > 1:  # as drawn they are so small that nothing is seen
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        model.save_pretrained(root / name)
        processor().save_pretrained(root / name)
    return {name: root / name for name in NETWORKS}


@pytest.fixture
def vit(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["vit"], tmp_path / "vit"))


def edit(path: Path, **change: Any) -> None:
    content = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def smooth(height: int, width: int) -> Image.Image:
    """So smooth that 8-bit rounding and clipping while resizing do not matter."""
    coarse = np.random.default_rng(0).integers(60, 190, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folder_is_a_guide(folders: dict[str, Path], name: str) -> None:
    guide = ClassifierGuide(str(folders[name]))
    kind, _, _ = NETWORKS[name]
    theirs = getattr(transformers, kind).from_pretrained(folders[name]).eval()
    torch.manual_seed(1)
    # A backbone of 64 pixels, one of 256, and a wide one, through a network of 32.
    for size in ((64, 64), (256, 256), (40, 72)):
        x = torch.rand(2, 3, *size).mul(2).sub(1).requires_grad_()
        prepared = guide.prepare(x)
        assert prepared.shape == (2, 3, 32, 32)
        output = guide.see(x)
        assert output.shape == (2, 5)
        with torch.no_grad():
            torch.testing.assert_close(output, theirs(pixel_values=prepared).logits)
        target = guide.read_target("house cat", size)
        (gradient,) = torch.autograd.grad(guide.loss(output, target.value).sum(), x)
        assert torch.isfinite(gradient).all()
        # Every pixel has one: antialiasing skips none, and nothing is cut away.
        assert (gradient.abs().sum(dim=1) > 0).all()
    assert not guide.network().training
    assert not any(p.requires_grad for p in guide.network().parameters())
    assert [f.name for f in guide.files()] == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert guide.remarks() == ()


def test_one_scene_in_two_resolutions_is_seen_alike(folders: dict[str, Path]) -> None:
    guide = ClassifierGuide(str(folders["vit"]))
    with torch.no_grad():
        small, large = (guide.see(to_tensor(smooth(side, side))) for side in (64, 256))
    torch.testing.assert_close(small, large, atol=0.05 * float(large.std()), rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_expert_lies_on_every_layer(folders: dict[str, Path], name: str) -> None:
    guide = ClassifierGuide(str(folders[name]))
    network = guide.network()
    patch = Patch.fresh(network, guide.patch_plan(network))
    kinds = nn.Conv2d | nn.Linear
    layers = {f"{n}.weight" for n, m in network.named_modules() if isinstance(m, kinds)}
    assert layers and layers <= patch.low_rank.keys() | patch.direct.keys()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = network(x)
        torch.testing.assert_close(patch.over(network)(x), plain)
        for tensor in patch.trainable():
            tensor += 0.01
        assert (patch.over(network)(x) - plain).abs().max() > 1e-3


def test_names_come_from_the_configuration(vit: Path) -> None:
    labels = load_checkpoint(str(vit)).labels
    assert list(labels.names) == list(NAMES.values())
    # Those that transformers makes up when there are none.
    edit(vit / "config.json", id2label={str(k): f"LABEL_{k}" for k in range(5)})
    assert load_checkpoint(str(vit)).labels.find("class 4") == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.DeiTImageProcessor(size={"height": 40, "width": 40}, crop_size=32),
        lambda t: t.ConvNextImageProcessor(size={"shortest_edge": 32}),
        lambda t: t.BitImageProcessor(size={"shortest_edge": 40}, crop_size=32),
        lambda t: t.LevitImageProcessor(size={"shortest_edge": 32}, crop_size=32),
        lambda t: t.PoolFormerImageProcessor(size={"shortest_edge": 32}, crop_size=32),
    ],
    ids=["deit", "convnext", "bit", "levit", "poolformer"],
)
def test_where_it_would_crop_the_whole_picture_is_squashed_into_the_window(
    make: Callable[[Any], Any],
) -> None:
    processor, image = make(transformers), smooth(60, 90)
    expected = processor(images=image, return_tensors="pt")["pixel_values"]
    prepared = read_processor("test", processor, fit_crop=True)(to_tensor(image))
    assert prepared.shape == expected.shape == (1, 3, 32, 32)
    whole = transformers.ViTImageProcessor(
        size=32, resample=processor.resample, image_mean=processor.image_mean,
        image_std=processor.image_std,
    )(images=image, return_tensors="pt")["pixel_values"]  # fmt: skip
    torch.testing.assert_close(prepared, whole, atol=1.2 / 255 / 0.22, rtol=0)


def test_a_model_of_timm_that_transformers_wrapped(tmp_path: Path) -> None:
    config = transformers.TimmWrapperConfig(
        architecture="resnet18",
        id2label=NAMES,
        model_args={"channels": [8, 8, 8, 8]},
        pretrained_cfg={"input_size": [3, 40, 40], "mean": [0.1, 0.2, 0.3], "crop_pct": 0.9},
    )
    model = transformers.TimmWrapperForImageClassification(config)
    model.save_pretrained(tmp_path)
    guide = ClassifierGuide(str(tmp_path))
    assert guide.labels.find("eel") == 4
    prepared = guide.prepare(torch.full((1, 3, 64, 64), -1.0))
    assert prepared.shape == (1, 3, 40, 40)
    black = -torch.tensor([0.1, 0.2, 0.3]) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(prepared[0, :, 5, 5], black)
    assert guide.see(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


# --- where it comes from


def hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[tuple[str, str | None]]:
    """In place of the hub; returns the files that were asked for."""
    asked: list[tuple[str, str | None]] = []

    def download(repository: str, filename: str, revision: str | None = None) -> str:
        assert repository == "owner/net"
        asked.append((filename, revision))
        if not (folder / filename).is_file():
            errors = huggingface_hub.errors
            raise errors.EntryNotFoundError.__new__(errors.EntryNotFoundError)
        return str(folder / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


@pytest.mark.parametrize("name", ["owner/net", "hf-hub:owner/net@v2"])
def test_a_hub_model_is_told_by_its_configuration(
    monkeypatch: pytest.MonkeyPatch, vit: Path, name: str
) -> None:
    asked = hub(monkeypatch, vit)
    assert ClassifierGuide(name).labels.find("dog") == 3
    revision = "v2" if "@" in name else None
    # An image processor in a file with others comes first, as transformers itself has it.
    files = (
        "config.json", "model.safetensors", "processor_config.json", "preprocessor_config.json",
    )  # fmt: skip
    assert asked == [(file, revision) for file in files]


@pytest.mark.parametrize("remote", [False, True])
def test_weights_may_be_spread_over_files(
    monkeypatch: pytest.MonkeyPatch, vit: Path, remote: bool
) -> None:
    model = transformers.ViTForImageClassification.from_pretrained(vit)
    (vit / "model.safetensors").unlink()
    model.save_pretrained(vit, max_shard_size="10KB")
    shards = sorted(vit.glob("model-*.safetensors"))
    assert len(shards) > 1
    asked = hub(monkeypatch, vit)
    guide = ClassifierGuide("owner/net" if remote else str(vit))
    loaded = guide.network().state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded[f"model.{key}"], value)
    assert {*shards} < {*guide.files()}
    assert remote == bool(asked)
    shards[0].unlink()
    with pytest.raises(CheckpointError, match=f"no {shards[0].name}"):
        ClassifierGuide("owner/net" if remote else str(vit))


def test_a_hub_model_without_safetensors_is_said(
    monkeypatch: pytest.MonkeyPatch, vit: Path
) -> None:
    (vit / "model.safetensors").rename(vit / "pytorch_model.bin")
    hub(monkeypatch, vit)
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        ClassifierGuide("owner/net")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle"):
        ClassifierGuide(str(vit))


def test_timms_folders_are_still_timms(tmp_path: Path) -> None:
    arguments = {"channels": [8, 8, 8, 8], "stem_width": 8, "num_classes": 2}
    network = timm.create_model("resnet10t", **arguments)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "resnet10t", "num_classes": 2, "model_args": arguments}
    # A further key does not make it one of transformers.
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "timm_wrapper"}))
    assert type(load_checkpoint(str(tmp_path)).network).__module__.startswith("timm.")


# --- what cannot be loaded


def test_a_model_for_another_task_is_said(vit: Path) -> None:
    edit(vit / "config.json", architectures=["ViTForMaskedImageModeling"])
    with pytest.raises(CheckpointError, match=r"no image classifier.*ViTForMasked") as caught:
        ClassifierGuide(str(vit))
    assert "ForImageClassification" in caught.value.remedy
    edit(vit / "config.json", architectures=None)
    with pytest.raises(CheckpointError, match=r"no image classifier \(vit\)"):
        ClassifierGuide(str(vit))


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"problem_type": "regression"}, "does not choose between classes"),
        ({"num_channels": 1}, "1 channels"),
        ({"id2label": {"0": "score"}}, "of another shape"),
        ({"hidden_size": 32}, "of another shape"),
        ({"num_hidden_layers": 3}, r"lacks 16 of its weights, such as 'vit\."),
        ({"model_type": "no_such_type"}, "cannot be loaded by transformers"),
    ],
)
def test_configurations_that_do_not_fit_are_said(
    vit: Path, change: dict[str, Any], wrong: str
) -> None:
    edit(vit / "config.json", **change)
    with pytest.raises(CheckpointError, match=wrong) as caught:
        ClassifierGuide(str(vit))
    assert caught.value.remedy


def test_a_network_that_takes_no_pixels_is_refused(tmp_path: Path) -> None:
    config = transformers.ImageGPTConfig(
        vocab_size=9, n_positions=16, n_embd=8, n_layer=1, n_head=1, id2label=NAMES
    )
    transformers.ImageGPTForImageClassification(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="does not take pixels"):
        ClassifierGuide(str(tmp_path))


def test_a_backbone_without_its_head_is_said(vit: Path) -> None:
    path = vit / "model.safetensors"
    state = {k: v for k, v in load_file(path).items() if not k.startswith("classifier")}
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 2 of its weights.*classifier\.bias") as e:
        ClassifierGuide(str(vit))
    assert "head" in e.value.remedy


def test_no_image_processor_is_said(vit: Path) -> None:
    (vit / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        ClassifierGuide(str(vit))


@pytest.mark.parametrize(
    ("change", "wrong"),
    [({"size": {"longest_edge": 40}}, "resizes"), ({"resample": 5}, "filter"),
     ({"image_std": [0.5]}, "normalises")],
)  # fmt: skip
def test_a_strange_image_processor_is_said(vit: Path, change: dict[str, Any], wrong: str) -> None:
    edit(vit / "preprocessor_config.json", **change)
    with pytest.raises(CheckpointError, match=wrong):
        ClassifierGuide(str(vit))


def test_a_file_of_another_name_is_said(vit: Path) -> None:
    assert ClassifierGuide(str(vit / "model.safetensors")).labels.find("ant") == 0
    (vit / "model.safetensors").rename(vit / "mine.safetensors")
    with pytest.raises(CheckpointError, match=r"mine\.safetensors") as caught:
        ClassifierGuide(str(vit / "mine.safetensors"))
    assert "model.safetensors" in caught.value.remedy


def test_code_in_a_repository_is_never_run(vit: Path) -> None:
    (vit / "evil.py").write_text("raise SystemExit('run')")
    kind = "AutoModelForImageClassification"
    remote = {"AutoConfig": "evil.Config", kind: "evil.Model"}
    edit(vit / "config.json", auto_map=remote, model_type="evil")
    with pytest.raises(CheckpointError, match=r"needs code of its own .*evil\.py"):
        ClassifierGuide(str(vit))
    # The class is one that transformers has: it is taken, and the file is left alone.
    edit(vit / "config.json", auto_map=remote, model_type="vit")
    edit(vit / "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Processor"})
    assert ClassifierGuide(str(vit)).labels.find("dog") == 3
    edit(vit / "preprocessor_config.json", image_processor_type="EvilImageProcessor")
    with pytest.raises(CheckpointError, match="image processor EvilImageProcessor"):
        ClassifierGuide(str(vit))
    edit(vit / "preprocessor_config.json", image_processor_type="ViTImageProcessor")
    edit(vit / "config.json", architectures=["EvilForImageClassification"])
    with pytest.raises(CheckpointError, match="class EvilForImageClassification"):
        ClassifierGuide(str(vit))


def test_without_transformers_it_is_said_what_to_install(
    vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match="needs transformers") as caught:
        ClassifierGuide(str(vit))
    assert "ppap-plugin-classifier[transformers]" in caught.value.remedy
