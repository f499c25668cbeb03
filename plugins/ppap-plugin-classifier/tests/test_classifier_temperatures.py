"""EluCD's temperatures: the loss on logits, and the guide at them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from ppap_plugin_classifier.guide import ClassifierGuide
from ppap_plugin_classifier.losses import cross_entropy
from torch import Tensor
from torch.nn import functional as F

from ppap_host.backbones.noise import NoiseRange
from ppap_host.experts.patches import Patch
from ppap_host.experts.sets import ExpertSet, WithExperts
from ppap_host.files.errors import OptionError
from ppap_host.guides.activations import Softened
from ppap_host.guides.guide import default_patch_plan
from ppap_host.guides.temperatures import Tempered

TEMPERATURES = [(1.0, 0.5), (1.0, 0.0), (1.0, 1.0), (2.0, 2.0), (0.7, 1.3), (3.0, 0.1)]


@pytest.fixture(scope="module")
def guide() -> ClassifierGuide:
    return ClassifierGuide()


def joint_and_marginal(seen: Tensor, wanted: Tensor, joint: float, marginal: float) -> Tensor:
    return ClassifierGuide().tempered(joint, marginal).loss(seen, wanted)


def rows(kind: str, count: int, classes: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(classes, (count,), generator=generator)
    if kind == "one-hot":
        return F.one_hot(labels, classes).double()
    return torch.randn(count, classes, generator=generator, dtype=torch.float64).softmax(dim=1)


def logits(count: int, classes: int, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return spread * torch.randn(count, classes, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("joint", "marginal"), TEMPERATURES)
@pytest.mark.parametrize("kind", ["one-hot", "soft"])
def test_its_gradient_is_that_of_the_formula(joint: float, marginal: float, kind: str) -> None:
    seen, wanted = logits(5, 7).requires_grad_(), rows(kind, 5, 7)
    (gradient,) = torch.autograd.grad(joint_and_marginal(seen, wanted, joint, marginal).sum(), seen)
    expected = marginal * (marginal * seen.detach()).softmax(dim=1) - joint * wanted
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("kind", ["one-hot", "soft"])
def test_at_one_and_one_it_is_the_cross_entropy_to_the_last_bit(
    guide: ClassifierGuide, kind: str
) -> None:
    seen, wanted = logits(6, 24).float().requires_grad_(), rows(kind, 6, 24).float()
    plain, tempered = guide.loss(seen, wanted), guide.tempered(1.0, 1.0).loss(seen, wanted)
    assert torch.equal(plain, tempered)
    assert torch.equal(plain, cross_entropy(seen, wanted))
    weight = torch.arange(6.0)
    (a,) = torch.autograd.grad((plain * weight).sum(), seen)
    (b,) = torch.autograd.grad((tempered * weight).sum(), seen)
    assert torch.equal(a, b)


@pytest.mark.parametrize(("joint", "marginal"), TEMPERATURES)
def test_logits_of_thousands_do_not_overflow(joint: float, marginal: float) -> None:
    seen = logits(4, 9, spread=2000.0).float().requires_grad_()
    wanted = rows("one-hot", 4, 9).float()
    loss = joint_and_marginal(seen, wanted, joint, marginal)
    (gradient,) = torch.autograd.grad(loss.sum(), seen)
    assert bool(loss.isfinite().all()) and bool(gradient.isfinite().all())
    exact = joint_and_marginal(seen.detach().double(), wanted.double(), joint, marginal)
    torch.testing.assert_close(loss.detach().double(), exact, rtol=1e-5, atol=1e-2)


def test_a_weaker_marginal_keeps_pulling_where_the_network_is_sure(
    guide: ClassifierGuide,
) -> None:
    # The reason for it: the plain gradient vanishes as the probability tends to 1.
    seen = torch.zeros(1, 24)
    seen[0, 3] = 20.0
    wanted = F.one_hot(torch.tensor([3]), 24).float()

    def pull(marginal: float) -> float:
        x = seen.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(guide.tempered(1.0, marginal).loss(x, wanted).sum(), x)
        return float(gradient[0, 3].abs())

    assert pull(1.0) < 1e-6 and pull(0.5) > 0.5


def test_only_the_loss_changes(guide: ClassifierGuide) -> None:
    tempered = guide.tempered(1.0, 0.5)
    assert isinstance(tempered, Tempered) and (tempered.joint, tempered.marginal) == (1.0, 0.5)
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    target = tempered.read_target("red cube", (64, 64))
    assert torch.equal(target.value, guide.read_target("red cube", (64, 64)).value)
    seen = tempered.see(x)
    assert torch.equal(seen, guide.see(x)) and tempered.network() is guide.network()
    assert tempered.measure(seen, target.value) == guide.measure(seen, target.value)
    assert torch.equal(tempered.logits(seen), guide.logits(seen))
    assert torch.equal(tempered.distance(seen, seen + 1), guide.distance(seen, seen + 1))
    assert not torch.equal(tempered.loss(seen, target.value), guide.loss(seen, target.value))


def test_new_temperatures_replace_the_old_ones(guide: ClassifierGuide) -> None:
    seen, wanted = logits(3, 24), rows("one-hot", 1, 24)
    again = guide.tempered(1.0, 0.5).tempered(2.0, 0.3)
    assert torch.equal(again.loss(seen, wanted), joint_and_marginal(seen, wanted, 2.0, 0.3))


def test_they_reach_through_experts_and_softened_activations(guide: ClassifierGuide) -> None:
    patch = Patch.fresh(guide.network(), default_patch_plan(guide.network(), rank=1))
    whole = NoiseRange(-math.inf, math.inf)
    seen, wanted = logits(3, 24), rows("soft", 1, 24)
    for wrapped in (
        WithExperts(guide, ExpertSet([whole], [patch], {})),
        Softened(guide, 5.0),
    ):
        loss = wrapped.tempered(1.0, 0.5).loss(seen, wanted)
        assert torch.equal(loss, joint_and_marginal(seen, wanted, 1.0, 0.5))
        assert torch.equal(wrapped.loss(seen, wanted), guide.loss(seen, wanted))


BAD = [*itertools.product([0.0, -1.0, math.nan, math.inf], [1.0])]
BAD += [*itertools.product([1.0], [-0.1, math.nan, math.inf])]


@pytest.mark.parametrize(("joint", "marginal"), BAD)
def test_temperatures_that_make_no_sense_are_refused(
    guide: ClassifierGuide, joint: float, marginal: float
) -> None:
    with pytest.raises(OptionError, match="joint" if marginal == 1 else "marginal"):
        guide.tempered(joint, marginal)
