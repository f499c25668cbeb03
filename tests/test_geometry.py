"""Pictures of the built-in world are taken apart, and every measure moves with what it names."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from ppap_plugin_bench import geometry
from ppap_plugin_bench.geometry import (
    Reading,
    Silhouettes,
    Solid,
    color_indices,
    normalised,
    nyquist_ratio,
    read,
    scores,
    total_variation,
    two_objects,
)
from ppap_plugin_bench.shapes import FRESH_SEED, scenes_of_two
from ppap_plugin_bench.spoils import SPOILS, Spoil

from ppap_host.files.images import to_pixels
from ppap_host.shapes.judges import Judges
from ppap_host.shapes.renderer import render
from ppap_host.shapes.scenes import COLORS, SHAPES, Scenes, sample_scenes

COUNT = 48


@pytest.fixture(scope="module", autouse=True)
def fewer_models() -> Iterator[None]:
    """A third of the silhouettes, in a third of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "silhouettes", functools.cache(lambda: Silhouettes(scenes=1000)))
        yield


@functools.cache
def judges() -> Judges:
    return Judges.load()


@functools.cache
def reading_of(name: str) -> Reading:
    (spoil,) = (each for each in SPOILS if each.name == name)
    return read(spoil.spoiled(sample_scenes(FRESH_SEED, 0, COUNT)), judges())


@functools.cache
def reference() -> Reading:
    return read(Spoil("", "").spoiled(sample_scenes(FRESH_SEED + 1, 0, COUNT)), judges())


@functools.cache
def scores_of(name: str) -> dict[str, float]:
    return {key: m.value for key, m in scores(reading_of(name), reference()).items()}


# Hues and silhouettes


def test_pixels_of_rendered_solids_have_the_hue_of_their_colour() -> None:
    scenes = sample_scenes(5, 0, 60)
    scenes = scenes[(scenes.count == 1).nonzero()[:, 0]]
    view = render(scenes)
    found = color_indices(to_pixels(view.rgb))
    solid = view.segmentation.numpy() >= 2
    wanted = np.broadcast_to(scenes.color[:, 0].numpy()[:, None, None], solid.shape)
    assert (found == wanted)[solid].mean() > 0.99


def test_what_is_grey_or_of_a_hue_between_has_no_colour() -> None:
    pixels = torch.tensor([[90, 90, 90], [255, 0, 128], [255, 0, 0]], dtype=torch.uint8)
    found = color_indices(pixels.T.reshape(1, 3, 1, 3))
    assert found.ravel().tolist() == [-1, -1, COLORS.index("red")]


def disc(radius: float, row: float = 31.5, column: float = 31.5) -> torch.Tensor:
    at = torch.arange(64.0)
    return (at[:, None] - row).square() + (at - column).square() <= radius**2


def test_a_silhouette_keeps_its_form_wherever_and_however_large_it_is() -> None:
    same = normalised(torch.stack([disc(20), disc(10, 15.5, 40.5)])).flatten(1).float()
    both = (same[0] * same[1]).sum()
    assert both / (same.sum() - both) > 0.95


def test_a_disc_fits_a_sphere_and_a_square_a_cube_better_than_anything_else() -> None:
    square = torch.zeros(64, 64, dtype=torch.bool)
    square[20:44, 20:44] = True
    fits = geometry.silhouettes().fits(torch.stack([disc(14), square]))
    assert fits[0].argmax() == SHAPES.index("sphere") and fits[0].max() > 0.95
    assert SHAPES[int(fits[1].argmax())] in ("cube", "cylinder")
    assert fits[1, SHAPES.index("sphere")] < 0.9


def test_the_silhouettes_own_masks_fit_perfectly() -> None:
    drawn = geometry.alone(sample_scenes(geometry.SILHOUETTE_SEED, 0, 8), 0)
    masks = render(drawn, supersample=1).segmentation >= 2
    fits = geometry.silhouettes().fits(masks).gather(1, drawn.shape[:, :1])
    assert fits.min() == pytest.approx(1.0)


# Renders


