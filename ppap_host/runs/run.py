"""One run: from a configuration to pictures with their measures, a contact sheet and a record."""

# Long because a run, its result and its record are one thing.
from __future__ import annotations

import io
import platform
import reprlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ppap_host.files import images
from ppap_host.files.errors import OptionError, OutputError, SamplingError
from ppap_host.files.hashes import package_versions, sha256_bytes, sha256_pixels
from ppap_host.files.previews import (
    array_bytes,
    as_written,
    is_image,
    is_saturated,
    of_saturated,
    previews,
)
from ppap_host.guides.sight import fitting
from ppap_host.guides.targets import Given
from ppap_host.runs.batches import NOT_FINITE, batch_of
from ppap_host.runs.config import RunConfig, new_record
from ppap_host.runs.folder import RunFolder
from ppap_host.runs.own import Batch, made_by
from ppap_host.runs.setup import Setup, model_files, set_up
from ppap_host.runs.sheet import Kept, Shown, sheet_of
from ppap_host.sampling.evaluator import Health
from ppap_host.sampling.loop import Event

Watch = Callable[[str, int, int], None]
"""Told of progress: (what is being done, done so far, in all)."""

Begun = Callable[[Mapping[str, Any]], None]
"""Told of the record when all is loaded and understood, before the first step."""


TOO_STRONG = 10.0
"""How many times its usual strength a guide may have before a run warns of it."""


