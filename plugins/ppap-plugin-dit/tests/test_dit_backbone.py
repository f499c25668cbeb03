"""DiT as a backbone: classes, levels, decoding, and a guided run on tiny random networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from ppap_plugin_dit.backbone import LATENT_SCALE, DiTBackbone
from ppap_plugin_dit.dit import DiTConfig, build_dit, published_layout
from torch import Tensor, nn

from ppap_host.backbones.backbone import Backbone, ClassifierFree
from ppap_host.backbones.noise import DiscreteSchedule, linear_betas
from ppap_host.files.errors import CheckpointError, OptionError
from ppap_host.guides.guide import Guide
from ppap_host.guides.targets import Given, Target
from ppap_host.pipelines.autoencoder import Autoencoder
from ppap_host.plugins.registry import registry
from ppap_host.recipes.gradients import Normalised
from ppap_host.recipes.places import CleanPoint
from ppap_host.recipes.recipe import Recipe
from ppap_host.recipes.strengths import PosteriorSpread
from ppap_host.recipes.views import Predicted
from ppap_host.sampling.evaluator import Guidance
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM
from ppap_host.sampling.streams import ImageNoise

TINY = DiTConfig(
    input_size=8, hidden_size=16, depth=2, num_heads=2, mlp_size=64, num_classes=5, patch_size=2
)


def tiny_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,  # DiT's own factor must win
    )
    # Untrained decoders make grey images.
    vae.decoder.conv_out.weight.data *= 20
    return vae


@pytest.fixture
def backbone() -> DiTBackbone:
    torch.manual_seed(0)
    network = build_dit(TINY).to_empty(device="cpu")
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    nn.init.normal_(network.pos_embed.pos_embed)
    return DiTBackbone(
        network.requires_grad_(False).eval(), Autoencoder(tiny_vae(), scaling=LATENT_SCALE)
    )


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A checkpoint with its JSON file, and the folder of an autoencoder."""
    state = {k: torch.randn(s) * 0.1 for k, s in published_layout(TINY).items()}
    torch.save(state, tmp_path / "dit.pt")
    (tmp_path / "dit.pt.json").write_text(json.dumps({"num_heads": 2}))
    tiny_vae().save_pretrained(tmp_path / "vae")
    return str(tmp_path / "dit.pt"), str(tmp_path / "vae")


class ContrastGuide(Guide):
    """How much brighter the left half is than the right one: no normalisation evens that out."""

    name = "contrast"

    def network(self) -> nn.Module:
        return nn.Identity()

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        return Target(given.words, torch.tensor([float(given.words)]))

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def see(self, x: Tensor, level: object = None) -> Tensor:
        left, right = x.chunk(2, dim=3)
        return (left - right).mean(dim=(1, 2, 3))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square()

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square()

    def picture(self, output: Tensor) -> list[Image.Image]:
        return [Image.new("RGB", (1, 1)) for _ in output]

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        return {"error": (output - target).abs().tolist()}


def test_names_are_registered_and_weights_asked_for() -> None:
    names = registry().names("backbone")
    for name, file in (
        ("dit-xl-2-256", "DiT-XL-2-256x256.pt"),
        ("dit-xl-2-512", "DiT-XL-2-512x512.pt"),
        ("dit", "DiT-XL-2-256x256.pt"),
    ):
        assert [plugin.distribution for plugin, _ in names[name]] == ["ppap-plugin-dit"]
        with pytest.raises(CheckpointError, match=file):
            registry().make("backbone", name, Backbone, checkpoint=None)  # type: ignore[type-abstract]


def test_a_backbone_is_made_by_name_from_files(files: tuple[str, str]) -> None:
    checkpoint, vae = files
    made = registry().make("backbone", "dit", Backbone, checkpoint=checkpoint, vae=vae)  # type: ignore[type-abstract]
    made.to(torch.device("cpu"), torch.float32)
    assert made.state_shape == (4, 8, 8)
    assert made.image_size == (16, 16)
    assert made.clip is None
    assert made.cfg_channels == 3
    names = sorted(path.name for path in made.files())
    assert names == ["config.json", "diffusion_pytorch_model.safetensors", "dit.pt", "dit.pt.json"]


def test_the_autoencoder_is_not_touched_before_it_is_needed(files: tuple[str, str]) -> None:
    checkpoint, _ = files
    made = registry().make("backbone", "dit", Backbone, checkpoint=checkpoint, vae="/no/such/vae")  # type: ignore[type-abstract]
    x = torch.zeros(1, *made.state_shape)
    assert made.predict(x, made.levels()[10], {}).eps.isfinite().all()
    with pytest.raises(CheckpointError, match="no model folder '/no/such/vae'"):
        made.decode(x)


