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

from ppap_host.backbones.backbone import (
    Backbone,
    ClassifierFree,
    Condition,
    encode,
    repeat_condition,
)
from ppap_host.backbones.noise import Walk
from ppap_host.experts.calibration import Calibrated, calibration_file, load_calibration
from ppap_host.files import images
from ppap_host.files.errors import OptionError, OutputError, PpapError
from ppap_host.files.hashes import file_hashes, package_versions, sha256_file, sha256_pixels
from ppap_host.guides.guide import Guide, Target
from ppap_host.plugins.containment import contained, warn_of
from ppap_host.plugins.loading import load_backbone, load_guide
from ppap_host.plugins.registry import Kind, Registry, registry
from ppap_host.recipes.recipe import Recipe
from ppap_host.runs.choice import Choice, choose
from ppap_host.runs.config import GuideConfig, RunConfig, check_names, new_record
from ppap_host.runs.devices import pick_device, pick_dtype
from ppap_host.sampling.balance import BALANCES
from ppap_host.sampling.evaluator import Guidance, Health
from ppap_host.sampling.loop import Event, sample
from ppap_host.sampling.solvers import Churn, Solver, make_solver
from ppap_host.sampling.streams import ImageNoise

Watch = Callable[[str, int, int], None]
"""Told of progress: (what is being done, done so far, in all)."""


@dataclass
class ActiveGuide:
    """A guide at a stage of this run, with what it was asked for."""

    config: GuideConfig
    guide: Guide
    target: Target
    recipe: Recipe
    scale: float
    experts: str | None = None
    expert_files: tuple[Path, ...] = ()
    calibration_file: Path | None = None


@dataclass
class Stage:
    """One diffusion model of a run, with the guides that steer it.

    Attributes:
        name: "base" or "upsampler".
        cfg: classifier-free guidance scale.
        condition, unconditional: of one image, for both branches of it.
    """

    name: str
    backbone: Backbone
    walk: Walk
    solver: Solver
    cfg: float
    condition: Condition = field(default_factory=dict)
    unconditional: Condition = field(default_factory=dict)
    guides: list[ActiveGuide] = field(default_factory=list)


@dataclass
class Setup:
    """Everything loaded and checked before the first step.

    Attributes:
        stages: the base, and the upsampler of a cascade.
        guides: in the configuration's order, as they see the finished images.
        inputs: files of the image to fill in and its mask.
    """

    config: RunConfig
    stages: list[Stage]
    guides: list[ActiveGuide]
    device: torch.device
    plugins: set[str]
    inputs: dict[str, Path] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(len(stage.walk) for stage in self.stages)


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
    target_files: Mapping[int | str, str] | None = None,
    found: Registry | None = None,
) -> Setup:
    """Checks a configuration and loads what it names.

    Args:
        target_files: where to read the targets of these guides, and "image" and "mask", instead of
            where the configuration says, for repeating a run whose files have moved.
        found: the plugins to choose from; by default those installed.

    Raises:
        PpapError: anything the user can mend; see :mod:`ppap_host.files.errors`.
    """
    found = registry() if found is None else found
    check_names(config, found)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    used: list[tuple[Kind, str]] = [("backbone", config.backbone)]
    used += [("guide", g.name) for g in config.guides]
    plugins = {plugin.distribution for kind, name in used for plugin, _ in found.names(kind)[name]}
    backbone = load_backbone(found, config.backbone, config.checkpoint, config.backbone_options)
    if not config.conditional and config.cfg not in (None, 1.0):
        raise OptionError(
            f"--cfg {config.cfg} strengthens a prompt or a class, and there is none.",
            remedy="Add --prompt or --class, or leave out --cfg.",
        )
    upsampler = backbone.upsampler()
    if upsampler is None and config.upsampler_steps is not None:
        raise OptionError(
            "--upsampler-steps belongs to an upsampler, and there is none.",
            remedy="Give one with --upsampler, or leave out --upsampler-steps.",
        )
    stages = [_stage("base", backbone, config.steps, config.cfg, config)]
    if upsampler is not None:
        steps = config.upsampler_steps or upsampler.default_steps
        stages.append(_stage("upsampler", upsampler, steps, None, config))
    sources = target_files or {}
    inputs = {
        name: Path(sources.get(name, path))
        for name, path in (("image", config.image), ("mask", config.mask))
        if path is not None
    }
    for stage in stages:
        stage.backbone.to(device, dtype)
        _set_conditions(stage, config, inputs, device)
    guides = []
    for i, g in enumerate(config.guides):
        guide = load_guide(found, g.name, g.model)
        steered = _steered(g, stages)
        choices = [
            _calibrated(
                g, choose(g, g.recipe or config.recipe, guide, stage.backbone, stage.walk, found)
            )
            for stage in steered
        ]
        guide.to(device, dtype)
        source = sources.get(i, g.target)
        sizes = {stage.backbone.image_size for stage in (*steered, stages[-1])}
        targets = {size: _read_target(guide, source, size, device) for size in sizes}
        for stage, choice in zip(steered, choices, strict=True):
            recipe = choice.recipe
            scale = guide.usual_scale(recipe.name) if g.scale is None else g.scale
            target = targets[stage.backbone.image_size]
            active = ActiveGuide(
                g, choice.guide, target, recipe, scale, choice.experts, choice.files,
                choice.calibration_file,
            )  # fmt: skip
            stage.guides.append(active)
        guides.append(replace(active, target=targets[stages[-1].backbone.image_size]))
    return Setup(config, stages, guides, device, plugins, inputs)


