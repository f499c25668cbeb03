"""The conformance kit: it finds planted faults, passes what is sound, and never stays silent."""

from __future__ import annotations

import json
import time
import unittest
from collections.abc import Callable
from typing import Any

import broken_plugins as broken
import pytest
import torch
import unusual_plugins as unusual
from torch import Tensor

from ppap_host.backbones.noise import CLEAN
from ppap_host.files.errors import CheckpointError, PluginError, UnknownNameError
from ppap_host.plugins.registry import Registry, registry
from ppap_host.testing import (
    CannotCheck,
    Check,
    ConformanceError,
    GaussianWorld,
    PullGuide,
    check_backbone,
    check_guide,
    check_recipe,
    pictures,
)
from ppap_host.testing.backbones import BACKBONE
from ppap_host.testing.checks import Suite, require
from ppap_host.testing.guides import GUIDE
from ppap_host.testing.offers import Settings, checks_of, offers
from ppap_host.testing.recipes import RECIPE

SIZE = 24, 24


def guide_checks(make: Callable[[], Any]) -> list[Check]:
    return check_guide(make, size=SIZE)


def the(name: str, checks: list[Check]) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


def is_caught(check: Check) -> None:
    with pytest.raises(ConformanceError) as caught:
        check()
    error = caught.value
    for sentence in (error.what, error.why, error.remedy):
        assert len(sentence) >= 10 and sentence in str(error)


