"""Guides that see a pipeline's pictures by a smaller decoder, or in a smaller size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines import ContrastGuide, filled, tiny, tiny_decoder
from support import Indifferent, Watches, asks, call, last_loss
from test_own_steps import SIZE, STEPS, same, steers
from torch import Tensor

import ppap_host as ppap
from ppap_host.files.errors import PpapError
from ppap_host.pipelines.callback import StepGuidance
from ppap_host.pipelines.steer import steer

CALL: dict[str, Any] = {"prompt": "a dog", "num_inference_steps": 4, **SIZE}
VIEWS: dict[str, dict[str, Any]] = {
    "small decoder": {"decoder": filled(tiny_decoder())},
    "half": {"shrink": 2},
    "both": {"decoder": filled(tiny_decoder()), "shrink": 2},
}


class Measures(ContrastGuide):
    """Keeps the size of what it is shown."""

    def see(self, x: Tensor, level: object = None) -> Tensor:
        self.shown = x.detach()
        return super().see(x, level)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["sd", "flux", "wan", "ddpm"])
def test_a_guide_sees_a_cheaper_picture_and_the_pipeline_makes_its_own(
    name: str, view: str
) -> None:
    pipe, options = tiny(name), dict(VIEWS[view])
    arguments = {
        "sd": CALL, "flux": {**CALL, "max_sequence_length": 8},
        "wan": {**CALL, "num_frames": 5, "max_sequence_length": 8},
        "ddpm": {"num_inference_steps": 4},
    }[name]  # fmt: skip
    if "decoder" in options and name in ("wan", "ddpm"):
        with pytest.raises(PpapError, match="small decoder is for pictures with latents of 4"):
            steer(pipe, asks(), **options)
        return
    plain = call(pipe, arguments)
    with steer(pipe, asks(Indifferent), **options):
        assert torch.equal(call(pipe, arguments), plain)
    losses = []
    for guide in (Watches, ContrastGuide):
        with steer(pipe, asks(guide), **options) as report:
            call(pipe, arguments)
        losses.append(last_loss(report))
    assert losses[1] < losses[0]
    measures = asks(Measures)
    with steer(pipe, measures, **options):
        call(pipe, arguments)
    side = plain.shape[-1] // options.get("shrink", 1)
    assert measures.guide.shown.shape[-2:] == (side, side)


def test_the_small_decoder_is_what_is_looked_at() -> None:
    pipe, small = tiny("sd"), filled(tiny_decoder())
    measures = asks(Measures)
    before = {key: value.clone() for key, value in small.state_dict().items()}
    with steer(pipe, measures, decoder=small) as report:
        call(pipe, {**CALL, "num_inference_steps": 1})
    (traced,) = report.trace
    own = asks(Measures)
    with steer(pipe, own):
        call(pipe, {**CALL, "num_inference_steps": 1})
    assert not torch.allclose(measures.guide.shown, own.guide.shown)
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
    assert all(p.requires_grad for p in small.parameters())
    assert traced.loss["contrast"][0] > 0


def test_runs_take_it_by_its_published_format(tmp_path: Path) -> None:
    tiny("sd").save_pretrained(tmp_path / "pipe")
    small = filled(tiny_decoder())
    small.save_pretrained(tmp_path / "taesd")
    options = {"decoder": str(tmp_path / "taesd"), "shrink": "2"}
    made = ppap.sample(
        "diffusers", steers(recipe="x0"), checkpoint=str(tmp_path / "pipe"), prompt="a dog", num=1,
        backbone_options=options, **STEPS, **SIZE,
    )  # fmt: skip
    pipe = tiny("sd")
    generator = torch.Generator().manual_seed(5)
    with ppap.steer(pipe, steers(recipe="x0"), decoder=str(tmp_path / "taesd"), shrink=2, seed=5):
        expected = pipe(**CALL, generator=generator).images[0]
    assert same(made.images[0], expected)
    assert any("taesd/" in name for name in made.record["model_files"])


def test_views_that_cannot_be_had_are_refused(tmp_path: Path) -> None:
    pipe = tiny("sd")
    pipe.save_pretrained(tmp_path / "pipe")
    tiny_decoder(16).save_pretrained(tmp_path / "other")
    folder, other = str(tmp_path / "pipe"), str(tmp_path / "other")
    for options, words in (
        ({"shrink": "half"}, "'half' is no whole number"),
        ({"shrink": "0"}, "shrink"),
        ({"decoder": folder + "/vae"}, "no small decoder"),
        ({"decoder": other}, "latents of 16 channels"),
        ({"shrink": "2", "sampler": "ddim"}, "take their own steps"),
    ):
        sampler = {"sampler": options.pop("sampler")} if "sampler" in options else SIZE
        with pytest.raises(PpapError, match=words):
            ppap.sample(
                "diffusers", steers(), checkpoint=folder, prompt="a dog", num=1,
                backbone_options=options, **sampler,
            )  # fmt: skip
    callback = StepGuidance(pipe, asks(), decoder=tiny_decoder())
    with pytest.raises(PpapError, match="small decoder is an object in memory"):
        callback.save_pretrained(tmp_path / "saved")
    with pytest.raises(PpapError, match="in memory, and a checkpoint or options"):
        ppap.load_backbone(pipe, shrink="2")