def _stage(
    name: str, backbone: Backbone, steps: int | str, cfg: float | None, config: RunConfig
) -> Stage:
    scale = (backbone.default_cfg if cfg is None else cfg) if config.conditional else 1.0
    churn = Churn.of(config.churn, config.churn_range, config.churn_noise)
    solver = make_solver(config.sampler, config.eta, backbone, churn)
    return Stage(name, backbone, backbone.walk(steps), solver, scale)


def _steered(guide: GuideConfig, stages: list[Stage]) -> list[Stage]:
    """The stages that a guide steers."""
    wanted = {None: ("base",), "both": ("base", "upsampler")}.get(guide.stage, (guide.stage,))
    if len(stages) == 1 and "upsampler" in wanted:
        raise OptionError(
            f"The guide {guide.name!r} is to steer an upsampler, and there is none.",
            remedy="Give one with --upsampler, or leave out --stage.",
        )
    return [stage for stage in stages if stage.name in wanted]


def _calibrated(config: GuideConfig, choice: Choice) -> Choice:
    """The choice with the guide's calibration, if one was asked for."""
    if config.calibration is None:
        return choice
    calibration = load_calibration(Path(config.calibration), choice.guide)
    calibration.check_view(choice.recipe.sees_noise)
    guide = Calibrated(choice.guide, calibration)
    return replace(choice, guide=guide, calibration_file=calibration_file(config.calibration))


def _read_target(guide: Guide, text: str, size: tuple[int, int], device: torch.device) -> Target:
    target = guide.read_target(text, size)
    return replace(target, value=target.value.to(device))


def _set_conditions(
    stage: Stage, config: RunConfig, inputs: Mapping[str, Path], device: torch.device
) -> None:
    """What the images are conditioned on, and the unconditional branch where one is needed."""
    backbone = stage.backbone
    given: Condition = {}
    if inputs:
        image, known = images.read_known(inputs["image"], inputs["mask"], backbone.image_size)
        given = backbone.inpainting(image.to(device), known.to(device))
    stage.condition = {**encode(backbone, [config.prompt], [config.class_index]), **given}
    stage.unconditional = stage.condition
    if stage.cfg != 1:
        stage.unconditional = {**encode(backbone, [""], [None]), **given}