@pytest.mark.parametrize("check", guide_checks(broken.SoundGuide), ids=str)
def test_the_sound_guide_passes(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", guide_checks(broken.SoundMeasurement), ids=str)
def test_the_sound_measurement_passes(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", check_backbone(broken.SoundBackbone), ids=str)
def test_the_sound_backbone_passes(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", check_recipe(broken.SOUND_RECIPE), ids=str)
def test_the_sound_recipe_passes(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", check_backbone(GaussianWorld), ids=str)
def test_the_kits_own_world_passes(check: Check) -> None:
    check()


def passes(checks: list[Check]) -> None:
    results = [check.result() for check in checks]
    assert not [str(result.error) for result in results if result.outcome == "failed"]
    told = {result.check: result.reason for result in results if result.outcome == "not made"}
    # What a plugin is for is never left out.
    never = {"guided-run", "gradient-right", "pulls", "denoises", "batch"}
    assert not [told[name] for name in never & set(told) if "a black box" not in told[name]]


@pytest.mark.parametrize("name", unusual.GUIDES)
def test_an_unusual_guide_that_is_sound_passes(name: str) -> None:
    make, target = unusual.GUIDES[name]
    passes(check_guide(make, target, size=SIZE))


def test_every_check_asks_for_the_target_that_was_named() -> None:
    asked = []

    class Listens(unusual.Counts):
        def loss(self, output: Tensor, target: Tensor) -> Tensor:
            asked.append(target.detach().double())
            return super().loss(output, target)

    named = ("loss", "gradient-flows", "gradient-right", "gradient-finite", "batch", "guided-run")
    checks = check_guide(Listens, "1 2 5 1", size=SIZE)
    for name in named:
        the(name, checks).result()
    wanted = torch.tensor([[1, 2, 5, 1]], dtype=torch.float64) / 9
    others = [target for target in asked if not torch.allclose(target, wanted)]
    # What measures go by is found with outputs for targets, too: three of them.
    assert len(asked) > 20 and len(others) <= 3


@pytest.mark.parametrize("name", unusual.BACKBONES)
def test_an_unusual_backbone_that_is_sound_passes(name: str) -> None:
    passes(check_backbone(lambda: unusual.world(*unusual.BACKBONES[name])))


@pytest.mark.parametrize("name", unusual.RECIPES)
def test_an_unusual_recipe_that_is_sound_passes(name: str) -> None:
    passes(check_recipe(unusual.RECIPES[name]))


@pytest.mark.parametrize(
    ("name", "make"), broken.GUIDES, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_broken_guide_is_caught(name: str, make: Callable[[], Any]) -> None:
    is_caught(the(name, guide_checks(make)))


@pytest.mark.parametrize(
    ("name", "make"), broken.BACKBONES, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_broken_backbone_is_caught(name: str, make: Callable[[], Any]) -> None:
    is_caught(the(name, check_backbone(make)))


@pytest.mark.parametrize(
    ("name", "recipe"), [f[1:] for f in broken.RECIPES], ids=[f[0] for f in broken.RECIPES]
)
def test_a_broken_recipe_is_caught(name: str, recipe: Any) -> None:
    is_caught(the(name, check_recipe(recipe)))


def test_every_check_has_caught_something() -> None:
    """But zero-strength: the loop does not even ask a guide of strength zero."""
    for suite, faults in (
        (GUIDE, [check for check, _ in broken.GUIDES]),
        (BACKBONE, [check for check, _ in broken.BACKBONES]),
        (RECIPE, [*(check for _, check, _ in broken.RECIPES), "zero-strength"]),
    ):
        names = [claim.name for claim in suite.claims]
        assert len(set(names)) == len(names)
        assert set(faults) == set(names)
        for claim in suite.claims:
            assert claim.about.endswith(".") and claim.why.endswith(".") and claim.remedy


def test_checks_are_made_late_and_told_by_name() -> None:
    made = []

    def make() -> Any:
        made.append(1)
        return broken.SoundGuide()

    checks = guide_checks(make)
    assert not made
    assert [str(check) for check in checks] == [claim.name for claim in GUIDE.claims]
    assert the("loss", checks).result().outcome == "passed" and made


def test_what_cannot_be_checked_is_skipped_with_a_reason() -> None:
    assert issubclass(CannotCheck, unittest.SkipTest)
    check = the("operator", guide_checks(broken.SoundGuide))
    with pytest.raises(CannotCheck, match="linear"):
        check()
    result = check.result()
    assert (result.outcome, result.error) == ("not made", None) and "linear" in result.reason


def test_a_guide_that_cannot_be_made_passes_nothing() -> None:
    def make() -> Any:
        raise CheckpointError("There are no weights.", remedy="Get some.")

    results = [check.result() for check in guide_checks(make)]
    assert {result.outcome for result in results} == {"not made"}
    assert all("no weights" in result.reason for result in results)


def test_a_target_of_another_kind_is_asked_for() -> None:
    result = the("target", check_guide(PullGuide, size=SIZE)).result()
    assert result.outcome == "not made" and "--target" in result.reason
    assert the("target", check_guide(PullGuide, "0.5", size=SIZE)).result().outcome == "passed"


def test_an_error_of_the_plugin_is_a_fault_that_names_it() -> None:
    suite = Suite[int]()

    @suite.claim("divides", why="Because it must.", remedy="Give another number.")
    def divides(subject: int) -> None:
        """It divides.

        More of it.
        """
        require(1 / subject > 0.1, "It is too large.", "Give a smaller one.")

    assert [check.about for check in suite.checks(1)] == ["It divides."]
    (zero,), (large,) = suite.checks(0), suite.checks(100)
    with pytest.raises(ConformanceError, match="ZeroDivisionError") as caught:
        zero()
    assert caught.value.remedy == "Give another number."
    with pytest.raises(AssertionError, match="too large") as caught_again:
        large()
    assert getattr(caught_again.value, "remedy", "") == "Give a smaller one."


def test_the_worlds_denoiser_is_exact() -> None:
    """Tweedie: eps is minus sigma times the score of the smooth Gaussian's noised density."""
    world = GaussianWorld((6, 5), mean=0.2)
    level = world.levels()[500]
    size = 30
    white = torch.eye(size, dtype=torch.float64).view(size, 1, 6, 5).expand(-1, 3, -1, -1)
    kernel = torch.fft.irfft2(world._power * torch.fft.rfft2(white), s=(6, 5))[:, 0]
    covariance = kernel.reshape(size, size)
    assert torch.allclose(covariance.diagonal(), torch.full((size,), 0.25, dtype=torch.float64))
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noised = level.alpha**2 * covariance + level.sigma**2 * torch.eye(size)
    inner = (x - level.alpha * 0.2).reshape(6, size)
    score = -torch.linalg.solve(noised, inner.T).T.view_as(x)
    torch.testing.assert_close(world.predict(x, level, {}).eps, -level.sigma * score)


def test_pictures_differ_and_are_the_same_again() -> None:
    x = pictures(4, (20, 30), seed=3)
    assert x.shape == (4, 3, 20, 30) and x.abs().max() <= 1
    assert torch.equal(x, pictures(4, (20, 30), seed=3))
    assert not torch.equal(x, pictures(4, (20, 30), seed=4))
    assert CLEAN.sigma == 0


def test_a_name_stands_for_a_thing_or_for_all_of_a_distribution() -> None:
    found = registry()
    assert offers(found, "dps") == [("recipe", "dps")]
    assert offers(found, "depth", "guide") == [("guide", "depth")]
    assert ("guide", "deblur") in offers(found, "ppap-plugin-restore")
    assert {kind for kind, _ in offers(found, "ppap-host")} == {"backbone", "recipe"}
    with pytest.raises(UnknownNameError, match="depth"):
        offers(found, "dephts")
    with pytest.raises(PluginError, match="no recipe"):
        offers(found, "depth", "recipe")
    with pytest.raises(PluginError, match="no recipe"):
        offers(found, "ppap-plugin-restore", "recipe")
    (made, *_) = checks_of(found, "guide", "deblur", Settings(size=SIZE))
    assert made.result().outcome == "passed"


def test_a_remark_on_importing_a_plugin_is_a_failed_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = Registry()
    monkeypatch.setattr(found.owner("guide", "deblur"), "warning", "prints to standard output")
    remark, made, *_ = checks_of(found, "guide", "deblur", Settings(size=SIZE))
    assert (remark.name, made.name) == ("imported", "made")
    result = remark.result()
    assert result.outcome == "failed"
    assert "ppap-plugin-restore" in str(result.error) and "prints" in str(result.error)


def test_the_command_line_prints_a_row_a_check(ppap_here: Any) -> None:
    outcome = ppap_here("plugin", "check", "deblur", "--size", "16", "--json", "-q")
    rows = json.loads(outcome.out)
    assert outcome.code == 0 and outcome.err == ""
    assert [row["check"] for row in rows] == [claim.name for claim in GUIDE.claims]
    assert {row["outcome"] for row in rows} == {"passed", "not made"}
    assert all(row["reason"] for row in rows if row["outcome"] == "not made")


def test_the_command_line_explains_a_failure_to_people(
    ppap_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fault,) = [recipe for name, _, recipe in broken.RECIPES if name == "no limit"]
    monkeypatch.setattr("ppap_host.recipes.presets.X0", fault)
    outcome = ppap_here("plugin", "check", "x0")
    assert outcome.code == 1
    assert "✓ made" in outcome.out and "✗ bounded" in outcome.out
    assert "Why it matters:" in outcome.out and "How to mend it:" in outcome.out
    assert "9 passed, 1 failed, 0 not made" in outcome.out


def test_a_guide_without_weights_is_no_success(ppap_here: Any) -> None:
    outcome = ppap_here("plugin", "check", "adm-classifier")
    assert outcome.code == 1 and "ships no weights" in outcome.out
    assert "0 passed, 0 failed, 1 not made" in outcome.out
    outcome = ppap_here("plugin", "check", "inpainting")
    assert "it wants other settings: Nothing says which pixels" in outcome.out
    outcome = ppap_here("plugin", "check", "x0", "--kind", "sampler")
    assert outcome.code == 2 and "backbone" in outcome.err


def test_a_small_guide_is_checked_in_seconds() -> None:
    began = time.process_time()
    assert not [c.name for c in guide_checks(broken.SoundGuide) if c.result().outcome == "failed"]
    assert time.process_time() - began < 20