def test_renders_are_read_as_what_their_scenes_say() -> None:
    scenes = sample_scenes(FRESH_SEED, 0, COUNT)
    found = reading_of("as they are")
    counts = torch.tensor([len(solids) for solids in found.solids])
    assert (counts == scenes.count).float().mean() > 0.9
    named = [
        (solid.shape, solid.color) in set(zip(shape, color, strict=True))
        for solids, shape, color in zip(
            found.solids, scenes.shape.tolist(), scenes.color.tolist(), strict=True
        )
        for solid in solids
    ]
    assert np.mean(named) > 0.93
    assert scores_of("as they are")["pure"] > 0.97
    assert scores_of("as they are")["straightness"] > 0.85


FALLS = {
    "of two colours": {"purity": 0.2, "pure": 0.5},
    "bent": {"shape_fit": 0.06, "well_shaped": 0.4, "straightness": 0.15},
    "wavy": {"straightness": 0.12, "well_shaped": 0.2},
    "blurred": {"well_shaped": 0.03},
    "fused": {"solids": 0.2, "well_shaped": 0.2},
    "removed": {"solids": 0.4},
    "with a grid": {"no_grid": 0.7},
}
"""By how much a measure falls at least where its own thing is spoiled."""

STAYS = {
    "of two colours": ("straightness", "no_grid", "solids"),
    "bent": ("purity", "pure", "no_grid"),
    "wavy": ("purity", "pure"),
    "blurred": ("purity", "pure", "solids", "no_grid"),
    "fused": ("purity", "pure", "straightness"),
    "removed": ("purity", "pure", "shape_fit", "straightness"),
    "with a grid": ("purity", "pure", "shape_fit", "solids", "straightness"),
}
"""Measures of other things, which hardly fall."""


@pytest.mark.parametrize("name", FALLS)
def test_a_measure_falls_where_its_own_thing_is_spoiled(name: str) -> None:
    plain, found = scores_of("as they are"), scores_of(name)
    for measure, least in FALLS[name].items():
        assert plain[measure] - found[measure] >= least, measure
    for measure in STAYS[name]:
        assert plain[measure] - found[measure] < 0.06, measure


def test_every_way_of_spoiling_changes_the_picture() -> None:
    scenes = sample_scenes(FRESH_SEED, 0, 6)
    plain = SPOILS[0].spoiled(scenes)
    for spoil in SPOILS[1:]:
        assert not torch.equal(spoil.spoiled(scenes), plain), spoil.name


# Scores in closed form


def reading(*pictures: list[Solid], straight: float = 1.0) -> Reading:
    n = len(pictures)
    return Reading(pictures, torch.full((n,), straight), torch.ones(n, 2, 2))


def solid(shape: str, color: str, area: int, purity: float = 1.0, fit: float = 1.0) -> Solid:
    mask = np.zeros((64, 64), dtype=bool)
    mask.ravel()[:area] = True
    return Solid(mask, SHAPES.index(shape), COLORS.index(color), purity, fit)


def test_solids_count_alike_whatever_picture_they_are_in() -> None:
    a = [solid("cube", "red", 30, purity=0.5, fit=0.9), solid("cube", "blue", 30)]
    found = scores(reading(a, [solid("cone", "red", 30)]), reading(a, a))
    assert found["purity"].value == pytest.approx(2.5 / 3)
    assert found["pure"].value == pytest.approx(2 / 3)
    assert found["shape_fit"].value == pytest.approx(2.9 / 3)
    assert found["well_shaped"].value == pytest.approx(2 / 3)
    assert found["solids"].value == pytest.approx(0.5)  # 1 and 2 solids, where renders have 2 and 2


def test_pictures_without_solids_or_edge_are_not_scored_but_counted() -> None:
    nothing = reading([], [], straight=math.nan)
    found = scores(nothing, reading([solid("cube", "red", 30)]))
    assert found["solids"].value == 0
    assert all(math.isnan(found[k].value) for k in ("purity", "shape_fit", "straightness"))


def test_total_variation_is_half_the_sum_of_differences() -> None:
    a, b = torch.tensor([1, 1, 2, 3]), torch.tensor([1, 2, 2, 5])
    assert total_variation(a, b) == pytest.approx((0.25 + 0.25 + 0.25 + 0.25) / 2)
    assert total_variation(a, a) == 0


