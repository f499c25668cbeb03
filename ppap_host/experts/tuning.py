"""Tuning: knowledge transfer from a frozen network to its experts, without labels.

PPAP (Go et al., 2023, section 4.3, eq. 8): the teacher is the off-the-shelf network on a clean
image, the student an expert on the same image noised, and the expert of range i learns on levels
drawn uniformly from range i. The images are a harvest (:mod:`ppap_host.experts.harvest`).
Baselines go
through the same code: one noise-aware network is one expert over all levels, a fully trained expert
is a patch that holds every parameter, and supervision is a lesson whose teacher is the truth. With
a :class:`Predictor` the student is shown what a backbone predicts behind the noised image instead.

Every random draw is a function of the seed and of where it is used, never of a generator's past, so
that an interrupted tuning goes on as if nothing had happened, and several processes share a batch
without changing it.
"""

# Long because a tuning and the state it resumes from have to be read together.
from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ppap_host.backbones.backbone import Backbone, Condition, encode, repeat_condition
from ppap_host.backbones.noise import NoiseLevel, NoiseRange, uniform_ranges
from ppap_host.experts.harvest import Harvest, Lesson, conditions
from ppap_host.experts.patches import Patch, estimate_statistics, network_hash
from ppap_host.experts.sets import MOST, ExpertSet, digest_of
from ppap_host.files.errors import CheckpointError, GuidanceWarning, OptionError, RecordError
from ppap_host.files.folders import Job
from ppap_host.files.reading import Document, require_regular
from ppap_host.files.settings import Batch, NotNegative, Seed, settings
from ppap_host.files.writing import json_text, write_file
from ppap_host.guides.guide import Guide
from ppap_host.sampling.streams import derived, generator, word

if TYPE_CHECKING:
    from accelerate import Accelerator

Method = Literal["patch", "full"]
DEFAULT_LR: dict[str, float] = {"patch": 5e-3, "full": 5e-4}
STATE = "tuning-state.safetensors"
_STATISTICS_BATCHES = 8
_CHECK_IMAGES = 200
_LEVELS_AT_ONCE = 4  # of a batch of predictions


Count = Annotated[int, Field(ge=1, le=10**9)]


@settings
class TuningConfig:
    """How experts are tuned.

    Attributes:
        experts: N, into how many ranges the noise levels are split.
        method: "patch" trains low-rank factors, biases and normalisation; "full" every parameter.
        rank: of the factors; None takes the guide's own.
        steps: optimiser steps of each expert; None: as many as the guide says it needs.
        batch: images a step, shared by all processes.
        lr: of AdamW after the warm-up; None takes :data:`DEFAULT_LR`. Falls to zero as a cosine.
        weight_decay: of AdamW, on everything.
        seed: decides initial factors, batches, levels and noise.
        held_out: share of the lesson that is never trained on, in (0, 1).
        check_every: steps between measurements on the held-out part.
        patience: measurements without an improvement by 0.1 % after which an expert is finished.
    """

    experts: Annotated[int, Field(ge=1, le=MOST)] = 5
    method: Method = "patch"
    rank: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    steps: Count | None = None
    batch: Batch = 32
    lr: Annotated[float, Field(gt=0, le=100)] | None = None
    weight_decay: NotNegative = 1e-4
    seed: Seed = 0
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    check_every: Count = 50
    patience: Count = 10

    def __post_init__(self) -> None:
        if self.method == "full" and self.rank is not None:
            raise OptionError(
                f"The rank {self.rank} is of low-rank factors, and the method full has none.",
                remedy="Leave it out, or use the method patch.",
            )
        if self.learning_rate * self.weight_decay > 1:
            raise OptionError(
                f"A learning rate of {self.learning_rate} and --weight-decay {self.weight_decay} "
                "turn the sign of every number at each step: their product is more than 1.",
                remedy="Give a smaller --weight-decay; 0.0001 is usual.",
            )

    @property
    def learning_rate(self) -> float:
        """The peak learning rate."""
        return DEFAULT_LR[self.method] if self.lr is None else self.lr


class _Measured(BaseModel):
    """One row of a tuning's history."""

    model_config = ConfigDict(strict=True, extra="forbid")

    step: NonNegativeInt
    loss: list[FiniteFloat | None]
    held_out: list[FiniteFloat | None]


