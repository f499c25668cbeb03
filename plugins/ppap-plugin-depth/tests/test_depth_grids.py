"""Networks of patches use every pixel, whatever the size; folders decide nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ppap_plugin_depth.guide import DepthGuide
from safetensors.torch import load_file, save_file
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
)

from ppap_host.files.errors import CheckpointError

FUSION: dict[str, Any] = dict(neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8)


def dinov2(side: int = 42) -> Dinov2Config:
    return Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=side,
        patch_size=14, out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip


def made(kind: str) -> Any:
    torch.manual_seed(0)
    model: Any
    if kind == "dpt-dinov2":
        model = DPTForDepthEstimation(
            DPTConfig(
                backbone_config=dinov2(), is_hybrid=False, hidden_size=16, patch_size=14, **FUSION
            )
        )
    else:
        model = DepthAnythingForDepthEstimation(
            DepthAnythingConfig(
                backbone_config=dinov2(), patch_size=14, reassemble_hidden_size=16,
                head_hidden_size=8, **FUSION,
            )
        )  # fmt: skip
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.xavier_normal_(parameter)
        if name in ("head.head.4.bias", "head.conv3.bias"):
            torch.nn.init.constant_(parameter, 1.0)
    return model.eval()


PROCESSORS = {
    # As facebook/dpt-dinov2-small-nyu has it: no resizing, and padding to a multiple of 14.
    "pads": DPTImageProcessor(do_resize=False, do_pad=True, size_divisor=14),
    "nothing": DPTImageProcessor(do_resize=False),
    "other multiple": DPTImageProcessor(size={"height": 64, "width": 64}),
    "other multiples": DPTImageProcessor(
        size={"height": 70, "width": 70}, keep_aspect_ratio=True, ensure_multiple_of=32
    ),
    "its own": DPTImageProcessor(
        size={"height": 42, "width": 42}, keep_aspect_ratio=True, ensure_multiple_of=14
    ),
}


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("kind", ["dpt-dinov2", "depth-anything"])
def test_every_row_and_column_has_a_gradient(tmp_path: Path, kind: str, processor: str) -> None:
    model = made(kind)
    model.save_pretrained(tmp_path)
    PROCESSORS[processor].save_pretrained(tmp_path)
    guide = DepthGuide(str(tmp_path))
    for size in ((64, 64), (50, 71), (56, 70)):
        x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
        x.requires_grad_()
        prepared = guide.prepare(x)
        assert prepared.shape[-1] % 14 == prepared.shape[-2] % 14 == 0
        output = guide.see(x)
        with torch.no_grad():
            theirs = model(pixel_values=prepared).predicted_depth
            torch.testing.assert_close(output, theirs.squeeze(1))
        (gradient,) = torch.autograd.grad((output * torch.randn_like(output)).sum(), x)
        seen = gradient.abs().sum(dim=1)[0] > 0
        assert seen.any(dim=0).all() and seen.any(dim=1).all(), (size, prepared.shape)


def test_where_the_processor_pads_the_network_sees_as_many_pixels(tmp_path: Path) -> None:
    made("dpt-dinov2").save_pretrained(tmp_path)
    PROCESSORS["pads"].save_pretrained(tmp_path)
    guide = DepthGuide(str(tmp_path))
    for size in ((64, 64), (50, 71), (56, 70), (100, 33)):
        theirs = PROCESSORS["pads"](
            images=torch.rand(3, *size), do_rescale=False, return_tensors="pt"
        )["pixel_values"]
        assert guide.prepare(torch.rand(1, 3, *size)).shape == theirs.shape


# What a folder may not decide


def written(folder: Path, **change: Any) -> Path:
    made("depth-anything").save_pretrained(folder)
    PROCESSORS["its own"].save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return folder


def test_the_processor_that_is_used_is_among_the_files(tmp_path: Path) -> None:
    folder = written(tmp_path)
    usual = json.loads((folder / "preprocessor_config.json").read_text())
    assert {f.name for f in DepthGuide(str(folder)).files()} == {
        "config.json", "preprocessor_config.json", "model.safetensors",
    }  # fmt: skip
    # The newer file with several processors comes first, in transformers as here.
    nested = {"image_processor": usual | {"size": {"height": 70, "width": 70}}}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    guide = DepthGuide(str(folder))
    assert guide.prepare(torch.zeros(1, 3, 64, 64)).shape[-2:] == (70, 70)
    names = {f.name for f in guide.files()}
    assert "processor_config.json" in names and "preprocessor_config.json" not in names
    from transformers import AutoImageProcessor

    assert AutoImageProcessor.from_pretrained(folder).size["height"] == 70


def test_nothing_of_an_adapter_or_of_files_that_are_not_named_is_read(tmp_path: Path) -> None:
    folder = written(tmp_path)
    expected = DepthGuide(str(folder)).network().state_dict()
    adapter = {"base_model_name_or_path": "someone/else", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    (folder / "generation_config.json").write_text("{")
    (folder / "sitecustomize.py").write_text("raise SystemExit")
    found = DepthGuide(str(folder))
    assert all(torch.equal(t, expected[k]) for k, t in found.network().state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone": "microsoft/resnet-50", "backbone_config": None}, "names the backbone"),
        ({"backbone": "hf-hub:timm/resnet18", "backbone_config": None}, "names the backbone"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
        ({"model_type": "no_such"}, "cannot be loaded by transformers"),
        ({"fusion_hidden_size": 10**6}, "far larger"),
        ({"fusion_hidden_size": 10**12}, "cannot be meant"),
        ({"head_hidden_size": 16}, "of another shape"),
    ],
    ids=range(7),
)
def test_what_a_configuration_may_not_ask_for(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        DepthGuide(str(written(tmp_path, **change)))
    assert caught.value.remedy and len(str(caught.value)) < 700


def test_what_would_be_fetched_or_run_is_left_out(tmp_path: Path) -> None:
    folder = written(
        tmp_path, attn_implementation="kernels-community/flash-attn", use_pretrained_backbone=True,
        auto_map={"AutoConfig": "evil.C", "AutoModelForDepthEstimation": "evil.M"},
        fusion_config={"patch_embeddings": True}, transformers_weights="evil.safetensors",
    )  # fmt: skip
    (folder / "evil.py").write_text("raise SystemExit('run')")
    assert DepthGuide(str(folder)).see(torch.zeros(1, 3, 42, 42)).shape == (1, 42, 42)


def test_an_error_is_one_line_and_no_report(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path)
    path = folder / "model.safetensors"
    state = {f"odd.{k}": v for k, v in enumerate(load_file(path).values())}
    save_file(state, path, {"format": "pt"})
    capfd.readouterr()
    with pytest.raises(CheckpointError, match="None of the"):
        DepthGuide(str(folder))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["../../other.safetensors", "/etc/passwd", "a/b.safetensors", "x"])
def test_parts_of_weights_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    folder = written(tmp_path)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    index = {"weight_map": {"head.conv1.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="does not say where the weights are"):
        DepthGuide(str(folder))