def generate(
    setup: Setup,
    indices: list[int],
    health: Health,
    watch: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """The images of these indices, RGB in [-1, 1], float32 [b, 3, h, w] on the run's device.

    Args:
        watch: told how many of the :attr:`Setup.steps` are done.
    """
    config, smaller, done = setup.config, None, 0
    for number, stage in enumerate(setup.stages):
        backbone = stage.backbone
        wanted, unconditional = stage.condition, stage.unconditional
        if smaller is not None:
            enlarged, rows = backbone.conditioned_on(smaller), len(indices)
            wanted = {**repeat_condition(wanted, rows), **enlarged}
            unconditional = {**repeat_condition(unconditional, rows), **enlarged}

        def on_step(report: Event, before: int = done) -> None:
            if watch is not None:
                watch(before + report.index + 1)

        # Guides and backbones are watched call by call; what recipes and backward passes do is not.
        with contained() as conduct:
            state = sample(
                backbone,
                ClassifierFree(backbone, wanted, unconditional, stage.cfg),
                stage.walk,
                stage.solver,
                ImageNoise(config.seed, indices, backbone.state_shape, number),
                [Guidance(g.guide, g.target.value, g.recipe, g.scale) for g in stage.guides],
                device=setup.device,
                watch=on_step,
                health=health,
                balance=BALANCES[config.balance],
            )
        recipes = " or ".join(sorted({repr(g.recipe.name) for g in stage.guides}))
        warn_of(conduct, f"The recipe {recipes}, or a gradient of what it is used with,")
        done += len(stage.walk)
        with torch.no_grad():
            smaller = backbone.decode(state).float()
    assert smaller is not None
    return smaller


def run(
    config: RunConfig,
    out: Path,
    watch: Watch | None = None,
    target_files: Mapping[int | str, str] | None = None,
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

            def on_step(steps: int, first: int = first, size: int = len(indices)) -> None:
                watch("sampling", first * setup.steps + steps * size, config.num * setup.steps)

            with clock.part("sample"):
                x = generate(setup, indices, health, on_step)
            with clock.part("measure"):
                pictures = images.from_tensor(x)
                rows = _measure(setup, pictures, seen)
            with clock.part("write"):
                _write_images(result, indices, pictures, rows)
                record["skipped_guidance"] = dict(health.skipped)
                record["limited_guidance"] = dict(health.limited)
                record["warnings"] = [
                    *health.warnings(), *_too_strong(setup, health), *_of_latents(setup)
                ]  # fmt: skip
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


TOO_STRONG = 10.0
"""How many times its usual strength a guide may have before a run warns of it."""


def _too_strong(setup: Setup, health: Health) -> list[str]:
    """Of guides far above their usual strength, one sentence each."""
    told = []
    for g in setup.guides:
        usual = g.guide.usual_scale(g.recipe.name)
        if usual > 0 and g.scale >= TOO_STRONG * usual:
            name = g.guide.name
            cut, of = health.limited.get(name, 0), health.limitable.get(name, 0)
            told.append(
                f"--scale {g.scale:g} of the guide {name!r} is {g.scale / usual:.0f} times what is "
                f"usual for the recipe {g.recipe.name!r} ({usual:g}); its gradient was cut to the "
                f"recipe's limit in {cut} of {of} image-steps."
            )
    return told


def _of_latents(setup: Setup) -> list[str]:
    """Of experts that are shown noised latents, one sentence each."""
    return [
        f"The experts {g.experts!r} of the guide {g.config.name!r} were tuned on noised images, "
        f"and the backbone {setup.config.backbone!r} noises latents, which look otherwise when "
        "they are decoded. Compare with --recipe x0 --experts none."
        for stage in setup.stages
        for g in stage.guides
        if stage.backbone.latent and g.experts is not None and g.recipe.sees_noise
    ]


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


def _copied(path: Path, out: Path, name: str) -> dict[str, str]:
    """Copies a file that decides what is made beside the images; what the record says of it."""
    copy = out / "targets" / f"{name}{path.suffix.lower()}"
    try:
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
    except OSError as error:
        raise OutputError(
            f"Cannot copy the target to {str(copy)!r}: {error.strerror}.",
            remedy="Free some space or choose another folder with --out.",
        ) from None
    return {"copy": copy.relative_to(out).as_posix(), "sha256": sha256_file(path)}


def _describe(setup: Setup, out: Path) -> dict[str, Any]:
    """What the record says of everything that was loaded; copies the targets' files to ``out``."""
    base = setup.stages[0]
    model_files: dict[str, str] = {}
    for stage in setup.stages:
        known_as = setup.config.backbone if stage is base else stage.name
        model_files |= file_hashes(stage.backbone.files(), known_as)
        for g in stage.guides:
            model_files |= file_hashes(g.expert_files, f"{g.config.name}-experts")
            if g.calibration_file is not None:
                model_files |= file_hashes([g.calibration_file], f"{g.config.name}-calibration")
    targets = []
    for i, g in enumerate(setup.guides):
        model_files |= file_hashes(g.guide.files(), g.config.name)
        for j, path in enumerate(g.target.files):
            copied = _copied(path, out, f"{i}-{j}")
            targets.append({"guide": i, "given": g.config.target} | copied)
    for name, path in setup.inputs.items():
        given = getattr(setup.config, name)
        targets.append({"input": name, "given": given} | _copied(path, out, name))
    return {
        "used": {
            "device": str(setup.device),
            "cfg": base.cfg,
            "steps": setup.steps,
            "guides": [
                {
                    "name": g.config.name,
                    "recipe": g.recipe.name,
                    "scale": g.scale,
                    "experts": g.experts,
                    "stage": stage.name,
                }
                for stage in setup.stages
                for g in stage.guides
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
    volatile = (
        "seconds", "status", "images", "skipped_guidance", "limited_guidance", "warnings"
    )  # fmt: skip
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
