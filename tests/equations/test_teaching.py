"""One step of tuning, and what a harvest is made of, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teaching import world
from torch import Tensor, nn
from worlds import ClassBackbone, ColourGuide, GaussianBackbone, small_gaussian

from ppap_host.backbones.noise import NoiseRange
from ppap_host.experts.harvest import Harvest, Lesson, conditions, write_tensor
from ppap_host.experts.sets import ExpertSet
from ppap_host.experts.tuning import Tuning, TuningConfig, _Noised, _Predicted, tune
from ppap_host.files.errors import CheckpointError
from ppap_host.runs.harvesting import HarvestConfig, harvest

LEVELS = small_gaussian().levels()


class LineGuide(ColourGuide):
    """A network of nothing but one linear layer; distances are sums of squares by 30."""

    def __init__(self) -> None:
        super().__init__()
        self._network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).double().eval()
        generator = torch.Generator().manual_seed(8)
        with torch.no_grad():
            for parameter in self._network.parameters():
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
        self._network.requires_grad_(False)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().sum(dim=1) / 30


@pytest.fixture(scope="module")
def lesson() -> Lesson:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (40, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Lesson(pixels, 2 * torch.randn(40, 3, generator=generator), {})


CONFIG = TuningConfig(
    experts=2, method="full", steps=40, batch=6, lr=0.05, weight_decay=0.3, held_out=0.2, seed=5
)


def test_a_tuning_is_adamw_with_warm_up_cosine_and_clipping(lesson: Lesson) -> None:
    """Loshchilov and Hutter (2019), algorithm 2, by hand for a linear student.

    The rate rises over a twentieth of the steps and falls as half a cosine; gradients are of the
    mean distance of a batch, and no longer than one. It is eq. 8 of PPAP: the teacher's output for
    the clean image is what the student must say of the noised one.
    """
    tuning = Tuning(LineGuide(), lesson, LEVELS, CONFIG)
    steps, batch = 40, 6
    state: list[Any] = []
    for patch in tuning.patches:
        weights = [patch.direct[f"1.{n}"].detach().numpy().copy() for n in ("weight", "bias")]
        state.append([(w, np.zeros_like(w), np.zeros_like(w)) for w in weights])
    clipped = []
    running: list[float | None] = [None, None]
    for t in range(steps):
        rows = tuning._rows(t)
        teacher = lesson.teacher[rows].double().numpy()
        x0 = lesson.images(rows)
        rate = 0.05 * min(1, (t + 1) / 2) * (1 + math.cos(math.pi * t / steps)) / 2
        for i in range(2):
            x = tuning.shown[i](x0, rows, (0, t)).flatten(1).double().numpy()
            (w, *_), (b, *_) = state[i]
            error = x @ w.T + b - teacher
            loss = (error**2).sum() / 30 / batch
            running[i] = loss if running[i] is None else running[i] + (loss - running[i]) / 20
            slopes = [error.T @ x / 15 / batch, error.sum(axis=0) / 15 / batch]
            length = math.sqrt(sum((g**2).sum() for g in slopes))
            clipped.append(length > 1)
            new = []
            for (p, m, v), g in zip(state[i], slopes, strict=True):
                g = g / max(1.0, length)
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                hats = m / (1 - 0.9 ** (t + 1)), v / (1 - 0.999 ** (t + 1))
                p = p - rate * (0.3 * p + hats[0] / (np.sqrt(hats[1]) + 1e-8))
                new.append((p, m, v))
            state[i] = new
        tuning.advance()
        for i, patch in enumerate(tuning.patches):
            for name, (wanted, *_) in zip(("weight", "bias"), state[i], strict=True):
                found = patch.direct[f"1.{name}"].detach().numpy()
                np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-4)
        assert tuning.losses == pytest.approx(running, rel=1e-3)
    assert any(clipped) and not all(clipped), "both must have been seen"


def test_defaults_are_the_rates_that_are_documented(lesson: Lesson) -> None:
    assert TuningConfig().learning_rate == 5e-3
    assert TuningConfig(method="full").learning_rate == 5e-4
    assert replace(CONFIG, lr=0.1).learning_rate == 0.1


def test_a_tenth_is_held_out_and_every_other_image_comes_once_a_pass(lesson: Lesson) -> None:
    tuning = Tuning(LineGuide(), lesson, LEVELS, CONFIG)
    held, trained = set(tuning.held.tolist()), set(tuning.train.tolist())
    assert len(held) == 8 and held | trained == set(range(40)) and not held & trained
    per_pass = 32 // 6
    passes = [
        [k for step in range(p * per_pass, (p + 1) * per_pass) for k in tuning._rows(step).tolist()]
        for p in range(3)
    ]
    for one in passes:
        assert len(one) == len(set(one)) == 30 and set(one) <= trained
    assert len({tuple(one) for one in passes}) == 3, "every pass has an order of its own"


def test_every_level_of_a_range_is_taught_as_often(lesson: Lesson) -> None:
    """Eq. 8 of PPAP: t is uniform in the range. An image of 10^6 shows which level it is at."""
    levels, part = [*LEVELS[:980:140]], NoiseRange(-math.inf, math.inf)
    x0 = torch.full((4000, 1, 1, 1), 1e6)
    shown = _Noised(levels, part, (0, 0))(x0, torch.arange(4000), (0, 0)).flatten() / 1e6
    nearest = [abs(float(v) - np.array([lv.alpha for lv in levels])).argmin() for v in shown]
    np.testing.assert_allclose(np.bincount(nearest, minlength=7) / 4000, 1 / 7, atol=0.03)

    class Telling:
        def conditions(self, rows: Any) -> Any:
            return {}

        def __call__(self, x0: Tensor, noise: Tensor, level: Any, condition: Any) -> Tensor:
            return torch.full_like(x0, level.time)

    predicted = _Predicted(LEVELS[:8], part, (0, 0), Telling())  # type: ignore[arg-type]
    at = torch.stack(
        [predicted(x0[:12], torch.arange(12), (0, k)).flatten() for k in range(300)]
    ).numpy()
    for group in range(4):  # a quarter of the batch, at a level of its quarter of the range
        own = at[:, 3 * group : 3 * group + 3]
        assert (own == own[:, :1]).all()
        counts = np.bincount(own[:, 0].astype(int), minlength=8) / 300
        np.testing.assert_allclose(counts[2 * group : 2 * group + 2], 0.5, atol=0.15)


def test_experts_begin_apart_and_as_the_seed_says(lesson: Lesson) -> None:
    config = replace(CONFIG, method="patch", rank=1)
    first, again, other = (
        [p.low_rank["1.weight"][0] for p in Tuning(LineGuide(), lesson, LEVELS, c).patches]
        for c in (config, config, replace(config, seed=6))
    )
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_a_saved_state_is_all_that_a_tuning_knows(lesson: Lesson, tmp_path: Path) -> None:
    tuning, other = (Tuning(LineGuide(), lesson, LEVELS, CONFIG) for _ in range(2))
    tuning.advance()
    tuning.check()
    tuning.waited, tuning.finished, tuning.best = [3, 5], [False, True], [0.25, 0.5]
    tuning.save(tmp_path / "state")
    other.restore(tmp_path / "state")
    for name in ("step", "losses", "waited", "finished", "best", "history", "off_the_shelf"):
        assert getattr(other, name) == getattr(tuning, name), name
    kept, read = tuning._tensors(), other._tensors()
    assert list(kept) == list(read) and all(torch.equal(kept[k], read[k]) for k in kept)


def test_the_best_state_is_kept_and_patience_counts_small_gains_as_none(lesson: Lesson) -> None:
    """0.1 % is the least gain that counts; what was best is kept all the same."""
    tuning = Tuning(LineGuide(), lesson, LEVELS, replace(CONFIG, experts=1, patience=3))
    values = iter([1.0, 0.9995, 0.99, 0.9899, 0.9898, 0.9899, 7.0])

    def distances(i: int, patch: Any) -> list[float]:
        return [10.0] if patch is None else [next(values)]

    tuning.distances = distances  # type: ignore[method-assign]
    expected = (
        (1.0, 0, False), (0.9995, 1, False), (0.99, 0, False), (0.9899, 1, False),
        (0.9898, 2, False), (0.9898, 3, True), (0.9898, 3, True),
    )  # fmt: skip
    for k, (best, waited, finished) in enumerate(expected):
        tuning.step = k
        with torch.no_grad():
            tuning.patches[0].direct["1.bias"].fill_(k)
        tuning.check()
        assert (tuning.best[0], tuning.waited[0], tuning.finished[0]) == (best, waited, finished)
    assert tuning.off_the_shelf == [10.0]
    assert [row["held_out"][0] for row in tuning.history] == [
        1.0, 0.9995, 0.99, 0.9899, 0.9898, 0.9899, 0.9899,
    ]  # fmt: skip
    kept = dict(zip(("weight", "bias"), tuning.best_values[0], strict=True))
    assert kept["bias"].tolist() == [4.0] * 3
    assert tuning.done()


def test_a_finished_expert_stays_as_it_is(lesson: Lesson) -> None:
    tuning = Tuning(LineGuide(), lesson, LEVELS, CONFIG)
    tuning.advance()
    tuning.finished[0] = True
    before = [[t.detach().clone() for t in p.trainable()] for p in tuning.patches]
    tuning.advance()
    after = [p.trainable() for p in tuning.patches]
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))


def test_the_reported_quality_is_that_of_the_best_state_on_the_held_out_part(
    lesson: Lesson,
) -> None:
    guide = LineGuide()
    config = replace(CONFIG, experts=1, steps=20, check_every=20, lr=0.3)
    tuning = Tuning(guide, lesson, LEVELS, replace(config))
    experts = tune(guide, lesson, LEVELS, config)
    (patch,), (row,) = experts.patches, experts.metadata["quality"]
    w, b = (patch.direct[f"1.{n}"].double().numpy() for n in ("weight", "bias"))
    rows = tuning.held
    x = tuning.shown[0](lesson.images(rows), rows, (1, 0)).flatten(1).double().numpy()
    errors = ((x @ w.T + b - lesson.teacher[rows].numpy()) ** 2).sum(axis=1) / 30
    assert row["expert"]["distance"] == pytest.approx(errors.mean(), rel=1e-4)
    spread = errors.std() / math.sqrt(len(errors))
    assert row["expert"]["standard_error"] == pytest.approx(spread, rel=1e-4)


# Harvests


@pytest.mark.filterwarnings("ignore:Most pixels")
def test_a_harvest_strengthens_its_classes_as_classifier_free_guidance_says(
    tmp_path: Path,
) -> None:
    """Ho and Salimans (2022), eq. 6: of Gaussians it moves the mean to m_0 + s (m_k - m_0)."""
    found = world()
    for cfg, strength in ((1.0, 1.0), (1.4, 1.4), (None, ClassBackbone.default_cfg)):
        config = HarvestConfig("classes", num=6, shard=6, batch=3, steps=12, device="cpu", cfg=cfg)
        made = harvest(config, tmp_path / str(cfg), found=found)
        means = made.pixels().float().mean(dim=(1, 2, 3)) / 127.5 - 1
        own = conditions(ClassBackbone(), (), 0, range(6))["mean"]
        assert len(set(own.tolist())) > 1
        wanted = (-0.9 + strength * (own + 0.9)).clamp(-1, 1)
        torch.testing.assert_close(means, wanted, atol=0.04, rtol=0)


def test_a_harvest_has_its_classes_only_where_the_backbone_strengthens_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClassBackbone, "default_cfg_interval", NoiseRange(50.0, 60.0))
    config = HarvestConfig("classes", num=6, shard=6, batch=3, steps=12, device="cpu", cfg=3.0)
    means = harvest(config, tmp_path, found=world()).pixels().float().mean(dim=(1, 2, 3))
    own = conditions(ClassBackbone(), (), 0, range(6))["mean"]
    torch.testing.assert_close(means / 127.5 - 1, own, atol=0.04, rtol=0)


def test_prompts_go_round_and_classes_are_of_the_seed() -> None:
    class Reading(GaussianBackbone):
        def encode_prompts(self, prompts: Any) -> Any:
            return {"length": torch.tensor([len(p) for p in prompts])}

    told = conditions(Reading(), ("a", "bb", "ccc", "dddd"), 0, (3, 4, 5, 10))
    assert told["length"].tolist() == [4, 1, 2, 3]
    one, again, other = (conditions(ClassBackbone(), (), s, range(30))["mean"] for s in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_a_harvest_is_known_by_all_its_images(tmp_path: Path) -> None:
    config = HarvestConfig("gaussian", num=6, shard=2, batch=2, steps=2, device="cpu")
    made = harvest(config, tmp_path, found=world())
    known = {made.identity()["images_sha256"]}
    for i in range(3):
        write_tensor(made.images_file(i), "rgb", 255 - made.images(i))
        known.add(made.identity()["images_sha256"])
    assert len(known) == 4


class Counting(GaussianBackbone):
    """Counts the images that it evaluates."""

    evaluated = 0

    def predict(self, x: Tensor, level: Any, condition: Any) -> Any:
        type(self).evaluated += len(x)
        return super().predict(x, level, condition)


def test_a_harvest_that_goes_on_makes_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted: the backbone's evaluations, and the files that are written again."""
    import worlds

    monkeypatch.setattr(worlds, "small_gaussian", lambda checkpoint=None: Counting(shape=(3, 8, 8)))
    config = HarvestConfig("gaussian", num=22, shard=4, batch=2, steps=5, device="cpu")
    Counting.evaluated = 0
    made = harvest(config, tmp_path, found=world())
    assert Counting.evaluated == 22 * 5
    whole = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}
    for missing, images in (((), 0), ((2,), 4), ((0, 5), 6)):
        for i in missing:
            made.images_file(i).unlink()
        Counting.evaluated = 0
        harvest(config, tmp_path, found=world())
        assert Counting.evaluated == images * 5
        again = {made.images_file(i).name for i in missing} | {"sheet.png"}
        for path in tmp_path.iterdir():
            content, written = whole[path.name]
            assert path.read_bytes() == content
            if path.name not in again:
                assert path.stat().st_mtime_ns == written, f"{path.name} was written again"
            whole[path.name] = content, path.stat().st_mtime_ns


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_a_harvest_without_making_anything_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    import worlds

    monkeypatch.setattr(worlds, "small_gaussian", lambda checkpoint=None: Counting(shape=(3, 8, 8)))
    config = HarvestConfig("gaussian", num=22, shard=4, batch=2, steps=5, device="cpu")
    counts: list[int] = []

    def share(process: int, wait: Any = None) -> Any:
        Counting.evaluated = 0
        try:
            return harvest(
                config, tmp_path / "h", process=process, processes=processes, wait=wait,
                found=world(),
            )  # fmt: skip
        finally:
            counts.append(Counting.evaluated)

    def others() -> None:
        """All the others' work, at the first meeting: the folder has been described by then."""
        if not counts:
            for process in range(1, processes):
                with pytest.raises(CheckpointError, match="not complete"):
                    share(process)
            Counting.evaluated = 0

    made = share(0, others)
    assert sum(counts) == 22 * 5 and all(counts)
    alone = harvest(config, tmp_path / "alone", found=world())
    assert torch.equal(made.pixels(), alone.pixels())


