"""GLIDE as a backbone: conditions, guidance through it, and the cascade."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from ppap_plugin_openai.glide import GlideConfig, load_glide
from ppap_plugin_openai.glide_backbone import UPSAMPLER_TEMPERATURE, GlideBackbone, GlideUpsampler
from torch import Tensor, nn

from ppap_host.backbones.backbone import ClassifierFree
from ppap_host.backbones.noise import NoiseRange
from ppap_host.files.errors import CheckpointError, OptionError
from ppap_host.guides.guide import Guide
from ppap_host.guides.targets import Given, Target
from ppap_host.recipes.presets import NAIVE, PPAP, X0, X0_THROUGH
from ppap_host.recipes.recipe import Recipe
from ppap_host.sampling.evaluator import Guidance, Health
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM, DDPM, Solver
from ppap_host.sampling.streams import ImageNoise

State = Callable[[Any], dict[str, Tensor]]
BASE = GlideConfig(
    image_size=8,
    num_channels=32,
    num_res_blocks=1,
    channel_mult=(1, 2),
    num_head_channels=16,
    attention_resolutions=(4,),
    text_ctx=6,
    xf_width=16,
    xf_layers=1,
    xf_heads=2,
    n_vocab=260,
)
UPSAMPLER = replace(BASE, image_size=16, super_res=True)


class Redness(Guide):
    """Wants the red channel as bright as it can be, and sees pixels as they are."""

    name = "redness"

    def network(self) -> nn.Module:
        return nn.Identity()

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        raise NotImplementedError

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output[:, 0] - target).square().mean(dim=(1, 2))

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        raise NotImplementedError

    def picture(self, output: Tensor) -> list[Image.Image]:
        raise NotImplementedError

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        raise NotImplementedError


@pytest.fixture
def make(tmp_path: Path, random_state: State, vocabulary: Path) -> Callable[..., Any]:
    """Backbones around random networks, read from files in the published format."""

    def build(config: GlideConfig) -> GlideBackbone:
        path = tmp_path / "model.pt"
        torch.save(random_state(config), path)
        cls = GlideUpsampler if config.super_res else GlideBackbone
        return cls(load_glide(path, config), vocabulary=vocabulary, files=[path])

    return build


def test_prompts_become_states_and_the_empty_one_needs_no_vocabulary(
    make: Callable[..., Any], vocabulary: Path
) -> None:
    backbone = make(BASE)
    empty = backbone.encode_prompts([""])
    assert [path.name for path in backbone.files()] == ["model.pt"]
    both = backbone.encode_prompts(["a red cat", ""])["states"]
    assert both.shape == (2, 6, 16)
    assert torch.allclose(both[1], empty["states"][0], atol=1e-6)
    assert not torch.allclose(both[0], both[1])
    assert [path.name for path in backbone.files()] == ["model.pt", "vocab.json", "merges.txt"]
    # Six bytes fill the six positions; what follows is not read.
    long = backbone.encode_prompts(["xyzxyz", "xyzxyz and more"])["states"]
    assert torch.equal(long[0], long[1])


def test_the_vocabulary_must_be_the_networks(make: Callable[..., Any]) -> None:
    backbone = make(replace(BASE, n_vocab=300))
    with pytest.raises(CheckpointError, match=r"260 tokens, and the network .* 300"):
        backbone.encode_prompts(["red"])


def test_guidance_acts_on_the_noise_and_keeps_the_conditional_variance(
    make: Callable[..., Any],
) -> None:
    backbone = make(BASE)
    level = backbone.levels()[600]
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    condition, nothing = (backbone.encode_prompts([text]) for text in ("red", ""))
    guided = ClassifierFree(backbone, condition, nothing, 3.0)(x, level)
    plain = ClassifierFree(backbone, condition, nothing, 1.0)(x, level)
    without = backbone.predict(x, level, {})
    torch.testing.assert_close(guided.v, plain.v, atol=1e-5, rtol=1e-5)
    expected = without.eps + 3.0 * (plain.eps - without.eps)
    torch.testing.assert_close(guided.eps, expected, atol=1e-4, rtol=1e-4)
    assert backbone.default_cfg == 3.0


@pytest.mark.parametrize("recipe", [NAIVE, PPAP, X0, X0_THROUGH], ids=lambda r: r.name)
@pytest.mark.parametrize("solver", [DDIM(), DDPM()], ids=lambda s: s.name)
def test_a_guide_steers_glide(make: Callable[..., Any], recipe: Recipe, solver: Solver) -> None:
    """Every view's gradient arrives: at x_t, at x_0 held constant, and through the backbone."""
    backbone = make(BASE)
    condition, nothing = (backbone.encode_prompts([text]) for text in ("a red cat", ""))
    health = Health()
    # The cosine schedule's noisiest steps divide by next to nothing: a score shifted there
    # overflows, whoever predicts it.
    recipe = replace(recipe, interval=NoiseRange(-4.0, torch.inf))

    def run(*guidance: Guidance) -> Tensor:
        return sample(
            backbone,
            ClassifierFree(backbone, condition, nothing, 2.0),
            backbone.walk(5),
            solver,
            ImageNoise(0, [0, 1], backbone.state_shape),
            guidance,
            health=health,
        )

    guide, target = Redness(), torch.ones(1)
    unguided = guide.loss(run(), target)
    guided = guide.loss(run(Guidance(guide, target, recipe, 20.0)), target)
    assert (guided < unguided).all()
    assert not health.skipped


