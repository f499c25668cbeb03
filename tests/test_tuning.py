"""Experts learn from the frozen network alone, and a tuning is the same in any number of pieces."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import teaching
import torch
from filelock import FileLock
from processes import plain_environment, run_process
from safetensors import safe_open
from safetensors.torch import save_file
from teaching import world
from torch import Tensor
from worlds import ClassBackbone, ColourGuide, GaussianBackbone, LatentBackbone, small_gaussian

from ppap_host.backbones.backbone import ClassifierFree, Condition, Prediction
from ppap_host.backbones.noise import NoiseLevel
from ppap_host.cli.surroundings import signals
from ppap_host.experts.harvest import Harvest, HarvestConfig, Lesson
from ppap_host.experts.patches import network_hash
from ppap_host.experts.sets import ExpertSet, WithExperts
from ppap_host.experts.tuning import STATE, Predictor, Progress, Tuning, TuningConfig, tune
from ppap_host.files.errors import (
    CheckpointError,
    DamageWarning,
    GuidanceWarning,
    OptionError,
    OutputError,
)
from ppap_host.files.images import to_pixels, to_unit
from ppap_host.recipes.presets import X0
from ppap_host.runs.harvesting import harvest
from ppap_host.sampling.evaluator import Evaluator, Guidance, Health
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM
from ppap_host.sampling.streams import ImageNoise

PROGRAM = Path(__file__).with_name("teaching.py")
LEVELS = small_gaussian().levels()
CONFIG = TuningConfig(experts=2, rank=1, steps=30, batch=8, check_every=10, held_out=0.2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Harvest:
    config = HarvestConfig("gaussian", num=60, shard=20, steps=5, device="cpu")
    return harvest(config, tmp_path_factory.mktemp("harvest") / "h", found=world())


@pytest.fixture(scope="module")
def lesson(made: Harvest) -> Lesson:
    return made.lesson(ColourGuide())


def tensors(experts: ExpertSet) -> list[torch.Tensor]:
    named = (patch.tensors() for patch in experts.patches)
    return [values[name] for values in named for name in sorted(values)]


def test_experts_come_nearer_to_the_teacher_in_every_range_and_the_network_stays(
    lesson: Lesson,
) -> None:
    guide = ColourGuide()
    before = network_hash(guide.network())
    told: list[Progress] = []
    config = replace(CONFIG, experts=3, rank=2, steps=150, check_every=50, lr=0.02)
    experts = tune(guide, lesson, LEVELS, config, report=told.append)
    assert network_hash(guide.network()) == before
    assert len(experts.ranges) == 3
    quality = experts.metadata["quality"]
    for row in quality:
        assert row["expert"]["distance"] < row["off_the_shelf"]["distance"]
    # In the cleanest range there is next to nothing to gain; over all of them most of it goes.
    errors = {k: sum(row[k]["error"] for row in quality) for k in ("expert", "off_the_shelf")}
    assert errors["expert"] < 0.5 * errors["off_the_shelf"]
    assert [p.step for p in told] == [0, 50, 100, 150]
    assert experts.metadata["trainable"]["per_expert"] == experts.patches[0].count()
    WithExperts(guide, experts, image_size=(8, 8))


def test_the_same_seed_gives_the_same_experts_and_another_one_others(lesson: Lesson) -> None:
    first, again, other = (
        tensors(tune(ColourGuide(), lesson, LEVELS, replace(CONFIG, seed=seed)))
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_ctrl_c_keeps_everything_and_the_tuning_goes_on_to_the_same_experts(
    lesson: Lesson, tmp_path: Path
) -> None:
    whole = tune(ColourGuide(), lesson, LEVELS, CONFIG)

    def stop(what: str, done: int, total: int) -> None:
        if done == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(ColourGuide(), lesson, LEVELS, CONFIG, tmp_path, stop)
    assert (tmp_path / STATE).exists()
    steps = []
    resumed = tune(
        ColourGuide(),
        lesson,
        LEVELS,
        CONFIG,
        tmp_path,
        lambda what, done, total: steps.append(done),
    )
    assert steps[0] == 18
    assert all(torch.equal(a, b) for a, b in zip(tensors(whole), tensors(resumed), strict=True))
    again = tune(ColourGuide(), lesson, LEVELS, CONFIG, tmp_path, stop)  # nothing is left to do
    assert all(torch.equal(a, b) for a, b in zip(tensors(whole), tensors(again), strict=True))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("of", "name", "call"),
    [(torch.optim.Optimizer, "zero_grad", 5), (Tuning, "distances", 6)],
    ids=["between a step and its count", "in a measurement"],
)
def test_a_signal_in_the_midst_of_a_step_waits_for_its_end(
    lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, of: Any,
    name: str, call: int,
) -> None:  # fmt: skip
    whole = tune(ColourGuide(), lesson, LEVELS, CONFIG)
    real, calls = getattr(of, name), itertools.count(1)

    def signalled(*args: Any, **options: Any) -> Any:
        if next(calls) == call:
            signal.raise_signal(number)
        return real(*args, **options)

    monkeypatch.setattr(of, name, signalled)
    # What the caller ignores stays ignored, and this process may have been begun so (``nohup``, &).
    before = signal.signal(number, signal.default_int_handler)
    try:
        with signals(), pytest.raises(KeyboardInterrupt):
            tune(ColourGuide(), lesson, LEVELS, CONFIG, tmp_path)
    finally:
        signal.signal(number, before)
    monkeypatch.undo()
    resumed = tune(ColourGuide(), lesson, LEVELS, CONFIG, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(tensors(whole), tensors(resumed), strict=True))
    assert whole.metadata["quality"] == resumed.metadata["quality"]


def test_a_killed_tuning_goes_on_to_the_same_bytes(
    made: Harvest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def program(folder: Path) -> list[str]:
        return [str(PROGRAM), "tune", str(folder), str(made.folder)]

    whole, folder = tmp_path / "whole", tmp_path / "killed"
    monkeypatch.setattr(sys, "argv", program(whole))
    teaching.main()
    process = subprocess.Popen([sys.executable, *program(folder), "0.1"], env=plain_environment())
    try:
        until = time.monotonic() + 120
        while not (folder / STATE).exists() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (folder / STATE).exists()
    assert not (folder / "experts.safetensors").exists()
    monkeypatch.setattr(sys, "argv", program(folder))
    teaching.main()
    name = "experts.safetensors"
    assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_two_processes_tune_as_one_does(made: Harvest, tmp_path: Path) -> None:
    alone = tune(ColourGuide(), made.lesson(ColourGuide()), LEVELS, CONFIG)
    launched = run_process(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
            str(PROGRAM), "tune", str(tmp_path / "two"), str(made.folder),
        ],
        tmp_path,
    )  # fmt: skip
    assert launched.code == 0, launched.err
    together = ExpertSet.load(tmp_path / "two" / "experts.safetensors")
    for a, b in zip(tensors(alone), tensors(together), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


class Unsound(ColourGuide):
    """Says what is not finite: of some images as a teacher, or of how far a student is."""

    def __init__(self, says: str) -> None:
        super().__init__()
        self.says = says

    def through(self, network: Any, x: Tensor) -> Tensor:
        output = super().through(network, x)
        return output / 0 if self.says == "outputs" else output

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        distance = super().distance(student, teacher)
        lost = self.says == "distances" or (self.says == "gradients" and student.requires_grad)
        return distance * math.nan if lost else distance


def test_what_is_not_finite_teaches_nothing_and_is_told_of(
    made: Harvest, lesson: Lesson, tmp_path: Path
) -> None:
    shutil.copytree(made.folder, tmp_path / "h")
    for folder in (tmp_path / "h").glob("teacher-*"):
        shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="image 0 of the harvest is not finite"):
        Harvest.open(tmp_path / "h").lesson(Unsound("outputs"))
    with pytest.raises(CheckpointError, match=r"at log-SNR .* is not finite"):
        tune(Unsound("distances"), lesson, LEVELS, CONFIG)
    with pytest.warns(GuidanceWarning, match="30 of 30 steps") as told:
        tune(Unsound("gradients"), lesson, LEVELS, CONFIG)
    assert len(told) == 2


def test_another_tuning_is_not_gone_on_with(lesson: Lesson, tmp_path: Path) -> None:
    Tuning(ColourGuide(), lesson, LEVELS, CONFIG).save(tmp_path / STATE)
    with pytest.raises(OptionError, match="other settings") as caught:
        tune(ColourGuide(), lesson, LEVELS, replace(CONFIG, seed=9), tmp_path)
    assert "--out" in caught.value.remedy
    with pytest.raises(OptionError, match="other settings"):
        tune(ColourGuide("1"), lesson, LEVELS, CONFIG, tmp_path)


@pytest.mark.parametrize("kind", ["junk", "empty", "cut", "zeros", "pickle", "other", "types"])
def test_a_damaged_state_is_never_gone_on_with(lesson: Lesson, tmp_path: Path, kind: str) -> None:
    tuning = Tuning(ColourGuide(), lesson, LEVELS, CONFIG)
    tuning.check()
    tuning.advance()
    tuning.save(tmp_path / STATE)
    data = (tmp_path / STATE).read_bytes()
    with safe_open(tmp_path / STATE, framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    told = json.loads(header["tuning"])
    if kind == "other":
        save_file(dict(list(tensors.items())[1:]), tmp_path / STATE, header)
    elif kind == "types":
        save_file(tensors, tmp_path / STATE, header | {"tuning": json.dumps(told | {"step": "1"})})
    else:
        damaged = {
            "junk": b"damaged", "empty": b"", "cut": data[:-8], "zeros": data[:-64] + bytes(64),
            "pickle": pickle.dumps(told),
        }  # fmt: skip
        (tmp_path / STATE).write_bytes(damaged[kind])
    with pytest.raises(CheckpointError, match="no state of a tuning"):
        tune(ColourGuide(), lesson, LEVELS, CONFIG, tmp_path)


def test_two_tunings_do_not_share_a_folder(lesson: Lesson, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(OutputError, match="at work"):
        tune(ColourGuide(), lesson, LEVELS, CONFIG, tmp_path)


def test_an_expert_that_no_longer_improves_stops_early_at_its_best(lesson: Lesson) -> None:
    told: list[Progress] = []
    config = replace(CONFIG, steps=2000, check_every=2, patience=2, lr=0.5, experts=1)
    experts = tune(ColourGuide(), lesson, LEVELS, config, report=told.append)
    assert told[-1].step < 2000
    assert told[-1].finished == [True]
    best = min(row["held_out"][0] for row in told[-1].history)
    assert experts.metadata["quality"][0]["expert"]["distance"] == pytest.approx(best, abs=1e-6)


def test_a_fully_trained_expert_and_labels_go_through_the_same_code(lesson: Lesson) -> None:
    guide = ColourGuide()
    truth = guide.from_labels(lesson.images(slice(None)).mean(dim=(2, 3)))
    labelled = Lesson(lesson.pixels, truth, {"kind": "labels"})
    config = replace(CONFIG, experts=1, method="full", rank=None, steps=60)
    experts = tune(guide, labelled, LEVELS, config)
    (row,) = experts.metadata["quality"]
    assert row["expert"]["distance"] < row["off_the_shelf"]["distance"]
    parameters = sum(p.numel() for p in guide.network().parameters())
    assert experts.metadata["trainable"]["per_expert"] == parameters
    assert experts.metadata["rank"] is None


def test_a_step_whose_loss_is_not_finite_changes_nothing(lesson: Lesson) -> None:
    teacher = lesson.teacher.clone()
    teacher[:] = float("nan")
    tuning = Tuning(ColourGuide(), Lesson(lesson.pixels, teacher, {}), LEVELS, CONFIG)
    before = [t.detach().clone() for t in tuning.patches[0].trainable()]
    tuning.advance()
    after = tuning.patches[0].trainable()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"experts": 0},
        {"steps": 0},
        {"held_out": 0.0},
        {"held_out": 1.0},
        {"rank": 0},
        {"lr": -1.0},
        {"lr": math.nan},
        {"lr": 1e30},
        {"weight_decay": -1.0},
        {"weight_decay": math.inf},
        {"experts": 10**9},
        {"seed": -1},
        {"batch": 2.5},
        {"held_out": math.nan},
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(changes))!r}") as caught:
        replace(CONFIG, **changes)
    assert caught.value.remedy


def test_a_decay_that_turns_signs_is_refused() -> None:
    with pytest.raises(OptionError, match="learning rate") as caught:
        replace(CONFIG, lr=0.01, weight_decay=101.0)
    assert "--weight-decay" in caught.value.remedy


class Levelled(GaussianBackbone):
    """Counts evaluations and keeps the level of each."""

    def __init__(self, clip: tuple[float, float] | None = None) -> None:
        super().__init__(mean=0.1, shape=(3, 8, 8))
        self.clip = clip
        self.seen: list[NoiseLevel] = []

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        self.seen.append(level)
        return super().predict(x, level, condition)


def test_a_prediction_is_what_the_sampler_would_show_at_that_noise(lesson: Lesson) -> None:
    x0 = lesson.images(slice(0, 4))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    for clip in (None, (-0.2, 0.2)):
        backbone = Levelled(clip)
        solver, health = DDIM(), Health()
        evaluate = Evaluator(
            backbone,
            ClassifierFree(backbone, {}, {}),
            (),
            ancestral=solver.ancestral,
            health=health,
        )
        for level in (LEVELS[100], LEVELS[900]):
            shown = Predictor(backbone)(x0, noise, level, {})
            expected = evaluate(level.alpha * x0 + level.sigma * noise, level).x0
            torch.testing.assert_close(shown, expected)
            assert not shown.requires_grad


def test_experts_learn_to_read_predictions_in_every_range(lesson: Lesson) -> None:
    guide = ColourGuide()
    config = replace(CONFIG, experts=3, rank=2, steps=150, check_every=50, lr=0.02)
    backbone = Levelled()
    experts = tune(guide, lesson, LEVELS, config, predictor=Predictor(backbone))
    clean, *noisy = experts.metadata["quality"]
    for row in noisy:
        assert row["expert"]["distance"] < row["off_the_shelf"]["distance"]
    # Where hardly any noise was, the prediction is the image, and nothing is left to learn.
    assert clean["off_the_shelf"]["distance"] < 1e-3 > clean["expert"]["distance"]
    assert experts.view == "predicted"
    assert WithExperts(guide, experts, image_size=(8, 8)).knows_predictions
    served = [experts.serving(level) for level in backbone.seen]
    assert {served.count(i) > 0 for i in range(3)} == {True}


def test_tuning_on_noised_images_is_what_it_was_before_there_were_views(lesson: Lesson) -> None:
    tuning = Tuning(ColourGuide(), lesson, LEVELS, CONFIG)
    assert set(json.loads(tuning.fingerprint)) == {"config", "lesson", "guide", "network"}
    rows = torch.arange(6)
    x0 = lesson.images(rows)
    # The seed 0, the expert 1, training, the step 5.
    digest = hashlib.sha256(b'["tuning", 0, 1, 0, 5]').digest()
    words = np.random.SeedSequence(np.frombuffer(digest, "<u4"))
    word = words.generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(word >> np.uint64(1)))
    own = [level for level in LEVELS if level.log_snr in tuning.ranges[1]]
    levels = [own[int(k)] for k in torch.randint(len(own), (6,), generator=generator)]
    noise = torch.randn(x0.shape, generator=generator)
    by_hand = [
        (level.alpha * x + level.sigma * e) / level.scale
        for x, e, level in zip(x0, noise, levels, strict=True)
    ]
    shown = tuning.shown[1](x0, rows, (0, 5))
    torch.testing.assert_close(shown, torch.stack(by_hand))
    experts = tune(ColourGuide(), lesson, LEVELS, CONFIG)
    assert "view" not in experts.metadata and experts.view == "noised"


def test_an_image_is_predicted_as_what_it_was_made_as(tmp_path: Path) -> None:
    config = HarvestConfig("classes", num=12, shard=6, batch=3, steps=5, device="cpu", cfg=1.0)
    made = harvest(config, tmp_path, found=world())
    backbone = ClassBackbone()
    predictor = Predictor.of(made, backbone, torch.device("cpu"), torch.float32)
    rows = [7, 0, 3, 11, 4]
    means = predictor.conditions(rows)["mean"]
    assert len(set(means.tolist())) > 1
    images = to_unit(made.pixels()[rows])
    torch.testing.assert_close(images.mean(dim=(1, 2, 3)), means, atol=0.05, rtol=0)
    # At pure noise the class is all there is to know.
    lesson = Lesson(made.pixels(), torch.zeros(12, 3), {})
    config = replace(CONFIG, experts=1, held_out=0.1)
    tuning = Tuning(ColourGuide(), lesson, LEVELS[-5:], config, predictor=predictor)
    shown = tuning.shown[0](images, torch.tensor(rows), (0, 0))
    torch.testing.assert_close(shown.mean(dim=(1, 2, 3)), means, atol=0.05, rtol=0)


def test_processes_show_their_share_of_one_batch_of_predictions(lesson: Lesson) -> None:
    tuning = Tuning(ColourGuide(), lesson, LEVELS, CONFIG, predictor=Predictor(Levelled()))
    rows = torch.tensor([5, 3, 40, 8, 22, 1, 30, 9, 10, 2, 7])
    x0 = lesson.images(rows)
    whole = tuning.shown[0](x0, rows, (0, 4))
    for process in range(3):
        share = slice(process, None, 3)
        torch.testing.assert_close(tuning.shown[0](x0, rows, (0, 4), share), whole[share])
    assert not torch.equal(tuning.shown[0](x0, rows, (0, 5)), whole)


def test_an_expert_of_predictions_begins_as_the_plain_network_and_never_ends_worse(
    lesson: Lesson,
) -> None:
    told: list[Progress] = []
    config = replace(CONFIG, lr=5.0)  # far too much: whatever it learns is wrong
    predictor = Predictor(Levelled())
    experts = tune(ColourGuide(), lesson, LEVELS, config, report=told.append, predictor=predictor)
    assert told[0].held_out == pytest.approx(told[0].off_the_shelf, rel=1e-4)
    for row in experts.metadata["quality"]:
        assert row["expert"]["distance"] <= row["off_the_shelf"]["distance"] + 1e-6


def test_held_out_predictions_are_made_once(lesson: Lesson) -> None:
    backbone = Levelled()
    tuning = Tuning(ColourGuide(), lesson, LEVELS, CONFIG, predictor=Predictor(backbone))
    before = len(backbone.seen)
    first = tuning.distances(0, None)
    once = len(backbone.seen)
    assert once > before
    assert tuning.distances(0, None) == first
    assert len(backbone.seen) == once


def test_a_level_without_any_image_is_not_predicted_from(lesson: Lesson) -> None:
    levels = (*LEVELS[:50], NoiseLevel(0.0, 1.0, 999.0))
    backbone = Levelled()
    tuning = Tuning(
        ColourGuide(), lesson, levels, replace(CONFIG, experts=1), predictor=Predictor(backbone)
    )
    for step in range(20):
        rows = tuning._rows(step)
        assert tuning.shown[0](lesson.images(rows), rows, (0, step)).isfinite().all()
    assert all(level.alpha for level in backbone.seen)


def test_an_interrupted_tuning_on_predictions_goes_on_and_one_on_noise_does_not(
    lesson: Lesson, tmp_path: Path
) -> None:
    predictor = Predictor(Levelled())
    whole = tune(ColourGuide(), lesson, LEVELS, CONFIG, predictor=predictor)

    def stop(what: str, done: int, total: int) -> None:
        if done == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(ColourGuide(), lesson, LEVELS, CONFIG, tmp_path, stop, predictor=predictor)
    with pytest.raises(OptionError, match="other settings"):
        tune(ColourGuide(), lesson, LEVELS, CONFIG, tmp_path)
    again = Predictor(Levelled())
    resumed = tune(ColourGuide(), lesson, LEVELS, CONFIG, tmp_path, predictor=again)
    assert all(torch.equal(a, b) for a, b in zip(tensors(whole), tensors(resumed), strict=True))


def test_experts_of_latents_learn_from_decoded_predictions_and_are_asked_at_x0(
    tmp_path: Path, lesson: Lesson
) -> None:
    config = HarvestConfig("latent", num=60, shard=20, steps=5, device="cpu")
    made, backbone, guide = (
        harvest(config, tmp_path, found=world()),
        LatentBackbone(),
        ColourGuide(),
    )
    latents = torch.cat([made.latents(i) for i in range(made.shards)])
    assert torch.equal(to_pixels(backbone.decode(latents)), made.pixels())
    with pytest.raises(OptionError, match="Make a new harvest with this backbone"):
        Tuning(guide, lesson, LEVELS, CONFIG, predictor=Predictor(backbone))

    whole = made.latents_file(1).read_bytes()
    made.latents_file(1).write_bytes(whole[:-4])
    with pytest.warns(DamageWarning, match="latents-00001.* It is made again"):
        harvest(config, tmp_path, found=world())
    assert made.latents_file(1).read_bytes() == whole

    learning = replace(CONFIG, experts=3, rank=2, steps=150, check_every=50, lr=0.02)
    predictor = Predictor.of(made, backbone, torch.device("cpu"), torch.float32)
    experts = tune(guide, made.lesson(guide), backbone.levels(), learning, predictor=predictor)
    for row in experts.metadata["quality"][1:]:
        assert row["expert"]["distance"] < row["off_the_shelf"]["distance"]
    assert experts.view == "predicted" and experts.metadata["image_size"] == [8, 8]
    assert experts.metadata["harvest"]["latents_sha256"]

    served = WithExperts(guide, experts, image_size=(8, 8))
    backbone.seen.clear()
    asked: list[NoiseLevel | None] = []
    see = served.see
    served.see = lambda x, level=None: (asked.append(level), see(x, level))[1]  # type: ignore[method-assign]
    sample(
        backbone, ClassifierFree(backbone, {}, {}), backbone.walk(6), DDIM(),
        ImageNoise(0, range(2), backbone.state_shape),
        [Guidance(served, torch.zeros(1, 3), X0, 1.0)],
    )  # fmt: skip
    assert set(asked) == set(backbone.seen)
    assert {experts.serving(level) for level in backbone.seen} == {0, 1, 2}


def test_too_few_images_or_levels_are_refused(lesson: Lesson) -> None:
    one = Lesson(lesson.pixels[:1], lesson.teacher[:1], {})
    with pytest.raises(OptionError, match="nothing to train on"):
        Tuning(ColourGuide(), one, LEVELS, CONFIG)
    with pytest.raises(OptionError, match="Cannot split"):
        Tuning(ColourGuide(), lesson, LEVELS[:3], replace(CONFIG, experts=4))


def test_the_set_says_what_made_it(lesson: Lesson) -> None:
    experts = tune(ColourGuide(), lesson, LEVELS, CONFIG)
    metadata = json.loads(json.dumps(experts.metadata))
    assert metadata["guide"] == "colour"
    assert metadata["image_size"] == [8, 8]
    assert metadata["harvest"]["images_sha256"]
    assert metadata["tuning"]["steps_done"] == 30
    assert metadata["network_sha256"] == network_hash(ColourGuide().network())