class Stopwatch:
    """Wall time by part, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to ``name``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 3)


@dataclass
class Result:
    """What a run has made so far; it shows itself in a notebook.

    Attributes:
        record: as in ``run.json``.
        folder: where it was written, None while it is in memory alone.
    """

    record: dict[str, Any] = field(repr=False)
    folder: Path | None = None
    _pictures: list[Image.Image] = field(default_factory=list, repr=False)
    _tensors: list[Tensor] = field(default_factory=list, repr=False)
    _shown: Shown = field(default_factory=Shown, repr=False)

    def __len__(self) -> int:
        return len(self.record["images"])

    def __repr__(self) -> str:
        where = "in memory" if self.folder is None else str(self.folder)
        return f"<Result: {self.record['status']}, images: {len(self)}, {where}>"

    @property
    def images(self) -> list[Image.Image]:
        """The finished pictures in the order of their index, 8-bit RGB.

        Of what is no image, previews for people: frames of a video, the course of a sound.
        """
        if self.folder is None:
            return list(self._pictures)
        found = []
        for entry in self.record["images"]:
            with Image.open(self.folder / entry["file"]) as picture:
                found.append(picture.convert("RGB"))
        return found

    @property
    def tensor(self) -> Tensor:
        """RGB in [-1, 1], float32 [n, 3, h, w] on the CPU; of a run in a folder that of 8 bits.

        Of what is no image, the samples as they were made, float32 [n, ...].
        """
        if self.folder is None and self._tensors:
            return torch.stack(self._tensors)
        if self.folder is not None and self.record["images"] and "data" in self.record["images"][0]:
            names = [entry["data"] for entry in self.record["images"]]
            rows = [np.load(self.folder / name, allow_pickle=False) for name in names]
            return torch.from_numpy(np.stack(rows))
        made = [images.to_tensor(picture) for picture in self.images]
        return torch.cat(made) if made else torch.empty(0, 3, 0, 0)

    @property
    def measures(self) -> list[dict[str, dict[str, float]]]:
        """Of each picture: guide -> measure -> value."""
        return [entry["measures"] for entry in self.record["images"]]

    @property
    def warnings(self) -> list[str]:
        """What one should know of, a sentence each."""
        return list(self.record["warnings"])

    def sheet(self) -> Image.Image:
        """Targets, results and what the guides see in them, on one picture.

        A long run shows its first images and says so.
        """
        return sheet_of(self._shown, self.record)

    def save(self, out: str | Path) -> Result:
        """Writes images, targets, sheet and record to a folder, as ``ppap run`` does.

        Args:
            out: a new folder, or one without a record.

        Raises:
            OutputError: it cannot be written, or the run is in a folder already.
        """
        if self.folder is not None:
            raise OutputError(
                f"The run is in {str(self.folder)!r} already.", remedy="Copy that folder."
            )
        folder = RunFolder(out)
        _keep_targets(self.record, self._shown, folder)
        folder.write_images(self.record, self.record["images"], self._pictures)
        folder.write_data(self.record["images"], self._tensors)
        folder.write_sheet(self.record, self.sheet())
        folder.write_record(self.record)
        folder.close()
        self.folder = folder.path
        return self

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.sheet().save(buffer, "PNG")
        return buffer.getvalue()


def _copied(several: Any) -> Any:
    """Lists, perhaps by name, that no longer grow."""
    if isinstance(several, dict):
        return {name: list(those) for name, those in several.items()}
    return list(several)


class Run:
    """A run over loaded things: the stream of its events, and what they have made so far.

    Iterating makes the images. The loop may be left early: what is not finished is given up, and
    :meth:`result` gives the rest.

    Args:
        setup: everything loaded.
        out: a folder to write each batch to as it ends; None keeps everything in memory.
        watch: told of progress.
        keep_gradients: whether events hold the guides' gradients.
        clock: that has measured the loading.
    """

    def __init__(
        self,
        setup: Setup,
        out: RunFolder | None = None,
        watch: Watch | None = None,
        *,
        keep_gradients: bool = False,
        clock: Stopwatch | None = None,
    ) -> None:
        if watch is not None and not callable(watch):
            raise OptionError(
                f"{reprlib.repr(watch)} stands where a function is to be told of progress.",
                remedy="Give watch=f with f(what, done, total), or leave it out.",
            )
        self.setup, self.health, self.clock = setup, Health(), clock or Stopwatch()
        self._watch = watch or (lambda what, done, total: None)
        self._folder, self._keep_gradients = out, keep_gradients
        self._shown = Shown()
        record = new_record(setup.decided())
        self._result = Result(record, None, _shown=self._shown)
        with self.clock.part("hash"):
            record |= _described(setup)
            self._shown.targets = _kept(setup)
        with self.clock.part("measure"):
            record["target_measures"] = _of_targets(setup)
        with self.clock.part("hash"):
            record["targets"] = [kept.row for kept in self._shown.targets]
            record["warnings"] = _doubts(setup)
            if out is not None:
                _keep_targets(record, self._shown, out)
                self._result.folder = out.path
                self._write_record()
        self._rounds = 2 if setup.config.unguided and setup.guides else 1
        self._done = 0
        self._losses: dict[str, list[tuple[float, float]]] = {}
        self._events = self._make()

    @property
    def record(self) -> dict[str, Any]:
        """As in ``run.json``."""
        return self._result.record

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """Gives up what is not finished."""
        self._events.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        done, record = len(self._result), self.record
        return f"<Run: {record['status']}, {done} of {self.setup.config.num} images made>"

    def result(self) -> Result:
        """What is finished so far; images that are made later are not in it."""
        if self.record["status"] != "running":
            return self._result
        made, shown = self._result, self._shown
        return Result(
            deepcopy(made.record) | {"status": "interrupted"}, made.folder, list(made._pictures),
            list(made._tensors),
            Shown(**{f.name: _copied(getattr(shown, f.name)) for f in fields(shown)}),
        )  # fmt: skip

    def finish(self) -> Result:
        """Makes what is left, and returns all of it.

        Raises:
            SamplingError: no image could be made.
        """
        for _ in self:
            pass
        failed = self.record["failed"]
        if failed and not self.record["images"]:
            first, reason = next(iter(failed.items()))
            raise SamplingError(
                f"No image could be made: of image {first}, {reason}.", remedy=NOT_FINITE
            )
        return self._result

    def _make(self) -> Generator[Event, None, None]:
        config, record = self.setup.config, self.record
        try:
            # A population's particles are rows of a batch: no more of them at a time than images.
            size = max(1, (config.batch or 1) // self.setup.particles)
            for first in range(0, config.num, size):
                indices = list(range(first, min(first + size, config.num)))
                with self.clock.part("sample"):
                    batch = yield from self._batch(indices, guided=True)
                    plain = None
                    if self._rounds == 2:
                        plain = made_by(self._batch(indices, guided=False))
                self._finish(batch, plain)
            with self.clock.part("write"):
                if self._folder is not None:
                    self._folder.write_sheet(record, self._result.sheet())
            record["status"] = "failed" if record["failed"] else "complete"
        except (KeyboardInterrupt, GeneratorExit):
            record["status"] = "interrupted"
            raise
        except BaseException:
            record["status"] = "failed"
            raise
        finally:
            record["seconds"] = dict(self.clock.seconds)
            if self._folder is not None:
                # A second failure here (a disk that is full) must not hide the first.
                if record["images"] and not (self._folder.path / "sheet.png").exists():
                    with suppress(Exception):
                        self._folder.write_sheet(record, self._result.sheet())
                if (self._folder.path / "run.json").exists():
                    with suppress(OutputError):
                        self._write_record()
                self._folder.close()

    def _batch(self, indices: list[int], guided: bool) -> Generator[Event, None, Batch]:
        """The events of a batch; its images are the generator's value."""
        total = self._rounds * self.setup.steps * self.setup.config.num
        making = batch_of(
            self.setup, indices, self.health, guided=guided, keep_gradients=self._keep_gradients
        )
        while True:
            try:
                event = next(making)
            except StopIteration as end:
                batch: Batch = end.value
                return batch
            self._done += len(indices)
            self._watch("sampling" if guided else "sampling without guides", self._done, total)
            yield event

    def _finish(self, batch: Batch, plain: Batch | None) -> None:
        """Measures the images of a batch, keeps or writes them, and updates the record."""
        record, setup = self.record, self.setup
        rows = [i for i, k in enumerate(batch.indices) if k not in batch.failed]
        record["failed"] |= {str(k): reason for k, reason in batch.failed.items()}
        indices, x = [batch.indices[i] for i in rows], batch.x[rows]
        makes = "video" if batch.fps else setup.stages[-1].backbone.makes
        x = as_written(x, makes)
        pictures = previews(x, makes)
        image = is_image(tuple(x.shape[1:]), makes)
        with self.clock.part("measure"):
            measures, views, losses = _measured(setup, indices, x, batch.looked_at)
            entries: list[dict[str, Any]] = []
            for k, picture, sample, row in zip(indices, pictures, x, measures, strict=True):
                of_data: dict[str, Any] = {} if image else {"data": f"{k:05d}.npy"}
                if batch.fps:
                    of_data |= {"video": f"{k:05d}.webp", "fps": batch.fps}
                digest = sha256_pixels(picture) if image else sha256_bytes(array_bytes(sample))
                entries.append({
                    "index": k, "file": f"{k:05d}.png", **of_data, "pixels_sha256": digest,
                    "measures": row,
                })  # fmt: skip
            plainly: list[Image.Image] = []
            if plain is not None:
                unwritten = as_written(plain.x[rows], makes)
                plainly = previews(unwritten, makes)
                unguided, _, before = _measured(setup, indices, unwritten, batch.looked_at)
                for name, after in losses.items():
                    both = zip(after, before[name], strict=True)
                    self._losses.setdefault(name, []).extend(both)
                for entry, row in zip(entries, unguided, strict=True):
                    entry["unguided"] = row
        with self.clock.part("write"):
            values = {
                g.name: [row[g.name]["value"] for row in measures]
                for g in setup.guides
                if g.guide.rewards and all("value" in row[g.name] for row in measures)
            }
            self._shown.add(indices, pictures, views, plainly, values)
            if self._folder is not None:
                self._folder.write_images(record, entries, pictures)
                self._folder.write_data(entries, list(x))
            else:
                self._result._pictures += pictures
                made = images.in_rgb(batch.x[rows]).clamp(-1, 1) if image else x
                self._result._tensors += list(made.cpu())
            record["images"] += entries
            record["skipped_guidance"] = dict(self.health.skipped)
            record["limited_guidance"] = dict(self.health.limited)
            record["images_per_gradient"] = dict(self.health.at_once)
            saturated = [is_saturated(np.asarray(p)) for p in pictures] if image else []
            self._shown.saturated += [k for k, s in zip(indices, saturated, strict=False) if s]
            record["warnings"] = [
                *_doubts(setup), *self.health.warnings(), *_too_strong(setup, self.health),
                *_of_conflict(self._losses), *_of_latents(setup),
                *of_saturated(self._shown.saturated), *_of_failed(record["failed"]),
            ]  # fmt: skip
            record["seconds"] = dict(self.clock.seconds)
            if self._folder is not None:
                self._write_record()

    def _write_record(self) -> None:
        assert self._folder is not None
        self.record["seconds"] = dict(self.clock.seconds)
        self._folder.write_record(self.record)