def test_the_gradient_through_the_network_reaches_every_pixel(make: Callable[..., Any]) -> None:
    backbone = make(BASE)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    prediction = backbone.predict(x, backbone.levels()[300], backbone.encode_prompts(["red"]))
    (gradient,) = torch.autograd.grad(prediction.eps.square().sum(), x)
    assert gradient.isfinite().all()
    assert (gradient != 0).all()


def test_a_cascade_makes_larger_images_that_depend_on_the_small_ones(
    make: Callable[..., Any],
) -> None:
    base, upsampler = make(BASE), make(UPSAMPLER)
    small = sample(
        base,
        ClassifierFree(base, base.encode_prompts(["red"]), base.encode_prompts([""]), 3.0),
        base.walk(4),
        DDPM(),
        ImageNoise(0, [0, 1], base.state_shape),
    )
    text = upsampler.encode_prompts(["red"])
    walk = upsampler.walk("fast27")
    noise = ImageNoise(1, [0, 1], upsampler.state_shape)()
    assert upsampler.start_temperature == UPSAMPLER_TEMPERATURE == 0.997
    assert upsampler.default_cfg == 1.0

    def enlarge(images: Tensor) -> Tensor:
        condition = {**text, **upsampler.conditioned_on(images)}
        start = upsampler.start_temperature * walk.levels[0].scale * noise
        denoise = ClassifierFree(upsampler, condition, {}, upsampler.default_cfg)
        return sample(upsampler, denoise, walk, DDIM(), lambda: noise, start=start)

    large = enlarge(small)
    assert large.shape == (2, 3, 16, 16)
    assert large.isfinite().all()
    assert not torch.allclose(large, enlarge(small.flip(0)))
    # One small image serves a whole batch.
    assert torch.allclose(enlarge(small[:1])[0], large[0], atol=1e-4)


def test_small_images_are_rounded_to_a_files_levels(make: Callable[..., Any]) -> None:
    backbone = make(UPSAMPLER)
    levels = torch.arange(256.0).view(1, 1, 16, 16).expand(1, 3, 16, 16) / 127.5 - 1
    nudged = backbone.conditioned_on(levels + 0.4 / 127.5)["low_res"]
    torch.testing.assert_close(nudged, levels, atol=1e-6, rtol=0)


def test_an_upsampler_without_an_image_says_so(make: Callable[..., Any]) -> None:
    backbone = make(UPSAMPLER)
    with pytest.raises(OptionError, match="enlarges images") as caught:
        backbone.predict(torch.zeros(1, 3, 16, 16), backbone.levels()[5], {})
    assert "conditioned_on" in caught.value.remedy


def test_inpainting_keeps_what_is_known(make: Callable[..., Any]) -> None:
    backbone = make(replace(BASE, inpaint=True))
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(4)) * 2 - 1
    known = torch.zeros(1, 1, 8, 8)
    known[..., :4] = 1
    given = backbone.inpainting(image, known)
    condition, nothing = ({**backbone.encode_prompts([p]), **given} for p in ("red", ""))

    def run(steps: int = 6) -> Tensor:
        return sample(
            backbone,
            ClassifierFree(backbone, condition, nothing, 3.0),
            backbone.walk(steps),
            DDIM(),
            ImageNoise(0, [0, 1], backbone.state_shape),
        )

    filled = run()
    torch.testing.assert_close(
        filled[..., :4], image[..., :4].expand(2, 3, 8, 4), atol=1e-4, rtol=0
    )
    assert not torch.allclose(filled[0, ..., 4:], filled[1, ..., 4:])
    backbone.keeps_known = False
    assert not torch.allclose(run()[..., :4], filled[..., :4], atol=1e-2)
    # Hidden pixels are not looked at, and without a condition nothing is known.
    other = backbone.inpainting(torch.where(known > 0, image, 0.7), known)
    assert torch.equal(other["inpaint_image"], given["inpaint_image"])
    assert backbone.predict(image, backbone.levels()[9], {}).eps.isfinite().all()


def test_inpainting_needs_its_network_and_its_size(make: Callable[..., Any]) -> None:
    with pytest.raises(OptionError, match="cannot fill in"):
        make(BASE).inpainting(torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8))
    with pytest.raises(OptionError, match="8 x 8 pixels"):
        make(replace(BASE, inpaint=True)).inpainting(
            torch.zeros(1, 3, 9, 9), torch.zeros(1, 1, 9, 9)
        )


def test_half_precision_is_the_networks_own_affair(make: Callable[..., Any]) -> None:
    backbone = make(UPSAMPLER).to(torch.device("cpu"), torch.bfloat16)
    condition = backbone.encode_prompts(["red"]) | backbone.conditioned_on(torch.zeros(1, 3, 8, 8))
    prediction = backbone.predict(torch.zeros(1, 3, 16, 16), backbone.levels()[500], condition)
    assert prediction.eps.dtype == prediction.v.dtype == torch.float32
    assert next(backbone.network.parameters()).dtype == torch.bfloat16


def test_an_image_does_not_depend_on_its_batch(make: Callable[..., Any]) -> None:
    backbone = make(BASE)
    level, condition = backbone.levels()[100], backbone.encode_prompts(["red"])
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    together = backbone.predict(x, level, {k: v.expand(3, 6, 16) for k, v in condition.items()})
    alone = backbone.predict(x[1:2], level, condition)
    torch.testing.assert_close(together.eps[1:2], alone.eps, atol=1e-5, rtol=1e-5)
