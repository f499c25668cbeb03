"""One run: from a plain configuration to images, a contact sheet and a record in a folder."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ppap_host import images
from ppap_host.backbone import Backbone, ClassifierFree, Condition, encode
from ppap_host.balance import BALANCES
from ppap_host.config import GuideConfig, RunConfig, new_record
from ppap_host.devices import pick_device, pick_dtype
from ppap_host.errors import OptionError, OutputError, PpapError
from ppap_host.expert_choice import choose
from ppap_host.guide import Guide, Target
from ppap_host.loading import load_backbone, load_guide
from ppap_host.noise import Walk
from ppap_host.recipes import Recipe
from ppap_host.record import (
    file_hashes,
    package_versions,
    sha256_file,
    sha256_pixels,
)
from ppap_host.registry import Kind, Registry, registry
from ppap_host.sampling import (
    Guidance,
    Health,
    ImageNoise,
    Solver,
    StepReport,
    make_solver,
    sample,
)

Watch = Callable[[str, int, int], None]
"""Told of progress: (what is being done, done so far, in all)."""


@dataclass
class ActiveGuide:
    """A guide of this run with what it was asked for."""

    config: GuideConfig
    guide: Guide
    target: Target
    recipe: Recipe
    scale: float
    experts: str | None = None
    expert_files: tuple[Path, ...] = ()


@dataclass
class Setup:
    """Everything loaded and checked before the first step."""

    config: RunConfig
    backbone: Backbone
    guides: list[ActiveGuide]
    walk: Walk
    solver: Solver
    device: torch.device
    cfg: float
    plugins: set[str]


@dataclass
class RunResult:
    """What a run left behind.

    Attributes:
        record: as in ``run.json``.
        folder: where it was written.
        images: the finished pictures in order of their index.
    """

    record: dict[str, Any]
    folder: Path
    images: list[Image.Image] = field(default_factory=list)


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


def set_up(
    config: RunConfig,
    target_files: Mapping[int, str] | None = None,
    found: Registry | None = None,
) -> Setup:
    """Checks a configuration and loads what it names.

    Args:
        target_files: where to read the targets of these guides instead of where the configuration
            says, for repeating a run whose files have moved.
        found: the plugins to choose from; by default those installed.

    Raises:
        PpapError: anything the user can mend; see :mod:`ppap_host.errors`.
    """
    found = registry() if found is None else found
    found.check(config)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    used: list[tuple[Kind, str]] = [("backbone", config.backbone)]
    used += [("guide", g.name) for g in config.guides]
    plugins = {plugin.distribution for kind, name in used for plugin, _ in found.names(kind)[name]}
    backbone = load_backbone(found, config.backbone, config.checkpoint, config.backbone_options)
    walk = backbone.walk(config.steps)
    solver = make_solver(config.sampler, config.eta, backbone)
    conditional = bool(config.prompt) or config.class_index is not None
    if not conditional and config.cfg not in (None, 1.0):
        raise OptionError(
            f"--cfg {config.cfg} strengthens a prompt or a class, and there is none.",
            remedy="Add --prompt or --class, or leave out --cfg.",
        )
    cfg = (config.cfg if config.cfg is not None else backbone.default_cfg) if conditional else 1.0
    _conditions(backbone, config, cfg)  # says early what words or classes it does not know
    backbone.to(device, dtype)
    guides = []
    sources = target_files or {}
    for i, g in enumerate(config.guides):
        guide = load_guide(found, g.name, g.model)
        choice = choose(g, g.recipe or config.recipe, guide, backbone, walk, found)
        guide, recipe = choice.guide, choice.recipe
        guide.to(device, dtype)
        target = guide.read_target(sources.get(i, g.target), backbone.image_size)
        target = replace(target, value=target.value.to(device))
        defaults = guide.default_scale
        scale = g.scale if g.scale is not None else defaults.get(recipe.name, defaults[""])
        guides.append(ActiveGuide(g, guide, target, recipe, scale, choice.experts, choice.files))
    return Setup(config, backbone, guides, walk, solver, device, cfg, plugins)


def _conditions(backbone: Backbone, config: RunConfig, cfg: float) -> tuple[Condition, Condition]:
    """What the images are conditioned on, and the unconditional branch where one is needed."""
    wanted = encode(backbone, [config.prompt], [config.class_index])
    return wanted, wanted if cfg == 1 else encode(backbone, [""], [None])


def generate(
    setup: Setup,
    indices: list[int],
    health: Health,
    watch: Callable[[StepReport], None] | None = None,
) -> torch.Tensor:
    """The images of these indices, RGB in [-1, 1], float32 [b, 3, h, w] on the run's device."""
    backbone, config = setup.backbone, setup.config
    denoise = ClassifierFree(backbone, *_conditions(backbone, config, setup.cfg), setup.cfg)
    guidance = [Guidance(g.guide, g.target.value, g.recipe, g.scale) for g in setup.guides]
    state = sample(
        backbone,
        denoise,
        setup.walk,
        setup.solver,
        ImageNoise(config.seed, indices, backbone.state_shape),
        guidance,
        device=setup.device,
        watch=watch,
        health=health,
        balance=BALANCES[config.balance],
    )
    with torch.no_grad():
        return backbone.decode(state)


