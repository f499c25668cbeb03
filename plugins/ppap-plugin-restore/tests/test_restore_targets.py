"""Reading targets: what is taken for a measurement, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ppap_plugin_restore.guide import (
    RestorationGuide,
    colourise,
    deblur,
    inpainting,
    motion_deblur,
    super_resolution,
)
from skimage import data

from ppap_host.files.errors import OptionError, TargetError
from ppap_host.files.images import from_tensor, read_rgb, to_tensor

Factory = Callable[[str | None], RestorationGuide]
SIZE = (32, 32)
FACTORIES: list[Factory] = [super_resolution, inpainting, deblur, motion_deblur, colourise]


def picture(path: Path, width: int = 32, height: int = 32, seed: int = 0) -> Path:
    """A smooth random photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def mask(path: Path, width: int = 32, height: int = 32) -> Path:
    """White in the left half."""
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[:, : width // 2] = 255
    Image.fromarray(pixels).save(path)
    return path


def test_a_small_picture_is_the_measurement_of_super_resolution(tmp_path: Path) -> None:
    path = picture(tmp_path / "small.png", 8, 6)
    target = super_resolution().read_target(str(path), (24, 32))
    torch.testing.assert_close(target.value, to_tensor(Image.open(path)), rtol=0, atol=0)
    assert target.pictures["target"].size == (32, 24)
    assert list(target.files) == [path]


@pytest.mark.parametrize(
    ("width", "height", "said"),
    [
        (32, 32, "factor=4,measure=yes"),
        (256, 256, "factor=4,measure=yes"),
        (4, 4, "factor=8"),
        (16, 16, "factor=2"),
        (8, 9, "Scale it"),
        (1, 1, "factor=32"),
    ],
)
def test_a_picture_of_another_size_is_refused_with_what_would_fit(
    tmp_path: Path, width: int, height: int, said: str
) -> None:
    path = picture(tmp_path / "picture.png", width, height)
    with pytest.raises(TargetError, match=r"measured as 8 x 8") as caught:
        super_resolution().read_target(str(path), SIZE)
    assert said in caught.value.remedy


def test_the_factor_that_is_suggested_fits(tmp_path: Path) -> None:
    path = picture(tmp_path / "picture.png", 4, 4)
    target = super_resolution("factor=8").read_target(str(path), SIZE)
    assert target.value.shape == (1, 3, 4, 4)


@pytest.mark.parametrize("factory", [super_resolution, deblur, motion_deblur, colourise])
def test_a_clean_picture_is_measured_if_that_is_asked_for(factory: Factory, tmp_path: Path) -> None:
    path = picture(tmp_path / "clean.png", 100, 80)
    guide = factory("measure=yes")
    target = guide.read_target(str(path), SIZE)
    clean = read_rgb(path, SIZE)
    torch.testing.assert_close(target.value, guide.see(to_tensor(clean)), rtol=0, atol=0)
    assert set(target.pictures) == {"target", "its measurement"}
    assert target.pictures["target"].tobytes() == clean.tobytes()


@pytest.mark.parametrize("factory", [deblur, motion_deblur])
def test_a_blurred_picture_is_taken_as_it_is(factory: Factory, tmp_path: Path) -> None:
    clean = to_tensor(read_rgb(picture(tmp_path / "clean.png")))
    guide = factory(None)
    blurred = guide.see(clean)
    pixels = ((blurred[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "blurred.png")
    target = guide.read_target(str(tmp_path / "blurred.png"), SIZE)
    torch.testing.assert_close(target.value, blurred, rtol=0, atol=1.01 / 255)


def test_grey_and_colour_pictures_give_their_luma(tmp_path: Path) -> None:
    path = picture(tmp_path / "colour.png")
    Image.open(path).convert("L").save(tmp_path / "grey.png")
    of_colour, of_grey = (
        colourise().read_target(str(tmp_path / name), SIZE).value
        for name in ("colour.png", "grey.png")
    )
    assert of_colour.shape == (1, 1, *SIZE)
    torch.testing.assert_close(of_colour, of_grey, rtol=0, atol=1.01 / 255)


def test_a_mask_is_white_where_the_picture_is_unknown(tmp_path: Path) -> None:
    path, white = picture(tmp_path / "picture.png"), mask(tmp_path / "mask.png")
    guide = inpainting(f"mask={white}")
    target = guide.read_target(str(path), SIZE)
    assert (target.value[..., :16] == 0).all()
    torch.testing.assert_close(target.value[..., 16:], to_tensor(Image.open(path))[..., 16:])
    # The mask belongs to the guide, so that its hash is in the run's record.
    assert list(guide.files()) == [white]
    assert list(target.files) == [path]


def test_a_mask_may_have_another_resolution_than_its_picture(tmp_path: Path) -> None:
    path = picture(tmp_path / "picture.png", 101, 67)
    white = mask(tmp_path / "mask.png", 50, 33)
    value = inpainting(f"mask={white}").read_target(str(path), SIZE).value
    assert (value[..., :15] == 0).all()
    assert (value[..., 17:] != 0).any(dim=1).all()


def test_transparent_is_unknown_and_does_not_bleed(tmp_path: Path) -> None:
    """What hides under transparency, here black beside white, is not seen after resizing."""
    pixels = np.zeros((96, 96, 4), dtype=np.uint8)
    pixels[:, 45:] = 255
    Image.fromarray(pixels).save(tmp_path / "half.png")
    guide = inpainting()
    value = guide.read_target(str(tmp_path / "half.png"), SIZE).value
    assert (value[..., :15] == 0).all()
    torch.testing.assert_close(value[..., 15:], torch.ones(1, 3, 32, 17))
    seen = guide.see(torch.ones(1, 3, *SIZE))
    torch.testing.assert_close(seen, value)


def test_a_palette_with_a_transparent_colour_is_understood(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32), dtype=np.uint8)
    pixels[8:] = 1
    image = Image.fromarray(pixels).convert("P")
    image.putpalette([0, 255, 0, 255, 0, 0])
    image.save(tmp_path / "palette.png", transparency=0)
    value = inpainting().read_target(str(tmp_path / "palette.png"), SIZE).value
    assert (value[:, :, :8] == 0).all()
    red = torch.tensor([1.0, -1, -1]).view(1, 3, 1, 1).expand(1, 3, 24, 32)
    torch.testing.assert_close(value[:, :, 8:], red)


def test_an_option_cuts_a_box_out_of_the_middle(tmp_path: Path) -> None:
    path = picture(tmp_path / "picture.png", 48, 32)
    value = inpainting("box=0.5").read_target(str(path), (32, 48)).value
    unknown = (value == 0).all(dim=1)[0]
    assert unknown[8:24, 16:32].all()
    assert unknown.sum() == 16 * 16


def test_pictures_that_leave_nothing_to_do_or_to_go_by_are_refused(tmp_path: Path) -> None:
    path = picture(tmp_path / "picture.png")
    with pytest.raises(TargetError, match="nothing transparent") as caught:
        inpainting().read_target(str(path), SIZE)
    assert "mask=PATH" in caught.value.remedy
    Image.new("RGBA", (9, 9)).save(tmp_path / "empty.png")
    with pytest.raises(TargetError, match="transparent everywhere"):
        inpainting().read_target(str(tmp_path / "empty.png"), SIZE)
    for shade, said in ((0, "nothing white"), (255, "white everywhere")):
        Image.new("L", (32, 32), shade).save(tmp_path / "mask.png")
        with pytest.raises(TargetError, match=said):
            inpainting(f"mask={tmp_path / 'mask.png'}").read_target(str(path), SIZE)


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    path, white = picture(tmp_path / "picture.png", 40, 30), mask(tmp_path / "mask.png", 32, 32)
    with pytest.raises(TargetError, match=r"32 x 32 pixels, the picture .* has 40 x 30"):
        inpainting(f"mask={white}").read_target(str(path), SIZE)


def test_a_mask_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mask.txt").write_text("white")
    path = picture(tmp_path / "picture.png")
    with pytest.raises(TargetError, match="not an image"):
        inpainting(f"mask={tmp_path / 'mask.txt'}").read_target(str(path), SIZE)


def test_a_second_picture_that_is_transparent_elsewhere_is_refused(tmp_path: Path) -> None:
    guide = inpainting()
    for k in (1, 2):
        pixels = np.full((32, 32, 4), 200, dtype=np.uint8)
        pixels[:, : 4 * k, 3] = 0
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    guide.read_target(str(tmp_path / "1.png"), SIZE)
    guide.read_target(str(tmp_path / "1.png"), SIZE)
    with pytest.raises(TargetError, match="transparent elsewhere"):
        guide.read_target(str(tmp_path / "2.png"), SIZE)


def test_before_anything_says_what_is_known_nothing_is_masked() -> None:
    with pytest.raises(OptionError, match="which pixels of 32 x 32 are known"):
        inpainting().see(torch.zeros(1, 3, *SIZE))


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: f.__name__)
def test_what_cannot_be_read_is_refused(factory: Factory, tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text("a red cube")
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture(tmp_path / "whole.png").read_bytes()[:100])
    for target in (tmp_path / "absent.png", text, cut, tmp_path, "https://example.org/a.png"):
        with pytest.raises(TargetError) as caught:
            factory(None).read_target(str(target), SIZE)
        assert caught.value.remedy


@pytest.mark.parametrize("factory", FACTORIES)
def test_measurements_that_no_picture_can_have_are_doubted(
    factory: Factory, tmp_path: Path
) -> None:
    """Photographs of scikit-image: sharp for a deblurring guide, and as it measures them."""
    for name in ("astronaut", "rocket"):
        path, kept = tmp_path / f"{name}.png", tmp_path / f"{name}.jpg"
        Image.fromarray(getattr(data, name)()).save(path)
        clean = factory("measure=yes,box=0.5" if factory is inpainting else "measure=yes")
        measured = clean.read_target(str(path), (64, 64))
        assert not measured.doubts
        if factory is inpainting:
            continue  # What is not known is 0, which no file holds.
        plain = factory(None)
        if factory is not super_resolution:
            doubts = plain.read_target(str(path), (64, 64)).doubts
            assert len(doubts) == (factory in (deblur, motion_deblur))
            assert all("measure=yes" in text and "grey levels" in text for text in doubts)
        from_tensor(measured.value.expand(-1, 3, -1, -1))[0].save(kept, quality=75)
        assert not plain.read_target(str(kept), (64, 64)).doubts
