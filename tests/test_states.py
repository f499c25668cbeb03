"""States of any rank: video, sound, vectors and grey images are guided end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import GaussianBackbone

import ppap_host as ppap
from ppap_host.backbones.backbone import Backbone
from ppap_host.files.errors import OptionError
from ppap_host.guides.functions import as_guide
from ppap_host.guides.guide import Guide
from ppap_host.guides.sight import shown
from ppap_host.plugins.loading import load_recipe
from ppap_host.plugins.registry import registry
from ppap_host.testing import PullGuide

SHAPES = {
    "video": (3, 2, 6, 4), "audio": (2, 20), "vectors": (2,), "images": (1, 6, 6),
    "arrays": (2, 2, 2, 2, 2),
}  # fmt: skip
GUIDED = [
    name
    for name in registry().names("recipe")
    if not load_recipe(registry(), name).guideless and name not in ("ppap", "naive")
]
"""Presets that ask a guide, and need no experts."""


def bright(x: Tensor) -> Tensor:
    """How far the mean is from a half."""
    return (x.flatten(1).mean(dim=1) - 0.5).square()


class Towards(PullGuide):
    """Wants every entry to be 0.8, of whatever shape."""

    def read_target(self, value: Any, size: tuple[int, int]) -> ppap.Target:
        return ppap.Target("0.8", torch.full((1,), 0.8))

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        return {"error": self.loss(output, target).tolist()}


@pytest.mark.parametrize("recipe", GUIDED)
@pytest.mark.parametrize("makes", SHAPES)
def test_every_preset_guides_every_state(makes: str, recipe: str) -> None:
    world = GaussianBackbone(shape=SHAPES[makes], spread=0.3)

    def error(scale: float) -> float:
        guide = ppap.guidance(Towards(), "0.8", scale=scale)
        # Repeats draw noise of their own, and lead elsewhere by themselves.
        once = f"{recipe}:recurrence=1"
        made = ppap.sample(world, guide, recipe=once, steps=6, num=3, eta=eta)
        assert made.tensor.shape[2:] == SHAPES[makes][1:]
        return sum(row["pull"]["error"] for row in made.measures)

    method = load_recipe(registry(), recipe)
    eta = 1.0 if method.needs else 0.0
    # What only chooses among a few can be better by little.
    enough = (0.95 if method.moves else 1.0) * error(0.0)
    assert any(error(scale) < enough for scale in (1.0, 4.0, 0.1, 16.0))


@pytest.mark.parametrize("makes", SHAPES)
def test_a_run_is_written_and_shown_as_what_it_is(makes: str, tmp_path: Path) -> None:
    world = GaussianBackbone(shape=SHAPES[makes])
    assert world.makes == makes
    result = ppap.sample(world, ppap.guidance(bright), out=tmp_path / "run", steps=3, num=2)
    assert all(path.stat().st_size for path in (tmp_path / "run").glob("0000?.png"))
    assert (tmp_path / "run" / "sheet.png").is_file()
    again = ppap.sample(world, ppap.guidance(bright), steps=3, num=2)
    ours, theirs = ([e["pixels_sha256"] for e in r.record["images"]] for r in (result, again))
    assert ours == theirs
    if makes == "images":
        assert result.tensor.shape == (2, 3, 6, 6)
        assert not list((tmp_path / "run").glob("*.npy"))
    else:
        assert torch.equal(result.tensor, again.tensor)
        first = np.load(tmp_path / "run" / "00000.npy", allow_pickle=False)
        assert first.shape == SHAPES[makes] and torch.equal(
            torch.from_numpy(first), again.tensor[0]
        )
    assert len(result.images) == 2


@pytest.mark.parametrize("makes", [m for m in SHAPES if m != "images"])
def test_a_guide_that_looks_at_something_else_is_refused(makes: str, tmp_path: Path) -> None:
    world = GaussianBackbone(shape=SHAPES[makes])
    with pytest.raises(OptionError, match=f"looks at images, .* makes {makes} of shape"):
        ppap.sample(world, ppap.guidance("classifier", target="red cube"), out=tmp_path / "run")
    assert world.evaluations == 0
    assert not list(tmp_path.glob("run/*.png"))


def test_grey_images_are_shown_to_guides_for_colours_as_grey() -> None:
    world, seen = GaussianBackbone(shape=(1, 6, 6)), []

    def watched(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return bright(x)

    ppap.sample(world, ppap.guidance(watched), steps=2, num=1)
    assert all(x.shape == (1, 3, 6, 6) and torch.equal(x[:, :1], x[:, 1:2]) for x in seen)


def test_a_guide_for_one_channel_is_shown_one_and_no_other() -> None:
    guide = as_guide(bright, "bright")
    guide.looks_at, guide.channels = "images", 1
    state = torch.zeros(1, 1, 6, 6)
    assert shown(guide, GaussianBackbone(shape=(1, 6, 6)))(state).shape == (1, 1, 6, 6)
    with pytest.raises(OptionError, match="of 1 channels"):
        shown(guide, GaussianBackbone(shape=(3, 6, 6)))


class Spoken(Backbone):
    """A latent model of sound: its decoder says what it gives."""

    name, state_shape, decoded_shape = "spoken", (4, 8), (1, 32)  # type: ignore[assignment]
    walk, levels, predict, to = (
        getattr(GaussianBackbone, n) for n in ("walk", "levels", "predict", "to")
    )

    def __init__(self) -> None:
        vars(self).update(vars(GaussianBackbone(shape=(4, 8))))

    def decode(self, x0: Tensor) -> Tensor:
        return x0.reshape(len(x0), 1, 32)


def test_a_decoder_of_sound_is_followed() -> None:
    world = Spoken()
    assert (world.makes, world.latent) == ("audio", True)
    result = ppap.sample(world, ppap.guidance(bright), steps=3, num=2, unguided=True)
    assert result.tensor.shape == (2, 1, 32)
    assert result.record["images"][0]["unguided"]["bright"]["loss"] > 0


def test_a_one_channel_pipeline_is_guided_to_its_pictures() -> None:
    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16),
        norm_num_groups=4, layers_per_block=1, down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    pipe = diffusers.DDPMPipeline(network.eval(), diffusers.DDPMScheduler())
    result = ppap.sample(pipe, ppap.guidance(bright), steps=3, num=2, sampler="ddpm")
    assert result.tensor.shape == (2, 3, 8, 8)
    assert result.images[0].getcolors(64) and result.record["status"] == "complete"


def test_what_experts_learn_from_are_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ppap_host.runs import harvesting

    points = GaussianBackbone(shape=(2,))
    monkeypatch.setattr(harvesting, "load_backbone", lambda *_, **__: points)
    config = harvesting.HarvestConfig(backbone="shapes", num=1)
    with pytest.raises(OptionError, match="makes vectors"):
        harvesting.harvest(config, tmp_path / "harvest")


def test_a_wrapped_guide_looks_where_its_own_does() -> None:
    from ppap_host.guides.guide import Wrapped

    inner: Guide = as_guide(bright, "bright")
    inner.looks_at, inner.channels = "audio", None
    assert (Wrapped(inner).looks_at, Wrapped(inner).channels) == ("audio", None)