def run(
    config: RunConfig,
    out: Path,
    watch: Watch | None = None,
    target_files: Mapping[int, str] | None = None,
) -> RunResult:
    """Makes the images of ``config`` in the folder ``out``.

    The record is written first of all and again after every batch, so that an
    interrupted run leaves finished images and a valid record that says it was interrupted.

    Args:
        out: a new folder, or one without a record.
        watch: told of progress.
        target_files: as for :func:`set_up`.

    Raises:
        PpapError: bad input, or the folder cannot be written.
        KeyboardInterrupt: passed on after the record is written.
    """
    watch = watch or (lambda what, done, total: None)
    clock = Stopwatch()
    created = check_writable(out)
    record = new_record(config)
    result = RunResult(record, out)
    _write_record(result, clock)
    health = Health()
    try:
        with clock.part("load"):
            watch("loading models", 0, 1)
            setup = set_up(config, target_files)
        with clock.part("hash"):
            record |= _describe(setup, out)
            _write_record(result, clock)
        seen: list[list[Image.Image]] = [[] for _ in setup.guides]
        for first in range(0, config.num, config.batch):
            indices = list(range(first, min(first + config.batch, config.num)))

            def on_step(report: StepReport, first: int = first, size: int = len(indices)) -> None:
                steps = first * report.steps + (report.step + 1) * size
                watch("sampling", steps, config.num * report.steps)

            with clock.part("sample"):
                x = generate(setup, indices, health, on_step)
            with clock.part("measure"):
                pictures = images.from_tensor(x)
                rows = _measure(setup, pictures, seen)
            with clock.part("write"):
                _write_images(result, indices, pictures, rows)
                record["skipped_guidance"] = dict(health.skipped)
                _write_record(result, clock)
        with clock.part("write"):
            sheet = _sheet(setup, result.images, seen)
            embedded = _embedded(record) | {"images": record["images"]}
            images.write_png(out / "sheet.png", sheet, embedded)
        record["status"] = "complete"
    except KeyboardInterrupt:
        record["status"] = "interrupted"
        raise
    except PpapError:
        record["status"] = "failed"
        if not result.images:
            _forget(out, created)
        raise
    except BaseException:
        record["status"] = "failed"
        raise
    finally:
        if (out / "run.json").exists():
            # A second failure here (a disk that is full) must not hide the first.
            with suppress(OutputError):
                _write_record(result, clock)
    return result


def _forget(out: Path, created: bool) -> None:
    """Removes what a run left that failed before its first image, and nothing else."""
    (out / "run.json").unlink(missing_ok=True)
    shutil.rmtree(out / "targets", ignore_errors=True)
    if created:
        with suppress(OSError):
            out.rmdir()