def test_white_noise_has_as_much_at_nyquist_as_beside_it_and_a_grid_more() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 200, (400, 3, 64, 64), generator=generator, dtype=torch.uint8)
    of_noise = nyquist_ratio(Reading([[]] * 400, torch.ones(400), geometry._power(noise)))
    for name in ("vertical", "horizontal"):
        assert of_noise[name].value == pytest.approx(1, abs=4 * (of_noise[name].error or 0))
    rows = noise.clone()
    rows[:, :, ::2] += 55
    gridded = nyquist_ratio(Reading([[]] * 400, torch.ones(400), geometry._power(rows)))
    assert gridded["vertical"].value > 5
    assert gridded["horizontal"].value == pytest.approx(1, abs=0.1)


def edge(heights: np.ndarray) -> float:
    """Straightness of a room whose wall ends at these heights."""
    rows = np.arange(64)[:, None]
    lead = np.clip(rows - heights, -1, 1)
    segments = np.full((6, 64, 64), -9.0, dtype=np.float32)
    segments[0], segments[1] = -lead, lead
    return geometry._straightness(segments)


def test_straightness_is_the_share_of_columns_on_the_line() -> None:
    columns = np.arange(64)
    assert edge(20.3 + 0.11 * columns) == 1
    step = np.where(columns < 48, 20.0, 24.0)
    assert edge(step) == pytest.approx(0.75)


def test_a_room_whose_edge_is_hidden_has_no_straightness() -> None:
    segments = np.zeros((6, 64, 64), dtype=np.float32)
    segments[1] = 1
    assert math.isnan(geometry._straightness(segments))


# Two objects


def scene(first: tuple[str, str], second: tuple[str, str], small: bool) -> Scenes:
    scenes = scenes_of_two(FRESH_SEED, 1)
    for j, (shape, color) in enumerate((first, second)):
        scenes.shape[0, j], scenes.color[0, j] = SHAPES.index(shape), COLORS.index(color)
    scenes.size_word[0, 1] = int(small)
    return scenes


BIG, SMALL = solid("cube", "red", 400), solid("sphere", "blue", 60)


@pytest.mark.parametrize(
    ("solids", "right", "just_two", "named"),
    [
        ([BIG, SMALL], True, True, True),
        ([SMALL, BIG], True, True, True),
        ([BIG, SMALL, solid("cone", "green", 50)], True, False, True),
        ([BIG, solid("sphere", "blue", 300)], False, False, True),  # not small
        ([solid("cube", "red", 60), solid("sphere", "blue", 400)], False, False, True),
        ([BIG, solid("sphere", "green", 60)], False, False, False),
        ([BIG, solid("cone", "blue", 60)], False, False, False),
        ([solid("cube", "blue", 400), solid("sphere", "red", 60)], False, False, False),
        ([BIG], False, False, False),
        ([], False, False, False),
    ],
)
def test_two_objects_are_right_in_shape_colour_and_size(
    solids: list[Solid], right: bool, just_two: bool, named: bool
) -> None:
    found = two_objects(reading(solids), scene(("cube", "red"), ("sphere", "blue"), small=True))
    assert bool(found["right"]) is right
    assert bool(found["just_two"]) is just_two
    assert bool(found["named"]) is named


def test_without_a_size_word_the_second_is_smaller_but_not_small() -> None:
    wanted = scene(("cube", "red"), ("sphere", "blue"), small=False)
    assert not bool(two_objects(reading([BIG, solid("sphere", "blue", 40)]), wanted)["right"])
    assert bool(two_objects(reading([BIG, solid("sphere", "blue", 160)]), wanted)["right"])


def test_the_scenes_of_two_have_two_and_their_renders_are_right() -> None:
    scenes = scenes_of_two(FRESH_SEED, 40)
    assert len(scenes) == 40 and bool((scenes.count == 2).all())
    assert all(" and " in caption for caption in scenes.captions())
    found = two_objects(read(to_pixels(render(scenes).rgb), judges()), scenes)
    assert found["right"].float().mean() > 0.85


def test_one_reading_does_not_depend_on_what_else_is_read() -> None:
    pixels = SPOILS[0].spoiled(sample_scenes(FRESH_SEED, 0, 5))
    whole, part = read(pixels, judges()), read(pixels[3:], judges())
    for a, b in zip(whole.solids[3:], part.solids, strict=True):
        assert [(s.shape, s.color, s.area) for s in a] == [(s.shape, s.color, s.area) for s in b]