class _Told(BaseModel):
    """What a saved state says beside its tensors; lists have one entry an expert."""

    model_config = ConfigDict(strict=True, extra="forbid")

    fingerprint: str
    step: NonNegativeInt
    losses: list[FiniteFloat | None]
    finished: list[bool]
    waited: list[NonNegativeInt]
    best: list[FiniteFloat | None]
    history: list[_Measured]
    off_the_shelf: list[FiniteFloat]


class _Ends(BaseModel):
    """What was measured at the end in one range, with its expert and without."""

    model_config = ConfigDict(strict=True, extra="allow")

    expert: dict[str, FiniteFloat | None]
    off_the_shelf: dict[str, FiniteFloat | None]


class TuningRecord(BaseModel):
    """What ``tuning.json`` holds, the record of a tuning that has ended; other keys are kept.

    Lists have one entry an expert.
    """

    model_config = ConfigDict(strict=True, extra="allow")

    guide: str
    ranges: list[Annotated[list[FiniteFloat | None], Field(min_length=2, max_length=2)]]
    quality: list[_Ends]
    history: list[_Measured]

    @model_validator(mode="after")
    def _together(self) -> Self:
        counts = {len(self.quality), *(len(row.held_out) for row in self.history)}
        if counts != {len(self.ranges)}:
            raise ValueError(f"lists of {len(self.ranges)} ranges differ in length")
        needed = {"distance", "standard_error"}
        if any(
            needed - row.expert.keys() or needed - row.off_the_shelf.keys() for row in self.quality
        ):
            raise ValueError("'quality' without a distance and its standard error")
        return self


_RECORD = Document("record of a tuning", RecordError, "Give the folder that `ppap tune` wrote.")
RECORD = "tuning.json"


def read_record(path: Path) -> dict[str, Any]:
    """The record of a tuning from its file, or from the folder that ``ppap tune`` wrote.

    Raises:
        RecordError: it is none.
    """
    file = path / RECORD if os.path.isdir(path) else path
    values = _RECORD.read(file, dict[str, Any])
    _RECORD.check(values, TuningRecord, str(file))
    return values


_STATE = Document("state of a tuning", CheckpointError, "Delete it to start the tuning anew.")


@dataclass
class Progress:
    """What a watcher is told of a tuning; lists have one entry an expert.

    Attributes:
        step, steps: optimiser steps done and planned.
        ranges: of noise, as log-SNR.
        losses: running mean of the training distance.
        held_out: distance on the held-out part at the last measurement.
        off_the_shelf: the same of the network without any expert.
        finished: whether the expert has stopped early.
        history: one row a measurement, with ``step``, ``loss``, ``held_out``.
        seconds: since this process began.
    """

    step: int
    steps: int
    ranges: list[NoiseRange]
    losses: list[float]
    held_out: list[float]
    off_the_shelf: list[float]
    finished: list[bool]
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def fresh_patch(guide: Guide, config: TuningConfig, seed: int = 0) -> Patch:
    """An untaught expert of the kind that ``config`` asks for."""
    network = guide.network()
    if config.method == "full":
        return Patch.full(network)
    plan = guide.patch_plan(network)
    if config.rank is not None:
        plan = dataclasses.replace(plan, rank=config.rank)
    return Patch.fresh(network, plan, seed=seed)


def see_through(guide: Guide, patch: Patch | None, x: Tensor) -> Tensor:
    """The output of a guide's network, patched or as it is, for RGB ``x``; differentiable in the
    patch."""
    network = guide.network() if patch is None else patch.over(guide.network())

    def called(prepared: Tensor) -> Tensor:
        if prepared.ndim == 4:
            # Convolutions on a CPU take two thirds of the time in this layout.
            prepared = prepared.contiguous(memory_format=torch.channels_last)
        output: Tensor = network(prepared)
        return output

    return guide.through(called, x)


