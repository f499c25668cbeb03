"""The documentation's example of a recipe in a plugin."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
from examples import EXAMPLES, installed
from worlds import GaussianBackbone, QuadraticGuide

from ppap_host.backbones.backbone import ClassifierFree
from ppap_host.plugins.loading import load_recipe
from ppap_host.plugins.registry import Registry
from ppap_host.sampling.evaluator import Guidance
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM
from ppap_host.sampling.streams import ImageNoise

EXAMPLE = EXAMPLES / "ppap-plugin-signed"


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    with installed(EXAMPLE.name, monkeypatch) as registry:
        yield registry


def test_a_recipe_in_a_plugin_takes_less_than_thirty_lines() -> None:
    text = "".join(path.read_text() for path in EXAMPLE.rglob("*.py"))
    assert len([line for line in text.splitlines() if line.strip()]) < 30


def test_the_page_shows_all_of_it() -> None:
    page = (EXAMPLES.parent / "recipes.md").read_text(encoding="utf-8")
    shown = re.findall(r'^--8<-- "(.+)"$', page, re.MULTILINE)
    there = [path.relative_to(EXAMPLE.parent).as_posix() for path in EXAMPLE.rglob("*.py")]
    assert sorted(shown) == sorted(there)


def test_it_guides_and_takes_settings(found: Registry) -> None:
    assert [plugin.problem for plugin in found.plugins] == [None, None]
    world, guide = GaussianBackbone(), QuadraticGuide(noise=1.0)
    target = torch.full((1, *world.state_shape), 0.9)

    def error(text: str, scale: float) -> float:
        asked = [Guidance(guide, target, load_recipe(found, text), scale)]
        x = sample(
            world, ClassifierFree(world, {}, {}), world.walk(10), DDIM(),
            ImageNoise(0, range(4), world.state_shape), asked,
        )  # fmt: skip
        return float((x - target).abs().mean())

    plain = error("signed", 0.0)
    assert error("signed", 1.0) < 0.9 * plain
    assert error("signed:power=2", 1.0) != error("signed", 1.0)
    assert error("signed:every=3", 1.0) > error("signed", 1.0)