def test_a_teacher_is_asked_about_missing_shards_alone(tmp_path: Path) -> None:
    made = harvest(
        HarvestConfig("gaussian", num=10, shard=4, batch=2, steps=3, device="cpu"),
        tmp_path, found=world(),
    )  # fmt: skip
    guide, asked = ColourGuide(), []
    see = guide.see
    guide.see = lambda x, level=None: asked.append(len(x)) or see(x, level)  # type: ignore[method-assign,func-returns-value]
    whole = made.lesson(guide).teacher
    assert sum(asked) == 10
    (folder,) = tmp_path.glob("teacher-*")
    (folder / "outputs-00001.safetensors").unlink()
    asked.clear()
    assert torch.equal(Harvest.open(tmp_path).lesson(guide).teacher, whole)
    assert sum(asked) == 4


def test_a_tuning_that_goes_on_takes_only_the_steps_that_are_missing(
    lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    advance = Tuning.advance

    def counted(self: Tuning) -> None:
        taken.append(self.step)
        advance(self)

    monkeypatch.setattr(Tuning, "advance", counted)
    config = replace(CONFIG, steps=9, check_every=3)

    def stop(what: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(LineGuide(), lesson, LEVELS, config, tmp_path, stop)
    resumed = tune(LineGuide(), lesson, LEVELS, config, tmp_path)
    assert taken == list(range(9))
    whole: ExpertSet = tune(LineGuide(), lesson, LEVELS, config)
    for a, b in zip(resumed.patches, whole.patches, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.trainable(), b.trainable(), strict=True))
    taken.clear()
    tune(LineGuide(), lesson, LEVELS, config, tmp_path)
    assert taken == []