class Predictor:
    """The clean images that a backbone predicts from noised ones.

    x_0 = (x_t - sigma eps) / alpha (Ho et al., 2020, eq. 15), clipped as the sampler clips it: what
    a recipe shows that looks at predictions. One evaluation an image, without classifier-free
    guidance and without gradient.

    Args:
        backbone: where it is to run, in the precision it will run in.
        conditions: the condition of these images of the lesson, one row each or one for all of
            them; None predicts without any.

    A backbone that denoises latents predicts from noised latents, and its predictions are decoded.
    """

    def __init__(
        self, backbone: Backbone, conditions: Callable[[Sequence[int]], Condition] | None = None
    ) -> None:
        self.backbone = backbone
        self._conditions = conditions or (lambda rows: encode(backbone, [""], [None]))
        self._last: tuple[tuple[int, ...], Condition] | None = None

    @classmethod
    def of(
        cls, made: Harvest, backbone: Backbone, device: torch.device, dtype: torch.dtype
    ) -> Predictor:
        """One that tells the backbone of every image what it was told when it made it.

        That is the prompt or the class of the image, and nothing where the harvest had neither.

        Args:
            made: its images, in their order, are those of the lesson.
            backbone: that made them; is moved.

        Raises:
            OptionError: the backbone does not know what the harvest asks.
        """
        config = made.description["config"]
        backbone.to(device, dtype)
        return cls(backbone, partial(conditions, backbone, config["prompts"], config["seed"]))

    def conditions(self, rows: Sequence[int]) -> Condition:
        """The condition of these images; all experts see the same ones at a step."""
        key = tuple(rows)
        if self._last is None or self._last[0] != key:
            with torch.no_grad():
                self._last = key, self._conditions(key)
        return self._last[1]

    def states(self, lesson: Lesson) -> Callable[[Tensor], Tensor]:
        """The clean states of the backbone, of some images of a lesson.

        Raises:
            OptionError: the lesson has none of this backbone.
        """
        latents = lesson.latents
        if not self.backbone.latent:
            return lesson.images
        if latents is None or tuple(latents.shape[1:]) != tuple(self.backbone.state_shape):
            raise OptionError(
                f"The backbone {self.backbone.name!r} denoises latents, and the lesson has none of "
                "it to predict from.",
                remedy="Make a new harvest with this backbone, or use --view noised.",
            )
        return lambda rows: latents[rows]

    @torch.no_grad()
    def __call__(
        self, x0: Float[Tensor, "b ..."], noise: Tensor, level: NoiseLevel, condition: Condition
    ) -> Float[Tensor, "b 3 h w"]:
        """The prediction for each image, as RGB in about [-1, 1].

        Args:
            x0: clean states of the backbone: RGB in [-1, 1], or latents.
            noise: standard normal, of their shape.
            level: of all of them; alpha is not zero.
            condition: one row an image, or one for all.
        """
        x = (level.alpha * x0 + level.sigma * noise).to(self.backbone.state_dtype)
        eps = self.backbone.predict(x, level, repeat_condition(condition, len(x))).eps
        predicted = (x - level.sigma * eps) / level.alpha
        if self.backbone.clip is not None:
            predicted = predicted.clamp(*self.backbone.clip)
        return self.backbone.decode(predicted).to(x0)


class _Noised:
    """What the student of one range is shown: noised images; the same draw for the same key."""

    def __init__(
        self, levels: Sequence[NoiseLevel], part: NoiseRange, seeds: tuple[int, int]
    ) -> None:
        own = [level for level in levels if level.log_snr in part]
        if not own:
            raise OptionError(
                f"The backbone has no noise level in [{part.low:.2f}, {part.high:.2f}).",
                remedy="Use fewer experts.",
            )
        self._levels = own
        self._alpha = torch.tensor([level.alpha / level.scale for level in own])
        self._sigma = torch.tensor([level.sigma / level.scale for level in own])
        self._seeds = seeds

    def _generator(self, key: tuple[int, ...]) -> torch.Generator:
        return generator(derived("tuning", *self._seeds, *key))

    def __call__(
        self, x0: Tensor, rows: Tensor, key: tuple[int, ...], share: slice = slice(None)
    ) -> Tensor:
        """x_t / sqrt(alpha^2 + sigma^2), every image at a level of its own.

        Args:
            x0: a batch, [b, 3, h, w]. It is drawn for as a whole, so that no draw depends on the
                share.
            rows: which images of the lesson these are.
            share: of the batch that is wanted.
        """
        drawn = self._generator(key)
        picks = torch.randint(len(self._alpha), (len(x0),), generator=drawn)
        noise = torch.randn(x0.shape, generator=drawn)
        alpha, sigma = (v[picks].view(-1, 1, 1, 1).to(x0) for v in (self._alpha, self._sigma))
        return (alpha * x0 + sigma * noise.to(x0))[share]


