"""The guides ``clip`` and ``style``: targets, gradients, experts, pictures, and guided runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ppap_plugin_clip.clip_guide import ClipGuide
from ppap_plugin_clip.pictures import SIDE, Axes, card, patch_map
from ppap_plugin_clip.style_guide import StyleGuide
from torch import Tensor, nn
from worlds import GaussianBackbone

from ppap_host.backbones.backbone import ClassifierFree
from ppap_host.cli import main
from ppap_host.experts.patches import Patch
from ppap_host.files.errors import TargetError
from ppap_host.files.images import from_tensor, to_tensor
from ppap_host.guides.guide import Guide
from ppap_host.recipes.presets import X0, X0_THROUGH
from ppap_host.recipes.recipe import Recipe
from ppap_host.sampling.evaluator import Guidance, Health
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM
from ppap_host.sampling.streams import ImageNoise

SIZE = (32, 32)
CPU = torch.device("cpu")


@pytest.fixture
def clip(clip_folder: Path) -> ClipGuide:
    return ClipGuide(str(clip_folder))


@pytest.fixture
def style(clip_folder: Path) -> StyleGuide:
    return StyleGuide(str(clip_folder))


def images(count: int, side: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=generator) * 2 - 1


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    from_tensor(images(1, seed=5))[0].save(path)
    return path


def both(folder: Path, photo: Path) -> list[tuple[Guide, Tensor]]:
    """Each guide, with a target."""
    guides: list[Guide] = [ClipGuide(str(folder)), StyleGuide(str(folder))]
    return [(guide, guide.read_target(str(photo), SIZE).value) for guide in guides]


# --- targets


def test_a_text_becomes_a_direction(clip: ClipGuide) -> None:
    target = clip.read_target("a red cube", SIZE)
    assert target.value.shape == (1, 12)
    assert target.value.norm().item() == pytest.approx(1)
    assert not target.value.requires_grad
    assert list(target.files) == [] and list(target.pictures) == ["target"]
    other = clip.read_target("a blue cone", SIZE)
    assert (other.value - target.value).norm() > 0.1
    again = clip.read_target("a red cube", (64, 40))
    assert torch.equal(again.value, target.value)


def test_an_image_becomes_its_embedding(clip: ClipGuide, photo: Path) -> None:
    target = clip.read_target(str(photo), SIZE)
    with torch.no_grad():
        seen = clip.see(to_tensor(Image.open(photo)))
    torch.testing.assert_close(target.value, seen / seen.norm())
    assert list(target.files) == [photo]
    assert clip.measure(seen, target.value)["similarity"] == pytest.approx([1.0])
    assert clip.loss(seen, target.value).item() == pytest.approx(0, abs=1e-4)


def test_an_image_becomes_its_style_which_is_its_own(style: StyleGuide, photo: Path) -> None:
    target = style.read_target(str(photo), SIZE)
    assert target.value.shape == (1, 16, 16)
    assert list(target.files) == [photo]
    assert list(target.pictures) == ["target", "its patches"]
    with torch.no_grad():
        output = style.see(torch.cat([to_tensor(Image.open(photo)), images(1, seed=6)]))
    itself, other = style.measure(output, target.value)["style"]
    assert itself == pytest.approx(0, abs=1e-5)
    assert other > 0.01


def test_a_file_comes_before_a_text_of_its_name(
    clip: ClipGuide, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo.parent)
    photo.rename("a red cube")
    assert list(clip.read_target("a red cube", SIZE).files) == [Path("a red cube")]
    Path("a blue cone").mkdir()
    assert list(clip.read_target("a blue cone", SIZE).files) == []


def test_bad_targets_are_said(clip: ClipGuide, style: StyleGuide, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("a red cube")
    for target, wrong in (
        ("absent.png", "no file"),
        (str(tmp_path / "absent"), "no file"),
        (str(tmp_path), "folder"),
        (str(words), "not an image"),
        ("https://example.org/a.png", "address"),
    ):
        for guide in (clip, style):
            with pytest.raises(TargetError, match=wrong) as caught:
                guide.read_target(target, SIZE)
            assert caught.value.remedy
    for target, wrong in (
        ("", "empty"),
        (" \n ", "empty"),
        ("red " * 100, "100 tokens"),
        ("x" * 5000, "5000 tokens"),
    ):
        with pytest.raises(TargetError, match=wrong) as caught:
            clip.read_target(target, SIZE)
        assert caught.value.remedy
    for target in ("", "van gogh"):
        with pytest.raises(TargetError, match="no file") as caught:
            style.read_target(target, SIZE)
        assert "'clip'" in caught.value.remedy


# --- losses and gradients


def test_the_loss_is_the_spherical_distance_at_clips_temperature(clip: ClipGuide) -> None:
    target = clip.read_target("a red cube", SIZE).value
    with torch.no_grad():
        output = clip.see(images(3))
    angle = torch.tensor(clip.measure(output, target)["similarity"]).acos()
    torch.testing.assert_close(clip.loss(output, target), 100 * angle**2 / 2, rtol=1e-4, atol=1e-4)


def test_half_precision_sees_nearly_the_same(clip_folder: Path, photo: Path) -> None:
    x = images(2)
    for (guide, target), (halved, _) in zip(
        both(clip_folder, photo), both(clip_folder, photo), strict=True
    ):
        halved.to(CPU, torch.bfloat16)
        again = halved.read_target(str(photo), SIZE).value
        variable = x.clone().requires_grad_()
        loss = halved.loss(halved.see(variable), again)
        with torch.no_grad():
            expected = guide.loss(guide.see(x), target)
        torch.testing.assert_close(loss.detach(), expected, rtol=0.1, atol=0.02)
        (gradient,) = torch.autograd.grad(loss.sum(), variable)
        assert gradient.isfinite().all() and gradient.dtype == torch.float32


def test_a_text_moves_with_the_network(clip: ClipGuide) -> None:
    before = clip.read_target("a red cube", SIZE).value
    clip.to(CPU, torch.float64)
    after = clip.read_target("a red cube", SIZE).value
    assert after.dtype == torch.float64
    torch.testing.assert_close(after.float(), before)


# --- experts


def test_an_expert_lies_on_every_layer_but_not_on_the_class_token(
    clip_folder: Path, photo: Path
) -> None:
    for guide, _ in both(clip_folder, photo):
        network = guide.network()
        plan = guide.patch_plan(network)
        patch = Patch.fresh(network, plan)
        kinds = nn.Conv2d | nn.Linear
        layers = {f"{n}.weight" for n, m in network.named_modules() if isinstance(m, kinds)}
        assert layers and layers <= patch.low_rank.keys() | patch.direct.keys()
        named = {*plan.low_rank, *plan.direct}
        assert not [name for name in named if "class_embedding" in name or "position" in name]
        x = images(2)
        with torch.no_grad():
            plain = guide.see(x)
            torch.testing.assert_close(guide.through(patch.over(network), x), plain)
            for tensor in patch.trainable():
                tensor += 0.01
            moved = guide.through(patch.over(network), x)
        assert (moved - plain).abs().max() > 1e-3


def test_every_part_of_an_expert_learns(clip_folder: Path, photo: Path) -> None:
    x = images(2)
    for guide, _ in both(clip_folder, photo):
        network = guide.network()
        patch = Patch.fresh(network, guide.patch_plan(network))
        with torch.no_grad():
            teacher = guide.see(x)
            for tensor in patch.trainable():
                tensor += 0.01
        for tensor in patch.trainable():
            tensor.requires_grad_()
        distance = guide.distance(guide.through(patch.over(network), x + 0.1), teacher)
        assert distance.shape == (2,) and (distance > 0).all()
        gradients = torch.autograd.grad(distance.sum(), patch.trainable())
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_an_output_asks_for_itself(clip_folder: Path, photo: Path) -> None:
    for guide, target in both(clip_folder, photo):
        with torch.no_grad():
            output = guide.see(images(3))
        wanted = guide.as_target(output)
        assert wanted.shape[1:] == target.shape[1:]
        zero = torch.zeros(3)
        torch.testing.assert_close(guide.loss(output, wanted), zero, atol=1e-4, rtol=0)
        torch.testing.assert_close(guide.distance(output, output), zero, atol=1e-4, rtol=0)
        measured = guide.measure(output, wanted)
        ((name, values),) = measured.items()
        assert values == pytest.approx([1.0 if name == "similarity" else 0.0] * 3, abs=1e-4)


# --- pictures


def test_a_card_shows_the_similarity_to_the_last_target(clip: ClipGuide, photo: Path) -> None:
    with torch.no_grad():
        output = clip.see(images(2))
    assert same(clip.picture(output)[0], card("no target was read"))
    target = clip.read_target("a red cube", SIZE)
    scores = clip.measure(output, target.value)["similarity"]
    for picture, score in zip(clip.picture(output), scores, strict=True):
        assert picture.size == (SIDE, SIDE)
        assert same(picture, card("a red cube", score))
    clip.read_target(str(photo), SIZE)
    assert not same(clip.picture(output)[0], card("a red cube", scores[0]))


def same(one: Image.Image, other: Image.Image) -> bool:
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))


def test_the_bar_grows_from_the_middle() -> None:
    def blue(similarity: float) -> np.ndarray:
        pixels = np.asarray(card("x", similarity)).astype(int)
        return np.flatnonzero(((pixels[:, :, 2] - pixels[:, :, 0]) > 60).any(axis=0))

    assert len(blue(0.0)) == 0
    assert blue(0.5).min() >= SIDE // 2 and blue(-0.5).max() <= SIDE // 2
    assert len(blue(1.0)) == pytest.approx(2 * len(blue(0.5)), abs=3)


@pytest.mark.parametrize("label", ["word " * 60, "x" * 300, "", "one"])
def test_a_label_stays_in_its_card(label: str) -> None:
    picture = np.asarray(card(label, 0.2))
    edge = picture[:, -8:]
    assert (edge == edge[0, 0]).all()
    # The number and the bar are never written over.
    assert np.array_equal(picture[112:], np.asarray(card("", 0.2))[112:])


def test_patches_that_are_alike_are_alike_in_colour(style: StyleGuide, photo: Path) -> None:
    style.read_target(str(photo), SIZE)
    half = torch.zeros(1, 3, 32, 32)
    half[:, :, :, 16:] = 1.0
    with torch.no_grad():
        (picture,) = style.picture(style.see(half))
    assert picture.size == (SIDE, SIDE)
    tokens = torch.zeros(16, 16)
    tokens[::2] = 1.0
    shown = np.asarray(patch_map(tokens, Axes.of(tokens)))[24::48, 24::48].reshape(16, 3)
    assert len(np.unique(shown, axis=0)) == 2
    # Colours mean the same in every picture with the same axes.
    axes = Axes.of(tokens)
    assert same(patch_map(tokens, axes), patch_map(tokens.clone(), axes))
    grey = np.asarray(patch_map(tokens.mean(dim=0).expand(16, 16), axes))
    assert set(np.unique(grey)) <= {127, 128}


# --- guided runs


def guided(guide: Guide, target: Tensor, recipe: Recipe, scale: float) -> Tensor:
    """What the guide measures in images of a Gaussian world, made in eight guided steps."""
    backbone = GaussianBackbone(mean=0.0, spread=0.5, shape=(3, 16, 16))
    health = Health()
    made = sample(
        backbone, ClassifierFree(backbone, {}, {}), backbone.walk(8), DDIM(),
        ImageNoise(7, range(4), backbone.state_shape),
        [Guidance(guide, target, recipe, scale)], health=health,
    )  # fmt: skip
    assert not health.skipped
    with torch.no_grad():
        (values,) = guide.measure(guide.see(made), target).values()
    return torch.tensor(values)


@pytest.mark.parametrize("recipe", [X0, X0_THROUGH], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("text", ["a red cube", "a blue cone"])
def test_guidance_raises_the_similarity_to_a_text(
    clip: ClipGuide, recipe: Recipe, text: str
) -> None:
    target = clip.read_target(text, (16, 16)).value
    before, after = (guided(clip, target, recipe, scale) for scale in (0.0, 1.0))
    assert (after > before).all()
    assert after.mean() > before.mean() + 0.1


@pytest.mark.parametrize("recipe", [X0, X0_THROUGH], ids=lambda recipe: recipe.name)
def test_guidance_brings_the_style_of_an_image_nearer(
    style: StyleGuide, photo: Path, recipe: Recipe
) -> None:
    target = style.read_target(str(photo), (16, 16)).value
    before, after = (guided(style, target, recipe, scale) for scale in (0.0, 1.0))
    assert (after < before).all()
    assert after.mean() < 0.8 * before.mean()


def run_here(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    *options: object,
) -> tuple[object, str]:
    """``ppap run`` in a folder, within this process; returns exit code and standard error."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["ppap", "run", *map(str, options)])
    capsys.readouterr()
    code: object = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code or 0
    return code, capsys.readouterr().err


@pytest.mark.parametrize(("guide", "measure"), [("clip", "similarity"), ("style", "style")])
def test_a_run_from_the_command_line(
    clip_folder: Path,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    guide: str,
    measure: str,
) -> None:
    code, said = run_here(
        monkeypatch, capsys, tmp_path, "--guide", guide, "--model", clip_folder,
        "--target", "a red cube" if guide == "clip" else photo, "--steps", 3, "--num", 1,
        "--out", "made", "--device", "cpu",
    )  # fmt: skip
    assert code == 0, said
    record = json.loads((tmp_path / "made" / "run.json").read_text())
    (image,) = record["images"]
    assert np.isfinite(image["measures"][guide][measure])
    assert (tmp_path / "made" / "sheet.png").is_file()


def test_a_run_without_a_model_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run_here(
        monkeypatch, capsys, tmp_path, "--guide", "clip", "--target", "a red cube"
    )
    assert code == 2
    assert "ships no weights" in said and "--model" in said