def run(
    config: RunConfig,
    out: str | Path,
    watch: Watch | None = None,
    moved: Mapping[str, str] | None = None,
    begun: Begun | None = None,
) -> Result:
    """Makes the images of ``config`` in the folder ``out``.

    The record is written first of all and again after every batch, so that an interrupted run
    leaves finished images and a valid record that says it was interrupted.

    Args:
        out: a new folder, or one without a record.
        watch: told of progress.
        moved: as for :func:`~ppap_host.runs.setup.set_up`.
        begun: told of the record before the first step.

    Raises:
        PpapError: bad input, or the folder cannot be written.
        SamplingError: no image could be made.
        KeyboardInterrupt: passed on after the record is written.
    """
    folder, clock = RunFolder(out), Stopwatch()
    record = new_record(config)
    try:
        folder.write_record(record)
        with clock.part("load"):
            if watch is not None:
                watch("loading models", 0, 1)
            setup = set_up(config, moved)
        going = Run(setup, folder, watch, clock=clock)
    except KeyboardInterrupt:
        folder.write_record(record | {"status": "interrupted"})
        folder.close()
        raise
    except Exception:  # also out of memory: the folder can be used again
        folder.forget()
        raise
    except BaseException:
        folder.write_record(record | {"status": "failed"})
        folder.close()
        raise
    try:
        if begun is not None:
            begun(going.record)
        return going.finish()
    except Exception:
        if not going.record["images"]:
            folder.forget()
        raise


