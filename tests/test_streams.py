"""No two seeds, images, stages or purposes share a stream of random numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ppap_host.sampling.streams import ImageNoise, derived, of_image, word
from ppap_host.shapes.renderer import render
from ppap_host.shapes.scenes import sample_scenes

# Around the bounds of numpy's words, where lists of them run into each other.
EDGES = [0, 1, 2, 7, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 3 * 2**32, 2**64 - 1, 2**64, 2**70, 10**40]
SEEDS = st.one_of(st.sampled_from(EDGES), st.integers(0, 2**33), st.integers(0, 2**200))
NAMES = st.sampled_from(["", "recurrence", "0", "a"])
IMAGES = st.tuples(SEEDS, SEEDS, st.integers(0, 3), NAMES)
PARTS = st.lists(st.one_of(SEEDS, st.text(max_size=3)), max_size=5)


def state(sequence: np.random.SeedSequence) -> tuple[int, ...]:
    return tuple(sequence.generate_state(4, np.uint64).tolist())


@given(IMAGES, IMAGES)
@example((2**32, 0, 0, ""), (0, 1, 0, ""))
@example((5 * 2**32, 0, 0, ""), (0, 5, 0, ""))
@example((2**64, 0, 0, ""), (0, 0, 1, ""))
@example((7, 2**32, 0, ""), (7, 0, 1, ""))
@example((2**32 + 3, 1, 0, ""), (3, 1, 1, ""))
def test_no_two_images_share_a_stream(
    one: tuple[int, int, int, str], other: tuple[int, int, int, str]
) -> None:
    assert (state(of_image(*one)) == state(of_image(*other))) == (one == other)


@given(PARTS, PARTS)
@example([2**32, 1], [0, 1, 1])
@example([1], [1, 0])
@example([12, 3], [1, 23])
@example(["1"], [1])
@example(["a", "b"], ['a", "b'])
def test_no_two_lists_share_a_stream(one: list[int | str], other: list[int | str]) -> None:
    assert (state(derived("use", *one)) == state(derived("use", *other))) == (one == other)
    assert state(derived("use", *one)) != state(derived("another use", *other))
    assert state(derived("use", *one)) != state(of_image(1, 2))


def test_every_edge_has_a_picture_of_its_own() -> None:
    keys = list(itertools.product(EDGES, [0, 1, 2, 3, 2**32], [0, 1]))
    first = [
        ImageNoise(seed, [index], (1, 2, 2), stage)().flatten().tolist()
        for seed, index, stage in keys
    ]
    assert len({tuple(values) for values in first}) == len(keys)


def test_further_noise_of_images_is_of_its_name_their_stage_their_seed_and_their_number() -> None:
    drawn = {}
    for key in itertools.product((1, 2), (0, 3), (0, 1), ("", "a", "b")):
        seed, index, stage, name = key
        noise = ImageNoise(seed, [index], (1, 2, 2), stage).stream(name)()
        assert torch.equal(noise, ImageNoise(seed, [index], (1, 2, 2), stage, name)())
        drawn[tuple(noise.flatten().tolist())] = key
    assert len(drawn) == 24


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31, 2**32 - 1])
@pytest.mark.parametrize("stage", [0, 2])
def test_pictures_of_small_seeds_are_what_they_were(seed: int, stage: int) -> None:
    # numpy's own list, as it stands in records that people keep.
    words = [seed, 3, stage] if stage else [seed, 3]
    drawn = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(drawn >> np.uint64(1)))
    expected = torch.randn(3, 4, 4, generator=generator)
    assert torch.equal(ImageNoise(seed, [3], (3, 4, 4), stage)()[0], expected)


@given(SEEDS)
def test_words_are_what_generators_take(seed: int) -> None:
    assert 0 <= word(derived("use", seed)) < 2**63
    torch.Generator().manual_seed(word(derived("use", seed)))


def test_scenes_of_any_seed_differ() -> None:
    seeds = [0, 1, 2**32, 2**64 - 1, 2**64, 2**64 + 1, 10**40]
    assert len({render(sample_scenes(seed, 0, 1)).rgb.numpy().tobytes() for seed in seeds}) == 7
