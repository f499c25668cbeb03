"""The guides: losses, measures, pictures, and whole guided runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from ppap_plugin_restore.guide import RestorationGuide
from torch import Tensor
from typer.testing import CliRunner

from ppap_host.cli import app
from ppap_host.files.errors import OptionError
from ppap_host.files.images import from_tensor
from ppap_host.guides.guide import Guide
from ppap_host.plugins.registry import registry
from ppap_host.runs.config import GuideConfig, RunConfig
from ppap_host.runs.run import run

NAMES = ["super-resolution", "inpainting", "deblur", "motion-deblur", "colourise"]


def make(name: str) -> RestorationGuide:
    """A guide of this name that measures clean pictures, of any size."""
    model = "measure=yes,box=0.5" if name == "inpainting" else "measure=yes"
    guide = registry().make("guide", name, Guide, model=model)  # type: ignore[type-abstract]
    assert isinstance(guide, RestorationGuide)
    return guide


def random(*shape: int, seed: int = 0) -> Tensor:
    """Images in [-1, 1]."""
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.mark.parametrize("name", NAMES)
def test_a_guide_looks_like_any_other_to_the_host(name: str) -> None:
    guide, x = make(name), random(2, 3, 16, 16)
    assert guide.name == name
    assert guide.network() is guide.network()
    assert list(guide.network().parameters()) == []
    assert guide.to(torch.device("cpu"), torch.float16) is guide
    output = guide.see(x)
    torch.testing.assert_close(output, guide.network()(x))
    assert guide.as_target(output) is output
    assert [p.size for p in guide.picture(output)] == [(16, 16)] * 2
    assert guide.averages_pixels
    with pytest.raises(OptionError, match="no expert"):
        guide.patch_plan(guide.network())


@pytest.mark.parametrize("name", NAMES)
def test_images_in_half_are_measured_in_single_precision(name: str) -> None:
    guide, x = make(name), random(1, 3, 16, 16).half()
    output = guide.see(x)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, guide.see(x.float()), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_operator_of_a_target_is_the_one_that_measured_it(name: str) -> None:
    guide, x = make(name), random(1, 3, 16, 24)
    y = guide.see(x)
    operator = guide.operator(y)
    torch.testing.assert_close(operator(x), y)
    filled = operator.pseudo_inverse(y)
    assert filled.shape == x.shape
    torch.testing.assert_close(operator(filled), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_mean_squared_residual_of_what_was_measured(name: str) -> None:
    guide = make(name)
    x, shift = random(3, 3, 16, 16), torch.tensor([0.0, 0.1, -0.3]).view(3, 1, 1, 1)
    target = guide.see(x[:1])
    # All five measure a shift of all pixels as the same shift.
    output = guide.see(x[:1] + shift)
    expected = shift.flatten().square()
    torch.testing.assert_close(guide.loss(output, target), expected, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(
        guide.distance(output, target.expand_as(output)), expected, rtol=1e-4, atol=1e-8
    )


def test_measures_are_decibels_and_errors_of_images_in_0_to_1() -> None:
    guide = make("super-resolution")
    target = torch.zeros(1, 3, 4, 4)
    output = torch.tensor([0.0, 0.2, 2.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    measured = guide.measure(output, target)
    assert measured["rmse"] == pytest.approx([0.0, 0.1, 1.0])
    assert measured["psnr"] == pytest.approx([100.0, 20.0, 0.0], abs=1e-5)


def test_pictures_show_boxes_and_greys() -> None:
    (boxes,) = make("super-resolution").picture(random(1, 3, 2, 3))
    assert boxes.size == (12, 8)
    assert boxes.getpixel((0, 0)) == boxes.getpixel((3, 3)) != boxes.getpixel((4, 3))
    (grey,) = make("colourise").picture(torch.zeros(1, 1, 5, 5))
    assert grey.getpixel((0, 0)) == (128, 128, 128)
    guide = make("inpainting")
    (hole,) = guide.picture(guide.see(torch.ones(1, 3, 8, 8)))
    assert hole.getpixel((4, 4)) == (128, 128, 128)
    assert hole.getpixel((0, 0)) == (255, 255, 255)


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "photograph.png"
    coarse = from_tensor(random(1, 3, 5, 5))[0]
    coarse.resize((90, 80), Image.Resampling.BICUBIC).save(path)
    return path


def test_the_command_line_makes_images_whose_average_is_the_target(
    photograph: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small.png"
    Image.open(photograph).resize((16, 16)).save(small)
    arguments = (
        f"run --guide super-resolution --target {small} --num 1 --steps 4 --recipe x0 --scale 10 "
        f"--device cpu --out {tmp_path / 'out'}"
    )
    outcome = CliRunner().invoke(app, arguments.split())
    assert outcome.exit_code == 0, outcome.output
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    (entry,) = record["images"]
    assert entry["measures"]["super-resolution"]["psnr"] > 15
    assert record["skipped_guidance"] == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_every_guide_leaves_finite_measures(
    name: str, photograph: Path, tmp_path: Path
) -> None:
    model = "measure=yes,box=0.4" if name == "inpainting" else "measure=yes"
    config = RunConfig(
        guides=(GuideConfig(name, str(photograph), model=model),), steps=2, num=1, device="cpu"
    )
    record = run(config, tmp_path / "out").record
    assert record["used"]["guides"][0]["recipe"] == "pigdm"
    measured = record["images"][0]["measures"][name]
    assert set(measured) == {"psnr", "rmse"}
    assert 0 < measured["rmse"] < 1


def test_the_mask_is_in_the_record(photograph: Path, tmp_path: Path) -> None:
    white = Image.new("L", (90, 80))
    white.paste(255, (30, 30, 60, 60))
    white.save(tmp_path / "mask.png")
    guide = GuideConfig("inpainting", str(photograph), model=f"mask={tmp_path / 'mask.png'}")
    config = RunConfig(guides=(guide,), steps=2, num=1, device="cpu")
    record = run(config, tmp_path / "out").record
    assert any("mask.png" in name for name in record["model_files"])