def test_another_network_is_refused_by_the_published_names(files: tuple[str, str]) -> None:
    with pytest.raises(CheckpointError, match="do not fit the configuration"):
        registry().make("backbone", "dit-xl-2-256", Backbone, checkpoint=files[0])  # type: ignore[type-abstract]


def test_a_published_file_is_found_in_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no file .*DiT-XL-2-512x512\.pt"):
        registry().make("backbone", "dit-xl-2-512", Backbone, checkpoint=str(tmp_path))  # type: ignore[type-abstract]


def test_classes_are_indices_and_none_is_the_null_class(backbone: DiTBackbone) -> None:
    assert backbone.encode_classes([0, 4, None])["labels"].tolist() == [0, 4, 5]
    for label in (-1, 5):
        with pytest.raises(OptionError, match=f"no class {label}"):
            backbone.encode_classes([label])
    with pytest.raises(OptionError, match="reads no prompts"):
        backbone.encode_prompts(["a dog"])


def test_without_labels_the_null_class_is_meant(backbone: DiTBackbone) -> None:
    x, level = torch.randn(2, 4, 8, 8), backbone.levels()[300]
    plain = backbone.predict(x, level, {})
    null = backbone.predict(x, level, backbone.encode_classes([None, None]))
    assert torch.equal(plain.eps, null.eps)
    assert plain.v is not None and plain.v.shape == x.shape


def test_a_network_without_a_null_class_says_so(backbone: DiTBackbone) -> None:
    plain = DiTBackbone(backbone.transformer, backbone.autoencoder, null_class=False)
    assert plain.encode_classes([5])["labels"].tolist() == [5]
    with pytest.raises(OptionError, match="without a null class"):
        plain.encode_classes([None])


def test_classifier_free_guidance_leaves_the_fourth_channel(backbone: DiTBackbone) -> None:
    condition, null = backbone.encode_classes([1]), backbone.encode_classes([None])
    x, level = torch.randn(2, 4, 8, 8), backbone.levels()[300]
    plain = ClassifierFree(backbone, condition, null, 1.0)(x, level)
    guided = ClassifierFree(backbone, condition, null, 4.0)(x, level)
    torch.testing.assert_close(plain.eps[:, 3:], guided.eps[:, 3:])
    assert (plain.eps[:, :3] - guided.eps[:, :3]).abs().amax(dim=(2, 3)).min() > 1e-4


def test_levels_are_those_of_the_linear_schedule(backbone: DiTBackbone) -> None:
    expected = DiscreteSchedule.from_betas(linear_betas(1000))
    assert backbone.levels() == expected.levels()
    assert backbone.walk("ddim25") == expected.walk("ddim25")


def test_a_prediction_of_x0_gives_its_noise(backbone: DiTBackbone) -> None:
    other = DiTBackbone(backbone.transformer, backbone.autoencoder, predict_xstart=True)
    x, level = torch.randn(1, 4, 8, 8), backbone.levels()[500]
    raw = backbone.predict(x, level, {}).eps
    eps = other.predict(x, level, {}).eps
    torch.testing.assert_close(level.alpha * raw + level.sigma * eps, x)


def test_decoding_uses_the_factor_of_dits_training(backbone: DiTBackbone) -> None:
    z = torch.randn(2, 4, 8, 8)
    expected = tiny_vae().eval().decode(z / 0.18215).sample
    torch.testing.assert_close(backbone.decode(z), expected)


def test_decoding_is_differentiable(backbone: DiTBackbone) -> None:
    """Against the difference quotient along a direction."""
    torch.manual_seed(1)
    nn.Module.to(backbone.autoencoder.network, dtype=torch.float64)
    z, direction = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    z.requires_grad_()
    weights = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((backbone.decode(z) * weights).sum(), z)
    h = 1e-5
    with torch.no_grad():
        up, down = backbone.decode(z + h * direction), backbone.decode(z - h * direction)
    quotient = ((up - down) * weights).sum() / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), quotient, rtol=1e-6, atol=0)


def test_a_guide_steers_through_the_decoder(backbone: DiTBackbone) -> None:
    guide = ContrastGuide()
    denoise = ClassifierFree(
        backbone, backbone.encode_classes([1]), backbone.encode_classes([None]), 1.5
    )
    recipe = Recipe(
        name="toy",
        view=Predicted(),
        place=CleanPoint(),
        strength=PosteriorSpread(),
        gradient=(Normalised(),),
    )
    target = torch.tensor([4.0])

    def losses(scale: float) -> Tensor:
        z = sample(
            backbone,
            denoise,
            backbone.walk(8),
            DDIM(),
            ImageNoise(0, range(2), backbone.state_shape),
            [Guidance(guide, target, replace(recipe, absolute=True), scale)],
        )
        return guide.loss(guide.see(backbone.decode(z)), target)

    assert (losses(50.0) < 0.8 * losses(0.0)).all()