def check_writable(out: Path) -> bool:
    """Fails early when results could not be written to ``out``; creates it if it is not there.

    Returns:
        Whether it was created.

    Raises:
        OutputError: it is a file, may not be written, or holds another run.
    """
    # os.path, because Path.exists raises for names that are too long.
    if os.path.exists(out) and not os.path.isdir(out):
        raise OutputError(f"{str(out)!r} is a file.", remedy="Give a folder with --out.")
    if os.path.exists(out / "run.json"):
        raise OutputError(
            f"The folder {str(out)!r} already holds a run.",
            remedy="Give another folder with --out; nothing is overwritten.",
        )
    created = not os.path.isdir(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OutputError(
            f"Cannot write to the folder {str(out)!r}: {error.strerror}.",
            remedy="Choose another folder with --out.",
        ) from None
    return created


def _describe(setup: Setup, out: Path) -> dict[str, Any]:
    """What the record says of everything that was loaded; copies the targets' files to ``out``."""
    model_files = file_hashes(setup.backbone.files(), setup.config.backbone)
    targets = []
    for i, g in enumerate(setup.guides):
        model_files |= file_hashes(g.guide.files(), g.config.name)
        model_files |= file_hashes(g.expert_files, f"{g.config.name}-experts")
        for j, path in enumerate(g.target.files):
            copy = out / "targets" / f"{i}-{j}{path.suffix.lower()}"
            try:
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)
            except OSError as error:
                raise OutputError(
                    f"Cannot copy the target to {str(copy)!r}: {error.strerror}.",
                    remedy="Free some space or choose another folder with --out.",
                ) from None
            targets.append(
                {
                    "guide": i,
                    "given": g.config.target,
                    "copy": copy.relative_to(out).as_posix(),
                    "sha256": sha256_file(path),
                }
            )
    return {
        "used": {
            "device": str(setup.device),
            "cfg": setup.cfg,
            "steps": len(setup.walk),
            "guides": [
                {
                    "name": g.config.name,
                    "recipe": g.recipe.name,
                    "scale": g.scale,
                    "experts": g.experts,
                }
                for g in setup.guides
            ],
        },
        "versions": package_versions(setup.plugins),
        "model_files": model_files,
        "targets": targets,
        "device": _device_name(setup.device),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type


def _measure(
    setup: Setup, pictures: list[Image.Image], seen: list[list[Image.Image]]
) -> list[dict[str, dict[str, float]]]:
    """Each guide's measures of the pictures as they are written, 8 bits; extends ``seen``."""
    x = torch.cat([images.to_tensor(p) for p in pictures]).to(setup.device)
    rows: list[dict[str, dict[str, float]]] = [{} for _ in pictures]
    for i, g in enumerate(setup.guides):
        with torch.no_grad():
            output = g.guide.see(x)
            measured = g.guide.measure(output, g.target.value)
        key = g.config.name if len(setup.guides) == 1 else f"{i}-{g.config.name}"
        for k, row in enumerate(rows):
            row[key] = {name: round(values[k], 6) for name, values in measured.items()}
        seen[i].extend(g.guide.picture(output))
    return rows


def _embedded(record: dict[str, Any]) -> dict[str, Any]:
    """The part of a record that is the same whenever the run is repeated."""
    volatile = ("seconds", "status", "images", "skipped_guidance")
    return {key: value for key, value in record.items() if key not in volatile}


def _write_images(
    result: RunResult,
    indices: list[int],
    pictures: list[Image.Image],
    rows: list[dict[str, dict[str, float]]],
) -> None:
    for k, picture, measures in zip(indices, pictures, rows, strict=True):
        entry = {
            "index": k,
            "file": f"{k:05d}.png",
            "pixels_sha256": sha256_pixels(picture),
            "measures": measures,
        }
        record = _embedded(result.record) | {"images": [entry]}
        images.write_png(result.folder / f"{k:05d}.png", picture, record)
        result.record["images"].append(entry)
        result.images.append(picture)


def _write_record(result: RunResult, clock: Stopwatch) -> None:
    result.record["seconds"] = dict(clock.seconds)
    text = json.dumps(result.record, indent=2, ensure_ascii=False) + "\n"
    images.write_file(result.folder / "run.json", text.encode())


_SHEET_COLUMNS = 8


def _sheet(setup: Setup, pictures: list[Image.Image], seen: list[list[Image.Image]]) -> Image.Image:
    rows = []
    for g in setup.guides:
        shown = [(label, picture) for label, picture in g.target.pictures.items()]
        if shown:
            rows.append((f"Target of {g.config.name}", shown))
    for start in range(0, len(pictures), _SHEET_COLUMNS):
        part = range(start, min(start + _SHEET_COLUMNS, len(pictures)))
        title = "Results" + (f": {setup.config.prompt}" if setup.config.prompt else "")
        rows.append((title, [(f"image {k}", pictures[k]) for k in part]))
        for g, views in zip(setup.guides, seen, strict=True):
            name = f"What {g.config.name} sees in them"
            rows.append((name, [(f"image {k}", views[k]) for k in part]))
    return images.contact_sheet(rows)