def _described(setup: Setup) -> dict[str, Any]:
    """What the record says of everything that was loaded."""
    device = setup.device
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "given": setup.config.to_dict(),
        "objects": list(setup.objects),
        "used": {
            "device": str(device),
            "cfg": setup.stages[0].cfg,
            "cfg_interval": setup.stages[0].cfg_interval.text,
            "steps": setup.steps,
            "quality": setup.quality,
            "guides": [
                {
                    "name": g.name, "recipe": g.recipe.name, "scale": g.scale,
                    "absolute": g.recipe.absolute,
                    "experts": g.experts, "stage": stage.name,
                }
                for stage in setup.stages
                for g in stage.guides
            ],
        },
        "versions": package_versions(setup.plugins),
        "model_files": model_files(setup),
        "remarks": _remarks(setup),
        "device": named,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def _remarks(setup: Setup) -> list[str]:
    """What had to be chosen or guessed when the models were read."""
    found = [remark for stage in setup.stages for remark in stage.backbone.remarks()]
    found += [remark for active in setup.guides for remark in active.guide.remarks()]
    return list(dict.fromkeys(found))


def _kept(setup: Setup) -> list[Kept]:
    """What decides what is made, to be shown and kept beside the images."""
    found = []
    for i, g in enumerate(setup.guides):
        for j, target in enumerate(g.targets):
            row: dict[str, Any] = {"guide": i, "given": target.text}
            if len(g.targets) > 1:
                row["row"] = j
            row["understood"] = target.understood
            files: list[Path | Given] = list(target.files)
            if target.given is not None and target.given.in_memory:
                row["head"] = target.given.head
                files.append(target.given)
            moved = (target.given.moved if target.given is not None else None) or {}
            found.append(Kept(g.name, row, dict(target.pictures), files, f"{i}-{j}", moved))
    for name, reading in setup.inputs.items():
        row = {"input": name, "given": reading.given.text, "understood": reading.understood}
        files = [reading.given] if reading.given.in_memory else list(reading.files)
        found.append(Kept("", row, {}, files, name, reading.given.moved or {}))
    return found


def _keep_targets(record: dict[str, Any], shown: Shown, folder: RunFolder) -> None:
    """Copies the files of targets into the folder, and notes all targets in the record."""
    record["targets"] = []
    for kept in shown.targets:
        names = [kept.file if n == 0 else f"{kept.file}-{n}" for n in range(len(kept.files))]
        rows = [
            kept.row | _path_as_given(kept, file) | folder.copy_target(file, name)
            for name, file in zip(names, kept.files, strict=True)
        ]
        record["targets"] += rows or [kept.row]


def _path_as_given(kept: Kept, file: Path | Given) -> dict[str, str]:
    """The path under which a file is asked for again, wherever it was read now."""
    if isinstance(file, Given):
        return {}
    was = {now: before for before, now in kept.moved.items()}
    return {"file": was.get(str(file), str(file))}


def _of_targets(setup: Setup) -> dict[str, list[dict[str, float] | None]]:
    """What each guide measures of its own targets, one row a target: None if it is no photograph.

    It says what the measures of a result can be compared with.
    """
    found: dict[str, list[dict[str, float] | None]] = {}
    height, width = setup.stages[-1].backbone.image_size
    for g in setup.guides:
        rows: list[dict[str, float] | None] = []
        for target in g.targets:
            if target.photo is None or target.photo.size != (width, height):
                rows.append(None)
                continue
            with torch.no_grad():
                grey = g.guide.channels == 1
                x = images.to_tensor(target.photo.convert("L") if grey else target.photo)
                output = g.guide.see(x[:, : g.guide.channels].to(setup.device))
                measured = g.guide.measure(output, target.value)
            rows.append({name: round(values[0], 6) for name, values in measured.items()})
        if any(rows):
            found[g.name] = rows
    return found