class _Predicted(_Noised):
    """The same for clean images predicted from the noised ones.

    A backbone is evaluated at one level at a time. So that a batch does not fall apart into single
    images, it has a few levels only, one from each of as many equal parts of the range.
    """

    def __init__(
        self,
        levels: Sequence[NoiseLevel],
        part: NoiseRange,
        seeds: tuple[int, int],
        predictor: Predictor,
    ) -> None:
        # Nothing can be predicted where no image is left, as at the end of some schedules.
        super().__init__([level for level in levels if level.alpha], part, seeds)
        self._predictor = predictor
        self._kept: dict[tuple[int, ...], Tensor] = {}

    def __call__(
        self, x0: Tensor, rows: Tensor, key: tuple[int, ...], share: slice = slice(None)
    ) -> Tensor:
        """Predicted x_0, images of neighbouring places in the batch at the same level."""
        if key in self._kept:
            return self._kept[key][share].to(x0)
        drawn, count = self._generator(key), len(x0)
        parts = min(_LEVELS_AT_ONCE, count)
        at = (torch.arange(parts) + torch.rand(parts, generator=drawn)) / parts
        picks = (at * len(self._levels)).long().clamp_max(len(self._levels) - 1)
        noise = torch.randn(x0.shape, generator=drawn).to(x0)
        mine = torch.arange(count)[share]
        group = mine * parts // count
        condition = self._predictor.conditions(rows[mine].tolist())
        shown: Tensor | None = None
        for k in group.unique().tolist():
            here = (group == k).nonzero().flatten()
            own = {n: r if len(r) == 1 else r[here.to(r.device)] for n, r in condition.items()}
            level = self._levels[int(picks[k])]
            batch = mine[here]
            predicted = self._predictor(x0[batch], noise[batch], level, own)
            if shown is None:
                shown = predicted.new_empty(len(mine), *predicted.shape[1:])
            shown[here] = predicted
        if shown is None:  # more processes than images
            return x0[:0]
        if key[0] == _CHECK and len(mine) == count:
            # Asked for again at every measurement, and each as costly as one to train on.
            self._kept[key] = shown.cpu()
        return shown


_TRAIN, _CHECK, _STATISTICS = 0, 1, 2


class Tuning:
    """A tuning under way: all experts of one guide, from one pass over the lesson.

    Running statistics of normalisation layers are re-estimated for each range before training and
    stay fixed (:func:`ppap_host.experts.patches.estimate_statistics`).

    With a ``predictor`` experts are shown its predictions instead of noised images, and keep the
    network's own statistics.
    """

    def __init__(
        self,
        guide: Guide,
        lesson: Lesson,
        levels: Sequence[NoiseLevel],
        config: TuningConfig,
        accelerator: Accelerator | None = None,
        predictor: Predictor | None = None,
    ) -> None:
        self.steps = guide.tuning_steps if config.steps is None else config.steps
        config = dataclasses.replace(config, steps=self.steps)
        self.guide, self.lesson, self.config = guide, lesson, config
        self.accelerator, self.predictor = accelerator, predictor
        self._clean = lesson.images if predictor is None else predictor.states(lesson)
        self.ranges = uniform_ranges(levels, config.experts)
        network = guide.network()
        network.requires_grad_(False)
        self.device = next((p.device for p in network.parameters()), torch.device("cpu"))
        held = max(1, round(config.held_out * len(lesson)))
        if held >= len(lesson):
            raise OptionError(
                f"{len(lesson)} images leave nothing to train on.", remedy="Harvest more images."
            )
        order = np.random.default_rng(derived("held out", config.seed)).permutation(len(lesson))
        self.held = torch.from_numpy(np.sort(order[:held]))[:_CHECK_IMAGES]
        self.train = torch.from_numpy(np.sort(order[held:]))
        seeds = [(config.seed, i) for i in range(config.experts)]
        self.shown = [
            _Noised(levels, part, own)
            if predictor is None
            else _Predicted(levels, part, own, predictor)
            for part, own in zip(self.ranges, seeds, strict=True)
        ]
        self.patches = [self._fresh(network, i) for i in range(config.experts)]
        trained = [patch.trainable() for patch in self.patches]
        for tensors in trained:
            for tensor in tensors:
                tensor.requires_grad_(True)
        self.optimiser = torch.optim.AdamW(
            [{"params": tensors} for tensors in trained],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        n = config.experts
        self.step = 0
        self.losses = [math.nan] * n
        self.left_out = [0] * n  # steps of this process that were not finite
        self.finished, self.waited = [False] * n, [0] * n
        self.best: list[float] = [math.inf] * n
        self.best_values: list[list[Tensor]] = [[] for _ in range(n)]
        self.history: list[dict[str, Any]] = []
        self.off_the_shelf: list[float] = []
        self.fingerprint = json.dumps(
            {
                "config": dataclasses.asdict(config),
                "lesson": lesson.identity,
                "guide": guide.name,
                "network": network_hash(network),
                # Tunings on noised images go on from states that know no view.
                **({} if predictor is None else {"predicted by": predictor.backbone.name}),
            },
            sort_keys=True,
        )

    def _fresh(self, network: nn.Module, i: int) -> Patch:
        config = self.config
        patch = fresh_patch(self.guide, config, word(derived("factors", config.seed, i)))
        if self.predictor is not None:
            # Predictions are nearly the images that the network's own statistics are of: with these
            # an expert begins as the plain network, and can only gain on the held-out part.
            return patch
        count = min(_STATISTICS_BATCHES, -(-len(self.train) // config.batch))
        estimate_statistics(network, patch, self._for_statistics(i, count))
        return patch

    def _for_statistics(self, i: int, count: int) -> Iterator[Tensor]:
        for k in range(count):
            rows = self._rows(k)
            x = self.shown[i](self._images(rows), rows, (_STATISTICS, k))
            prepared = self.guide.prepare(x)
            own = next((p.dtype for p in self.guide.network().parameters()), prepared.dtype)
            yield prepared.to(own)

    def _rows(self, step: int) -> Tensor:
        """The images of a step: every one once before any comes again."""
        per_pass = max(1, len(self.train) // self.config.batch)
        epoch, place = divmod(step, per_pass)
        drawn = np.random.default_rng(derived("batches", self.config.seed, epoch))
        order = drawn.permutation(len(self.train))
        start = place * self.config.batch
        return self.train[torch.from_numpy(order[start : start + self.config.batch])]

    def _images(self, rows: Tensor) -> Tensor:
        return self._clean(rows).to(self.device)

    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.step >= self.steps or all(self.finished)

    def advance(self) -> None:
        """One optimiser step of every expert that is not finished."""
        config = self.config
        warm = max(1, round(0.05 * self.steps))
        share = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        rate = config.learning_rate * min(1.0, (self.step + 1) / warm) * share
        rows = self._rows(self.step)
        x0, teacher = self._images(rows), self.lesson.teacher[rows].to(self.device)
        process, processes = 0, 1
        if self.accelerator is not None:
            process, processes = self.accelerator.process_index, self.accelerator.num_processes
        for i, patch in enumerate(self.patches):
            group = self.optimiser.param_groups[i]
            group["lr"] = 0.0 if self.finished[i] else rate
            if self.finished[i]:
                continue
            x = self.shown[i](x0, rows, (_TRAIN, self.step), slice(process, None, processes))
            student = see_through(self.guide, patch, x)
            loss = self.guide.distance(student, teacher[process::processes]).sum() / len(rows)
            loss.backward()
            value = self._shared([*_gradients(group["params"]), loss.detach()])
            if math.isfinite(value):
                nn.utils.clip_grad_norm_(group["params"], 1.0)
                before = self.losses[i]
                self.losses[i] = value if math.isnan(before) else before + 0.05 * (value - before)
            else:
                self.left_out[i] += 1
                for parameter in group["params"]:
                    parameter.grad = None
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1

    def _shared(self, parts: list[Tensor]) -> float:
        """Sums gradients and loss over all processes, in place; the loss. NaN if any is not
        finite."""
        if self.accelerator is not None and self.accelerator.num_processes > 1:
            flat = self.accelerator.reduce(torch.cat([p.flatten() for p in parts]), "sum")
            start = 0
            for part in parts:
                part.copy_(flat[start : start + part.numel()].view_as(part))
                start += part.numel()
        finite = all(bool(part.isfinite().all()) for part in parts)
        return float(parts[-1]) if finite else math.nan

    @torch.no_grad()
    def distances(self, i: int, patch: Patch | None) -> list[float]:
        """Distance to the teacher of every held-out image, at a level within range ``i``.

        Args:
            patch: the expert, None for the network as it is.
        """
        values = []
        for k, rows in enumerate(self.held.split(50)):
            x = self.shown[i](self._images(rows), rows, (_CHECK, k))
            output = see_through(self.guide, patch, x)
            values += self.guide.distance(output, self.lesson.teacher[rows].to(x)).tolist()
        return values

    @torch.no_grad()
    def measures(self, i: int, patch: Patch | None) -> dict[str, float]:
        """The guide's own measures against what the teacher sees, means over the held-out part."""
        columns: dict[str, list[float]] = {}
        for k, rows in enumerate(self.held.split(50)):
            x = self.shown[i](self._images(rows), rows, (_CHECK, k))
            output = see_through(self.guide, patch, x)
            target = self.guide.as_target(self.lesson.teacher[rows].to(x))
            for name, values in self.guide.measure(output, target).items():
                columns.setdefault(name, []).extend(values)
        return {name: float(np.nanmean(values)) for name, values in columns.items()}

    def check(self) -> None:
        """Measures every expert on the held-out part and keeps its best state.

        Raises:
            CheckpointError: what the network itself says there is not finite.
        """
        n = self.config.experts
        if not self.off_the_shelf:
            self.off_the_shelf = [float(np.mean(self.distances(i, None))) for i in range(n)]
            for part, distance in zip(self.ranges, self.off_the_shelf, strict=True):
                if not math.isfinite(distance):
                    raise CheckpointError(
                        f"How far the guide {self.guide.name!r} is from its teacher at log-SNR "
                        f"{part.low:.2f} to {part.high:.2f} is not finite.",
                        remedy="Use --dtype float32, or name another network with --model.",
                    )
        found = []
        for i, patch in enumerate(self.patches):
            if self.finished[i]:
                found.append(self.history[-1]["held_out"][i])
                continue
            value = float(np.mean(self.distances(i, patch)))
            found.append(value)
            self.waited[i] = 0 if value < 0.999 * self.best[i] else self.waited[i] + 1
            if value < self.best[i]:
                self.best[i] = value
                self.best_values[i] = [t.detach().clone() for t in patch.trainable()]
            self.finished[i] = self.waited[i] >= self.config.patience
        # Not NaN, which is no JSON: nothing has been learnt before the first step.
        losses = [None if math.isnan(loss) else loss for loss in self.losses]
        self.history.append({"step": self.step, "loss": losses, "held_out": found})

    def progress(self, seconds: float) -> Progress:
        """What there is to tell."""
        last = self.history[-1]["held_out"] if self.history else [math.nan] * len(self.ranges)
        return Progress(
            self.step, self.steps, self.ranges, list(self.losses), last,
            list(self.off_the_shelf), list(self.finished), self.history, seconds,
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Writes everything that is needed to go on: tensors, and the rest beside them as JSON.

        Raises:
            OutputError: it cannot be written.
        """
        told = {name: getattr(self, name) for name in _Told.model_fields}
        tensors = {name: t.detach().cpu().contiguous() for name, t in self._tensors().items()}
        header = {"tuning": json_text(told, None), "sha256": digest_of(tensors)}
        write_file(path, save(tensors, header))

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors of a state by name; those of the optimiser only once it has some."""
        found = {}
        for i, patch in enumerate(self.patches):
            for k, tensor in enumerate(patch.trainable()):
                found[f"{i}.{k}.value"] = tensor
                if self.best_values[i]:
                    found[f"{i}.{k}.best"] = self.best_values[i][k]
                for name, value in self.optimiser.state[tensor].items():
                    found[f"{i}.{k}.optimiser.{name}"] = value
        return found

    def restore(self, path: Path) -> None:
        """Goes on from a saved state.

        Raises:
            OptionError: it belongs to a tuning with other settings.
            CheckpointError: it is damaged.
        """
        require_regular(path, CheckpointError, _STATE.remedy)
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, RuntimeError, SafetensorError) as error:
            raise _STATE.fail(str(path), str(error)) from None
        told = _STATE.parse(header.get("tuning", ""), _Told, str(path))
        if told.fingerprint != self.fingerprint:
            raise OptionError(
                f"{str(path)!r} belongs to a tuning with other settings, images or network.",
                remedy="Give the same settings to go on with it, or another folder with --out.",
            )
        lists = (told.losses, told.finished, told.waited, told.best)
        if {len(values) for values in lists} != {len(self.patches)}:
            raise _STATE.fail(str(path), f"it is not of {len(self.patches)} experts")
        if header.get("sha256") != digest_of(tensors):
            raise _STATE.fail(str(path), "its tensors are others than were written")
        self._take(tensors, str(path))
        self.step, self.history = told.step, [row.model_dump() for row in told.history]
        self.finished, self.waited = told.finished, told.waited
        self.losses = [math.nan if loss is None else loss for loss in told.losses]
        self.best = [math.inf if value is None else value for value in told.best]
        self.off_the_shelf = told.off_the_shelf

    def _take(self, tensors: dict[str, Tensor], source: str) -> None:
        """Puts the tensors of a state where they belong."""
        left = set(tensors)

        def taken(name: str, like: Tensor | None) -> Tensor | None:
            found = tensors.get(name)
            if found is None:
                return None
            if like is not None and found.shape != like.shape:
                raise _STATE.fail(source, f"{name!r} has another shape")
            left.discard(name)
            return found.to(self.device)

        for i, patch in enumerate(self.patches):
            best = []
            for k, tensor in enumerate(patch.trainable()):
                value = taken(f"{i}.{k}.value", tensor)
                if value is None:
                    raise _STATE.fail(source, f"{f'{i}.{k}.value'!r} is missing")
                with torch.no_grad():
                    tensor.copy_(value)
                kept = taken(f"{i}.{k}.best", tensor)
                best += [] if kept is None else [kept]
                for name, like in (("step", None), ("exp_avg", tensor), ("exp_avg_sq", tensor)):
                    found = taken(f"{i}.{k}.optimiser.{name}", like)
                    if found is not None:
                        # AdamW keeps its counters on the CPU.
                        self.optimiser.state[tensor][name] = (
                            found if like is not None else found.cpu()
                        )
            if best and len(best) != len(patch.trainable()):
                raise _STATE.fail(source, f"of the best state of expert {i} some is missing")
            self.best_values[i] = best
        if left:
            raise _STATE.fail(source, f"it holds {min(left)!r}")

    def result(self) -> ExpertSet:
        """The experts in their best states, with what is known of them."""
        with torch.no_grad():
            for patch, values in zip(self.patches, self.best_values, strict=True):
                for tensor, value in zip(patch.trainable(), values, strict=True):
                    tensor.copy_(value)
                    tensor.requires_grad_(False)
        network = self.guide.network()
        quality = []
        for i, patch in enumerate(self.patches):
            row: dict[str, Any] = {"range": [str(self.ranges[i].low), str(self.ranges[i].high)]}
            for name, who in (("expert", patch), ("off_the_shelf", None)):
                found = np.array(self.distances(i, who))
                row[name] = {
                    "distance": round(float(found.mean()), 6),
                    "standard_error": round(float(found.std() / math.sqrt(len(found))), 6),
                    **{k: round(v, 4) for k, v in self.measures(i, who).items()},
                }
            quality.append(row)
        plan = self.guide.patch_plan(network)
        metadata = {
            "guide": self.guide.name,
            "network_sha256": network_hash(network),
            "image_size": list(self.lesson.pixels.shape[-2:]),
            **({} if self.predictor is None else {"view": "predicted"}),
            "method": self.config.method,
            "rank": None if self.config.method == "full" else self.config.rank or plan.rank,
            "tuning": dataclasses.asdict(self.config)
            | {"lr": self.config.learning_rate, "steps_done": self.step},
            "harvest": self.lesson.identity,
            "quality": quality,
            "trainable": {
                "per_expert": self.patches[0].count(),
                "total": sum(p.count() for p in self.patches),
                "network": sum(p.numel() for p in network.parameters()),
            },
        }
        return ExpertSet(self.ranges, self.patches, metadata)


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    for parameter in parameters:
        if parameter.grad is None:  # a layer that the output does not depend on
            parameter.grad = torch.zeros_like(parameter)
    return [p.grad for p in parameters if p.grad is not None]


def tune(
    guide: Guide,
    lesson: Lesson,
    levels: Sequence[NoiseLevel],
    config: TuningConfig,
    work: Path | None = None,
    watch: Callable[[str, int, int], None] | None = None,
    *,
    report: Callable[[Progress], None] | None = None,
    accelerator: Accelerator | None = None,
    save_every: float = 30.0,
    predictor: Predictor | None = None,
) -> ExpertSet:
    """Tunes the experts of a guide.

    Args:
        guide: on the device where it is to happen.
        lesson: images and teacher outputs.
        levels: the backbone's noise levels, cleanest first (:meth:`Backbone.levels`).
        work: a folder for the state, :data:`STATE`, from which the same call goes on; it is left
            there at the end, for the caller to remove once the experts are saved. None keeps none.
        watch: told of progress: (what, done, total).
        report: told more, after every measurement on the held-out part.
        accelerator: of the processes that share each batch.
        save_every: seconds between saved states; Ctrl-C saves one more.
        predictor: shows the experts the clean images that a backbone predicts, instead of noised
            ones; ``levels`` are that backbone's. The set is then one for such images
            (:attr:`~ppap_host.experts.sets.ExpertSet.view`).

    Raises:
        OptionError: ``work`` belongs to another tuning, or the settings make no sense.
        OutputError: the state cannot be written, or another job is at work in ``work``.
    """
    main = accelerator is None or accelerator.is_main_process
    # Two tunings at once would each save a state over the other's.
    with Job(work) if work is not None and main else nullcontext():
        began = time.monotonic()
        tuning = Tuning(guide, lesson, levels, config, accelerator, predictor)
        return _tuned(tuning, began, work, watch, report, save_every)


def _tuned(
    tuning: Tuning,
    began: float,
    work: Path | None,
    watch: Callable[[str, int, int], None] | None,
    report: Callable[[Progress], None] | None,
    save_every: float,
) -> ExpertSet:
    config, accelerator = tuning.config, tuning.accelerator
    what = f"tuning {config.experts} experts of {tuning.guide.name}"
    state = None if work is None else work / STATE
    main = accelerator is None or accelerator.is_main_process
    if state is not None and os.path.lexists(state):
        tuning.restore(state)

    def tell() -> None:
        if report is not None:
            report(tuning.progress(time.monotonic() - began))

    if tuning.history:
        tell()
    saved = time.monotonic()
    try:
        while not tuning.done():
            if not tuning.history:
                with _in_one_piece():
                    tuning.check()
                tell()
            with _in_one_piece():
                tuning.advance()
                checked = tuning.step % config.check_every == 0 or tuning.step == tuning.steps
                if checked:
                    tuning.check()
            if watch is not None:
                watch(what, tuning.step, tuning.steps)
            if checked:
                tell()
            if state is not None and main and time.monotonic() - saved > save_every:
                tuning.save(state)
                saved = time.monotonic()
    except KeyboardInterrupt:
        if state is not None and main:
            tuning.save(state)
        raise
    if state is not None and main:
        tuning.save(state)
    for part, count in zip(tuning.ranges, tuning.left_out, strict=True):
        if count and main:
            warnings.warn(
                f"{count} of {tuning.steps} steps of the expert for log-SNR {part.low:.2f} to "
                f"{part.high:.2f} taught it nothing, because they were not finite: --dtype float32 "
                "or a smaller --lr may help.",
                GuidanceWarning,
                stacklevel=3,
            )
    return tuning.result()


@contextmanager
def _in_one_piece() -> Iterator[None]:
    """Holds signals back until the end: what is between two steps could not be gone on with."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    before = {
        number: handler
        for name in names
        if (number := getattr(signal, name, None)) is not None
        and callable(handler := signal.getsignal(number))
    }
    for number in before:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        before[signal.Signals(came[0])](came[0], None)