def _measured(
    setup: Setup, indices: list[int], samples: Tensor, looked_at: Sequence[int]
) -> tuple[list[dict[str, dict[str, float]]], dict[str, list[Image.Image]], dict[str, list[float]]]:
    """Of samples as they are written: each guide's measures, what it sees in them, its losses.

    Args:
        looked_at: of videos whose frames guides are shown one by one, which; their means are told,
            and what is seen in the first of them. Empty for all others.
    """
    rows: list[dict[str, dict[str, float]]] = [{} for _ in indices]
    views: dict[str, list[Image.Image]] = {}
    losses: dict[str, list[float]] = {}
    if not indices:
        return rows, views, losses
    count = max(len(looked_at), 1)
    if looked_at:
        samples = samples[:, :, list(looked_at)].transpose(1, 2).flatten(0, 1)

    def means(values: Sequence[float]) -> list[float]:
        return [sum(values[k : k + count]) / count for k in range(0, len(values), count)]

    for g in setup.guides:
        fit = fitting(g.guide, setup.stages[-1].backbone)
        with torch.no_grad():
            output = g.guide.see(samples if fit is None else fit(samples))
            target = g.target(indices)
            if len(target) > 1:
                target = target.repeat_interleave(count, dim=0)
            measured = {n: means(v) for n, v in g.guide.measure(output, target).items()}
            losses[g.name] = means(g.guide.loss(output, target).tolist())
        for k, row in enumerate(rows):
            row[g.name] = {name: round(values[k], 6) for name, values in measured.items()}
        seen = g.guide.picture(output)
        if seen:
            views[g.name] = seen[::count]
    return rows, views, losses


def _doubts(setup: Setup) -> list[str]:
    """What was not sure of the targets, each once."""
    found = [*setup.doubts]
    found += [doubt for g in setup.guides for target in g.targets for doubt in target.doubts]
    found += [doubt for reading in setup.inputs.values() for doubt in reading.doubts]
    return list(dict.fromkeys(found))


def _of_conflict(losses: Mapping[str, list[tuple[float, float]]]) -> list[str]:
    """Of guides whose images end no nearer to their targets than unguided ones.

    Args:
        losses: of each guide, for each image: guided and unguided.
    """
    means = {
        name: [sum(column) / len(pairs) for column in zip(*pairs, strict=True)]
        for name, pairs in losses.items()
    }
    told = []
    for name, (guided, unguided) in means.items():
        if guided < unguided:
            continue
        others = ", ".join(repr(other) for other in means if other != name)
        told.append(
            f"By the guide {name!r} the images are no better than without guidance (mean loss "
            f"{guided:.3g}, unguided {unguided:.3g})"
            + (
                f": it may contradict {others}. Try targets that go together, a larger --scale for "
                f"{name!r}, or an --interval for each guide."
                if others
                else ". Try another --scale or --recipe."
            )
        )
    return told


def _too_strong(setup: Setup, health: Health) -> list[str]:
    """Of guides far above their usual strength, one sentence each."""
    told = []
    for g in setup.guides:
        usual = g.guide.usual_scale(g.recipe.name)
        if usual > 0 and g.scale >= TOO_STRONG * usual:
            cut, of = health.limited.get(g.name, 0), health.limitable.get(g.name, 0)
            told.append(
                f"--scale {g.scale:g} of the guide {g.name!r} is {g.scale / usual:.0f} times what "
                f"is usual for the recipe {g.recipe.name!r} ({usual:g})"
                + (
                    f"; its gradient was cut to the recipe's limit in {cut} of {of} image-steps."
                    if g.recipe.absolute
                    else "."
                )
            )
    return told


def _of_latents(setup: Setup) -> list[str]:
    """Of experts that are shown noised latents, one sentence each."""
    return [
        f"The experts {g.experts!r} of the guide {g.name!r} were tuned on noised images, "
        f"and the backbone {stage.backbone.name!r} noises latents, which look otherwise when "
        "they are decoded. Compare with --recipe x0 --experts none."
        for stage in setup.stages
        for g in stage.guides
        if stage.backbone.latent and g.experts is not None and g.recipe.sees_noise
    ]


def _of_failed(failed: Mapping[str, str]) -> list[str]:
    return [f"Image {k} could not be made: {reason}. {NOT_FINITE}" for k, reason in failed.items()]
