"""What scripts and notebooks call: guidance described, images sampled, steps looked at.

All of it is offered by ``import ppap_host as ppap``.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppap_host.backbones.backbone import Backbone
from ppap_host.files.errors import OptionError, RecordError
from ppap_host.files.offline import nothing_fetched
from ppap_host.files.reading import local_path
from ppap_host.files.settings import read
from ppap_host.guides.functions import Reward, check_steers
from ppap_host.guides.guide import Guide
from ppap_host.plugins.loading import load_backbone as load_backbone_named
from ppap_host.plugins.loading import load_guide as load_guide_named
from ppap_host.plugins.registry import registry
from ppap_host.recipes.recipe import Recipe
from ppap_host.runs.config import GuideConfig, RunConfig, called, code_of, refuse_code
from ppap_host.runs.devices import pick_device, pick_dtype
from ppap_host.runs.folder import RunFolder
from ppap_host.runs.record import checked_record, find_targets, read_record
from ppap_host.runs.run import Result, Run, Watch, run
from ppap_host.runs.setup import as_backbone, set_up


def _plain(value: Any) -> Any:
    """What a script gives for a setting, as configurations have it.

    Numbers of numpy and torch become Python's; lists, ranges, arrays and generators tuples; paths,
    devices and number formats text.
    """
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, torch.device | torch.dtype):
        return str(value).removeprefix("torch.")
    value = value.tolist() if isinstance(value, np.generic | np.ndarray | Tensor) else value
    return _tuple(value)


def _tuple(value: Any) -> Any:
    """Several values, one an image, as a tuple; anything else as it is."""
    return tuple(value) if isinstance(value, list | range | Generator | map) else value


def guidance(
    what: Any,
    target: Any = None,
    *,
    name: str | None = None,
    scale: float | None = None,
    model: str | None = None,
    recipe: str | Recipe | None = None,
    experts: str | None = None,
    interval: str | None = None,
    stage: str | None = None,
    calibration: str | None = None,
    absolute: bool = False,
) -> GuideConfig:
    """Describes one guide at work; loads nothing, and serves several runs and backbones.

    Args:
        what: the name of a guide (``ppap.list_guides()``), a guide, a module or a function of
            images (RGB in [-1, 1], [b, 3, h, w], and the target where there is one, to a loss [b]),
            ``"FILE.py:NAME"`` of one of these, or a :func:`~ppap_host.guides.functions.reward`.
        target: what it should see; a list has one target an image.
        name: what it is called in results; by default the guide's name, the function's or the
            class's. Equal ones become depth, depth-2.
        scale, model, recipe, experts, interval, stage, calibration, absolute: as in
            :class:`~ppap_host.runs.config.GuideConfig`.

    Raises:
        OptionError: a value means nothing.
    """
    if not isinstance(what, str | Reward | GuideConfig):
        check_steers(what)
    code = code_of(what)
    if isinstance(what, str) and code is None:
        label, steers = what, None
    elif isinstance(what, GuideConfig):
        raise OptionError(
            f"{what.name!r} is a guidance already.", remedy="Give it to ppap.sample as it is."
        )
    else:
        label, steers = (code[1] if code else called(getattr(what, "what", what))), what
    if isinstance(what, Reward) and isinstance(what.what, str):
        label = what.what
    if name is not None and steers is None:
        steers = what
    return read(
        GuideConfig,
        dict(
            name=label if name is None else name, target=_tuple(target), scale=_plain(scale),
            model=_plain(model), recipe=recipe, experts=_plain(experts), interval=interval,
            stage=stage, calibration=_plain(calibration), what=steers, absolute=absolute,
        ),
        f"the guidance {label if name is None else name!r}",
    )  # fmt: skip


Guides = GuideConfig | Sequence[GuideConfig]
"""One guidance or several."""


def described(backbone: Any, guides: Guides | None, options: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run from what a script gives.

    Args:
        options: by the names of :class:`~ppap_host.runs.config.RunConfig`, ``class_`` being
            ``class_index``; lists of prompts, classes, targets or seeds have one an image.

    Raises:
        OptionError: a name is unknown, or a value means nothing.
    """
    values = _settings(options, "ppap.sample")
    chosen = () if guides is None else _several(guides)
    values = _counted(values, values, chosen)
    return read(RunConfig, values | {"backbone": backbone, "guides": chosen}, "ppap.sample")


def _settings(options: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Options by the names of a configuration.

    Raises:
        OptionError: there is none of a name.
    """
    values = {"class_index" if k == "class_" else k: _plain(v) for k, v in options.items()}
    known = {field.name for field in fields(RunConfig)}
    read(RunConfig, {key: value for key, value in values.items() if key not in known}, source)
    return values


def _counted(
    values: Mapping[str, Any], given: Mapping[str, Any], guides: Sequence[GuideConfig]
) -> dict[str, Any]:
    """The values with as many images as what is given has rows, where no number is."""
    lists = [given.get(key) for key in ("prompt", "negative_prompt", "class_index", "seed")]
    lists += [guide.target for guide in guides]
    longest = max((len(v) for v in lists if isinstance(v, tuple)), default=0)
    return {**values, **({"num": longest} if "num" not in given and longest > 1 else {})}


def _several(guides: Guides) -> tuple[GuideConfig, ...]:
    """One guidance or several.

    Raises:
        OptionError: something else stands there.
    """
    several = _tuple(guides)
    chosen = several if isinstance(several, tuple) else (several,)
    for guide in chosen:
        if not isinstance(guide, GuideConfig):
            raise OptionError(
                f"{reprlib.repr(guide)} stands where guidance is wanted.",
                remedy="Wrap it: ppap.guidance(what, target=...).",
            )
    return chosen


def trajectory(
    backbone: Any = "shapes",
    guides: Guides | None = None,
    *,
    out: str | Path | None = None,
    watch: Watch | None = None,
    keep_gradients: bool = False,
    **options: Any,
) -> Run:
    """The steps of a run, one event each: ``for step in ppap.trajectory(world, guidance): ...``.

    The loop may be left early; :meth:`~ppap_host.runs.run.Run.result` gives what is finished.

    Args:
        backbone: a name, a backbone, or a pipeline of diffusers.
        guides: one :func:`guidance` or several; None makes unguided images.
        out: a folder to write each batch to as it ends.
        watch: told of progress.
        keep_gradients: whether events hold the guides' gradients.
        options: those of a run (:class:`~ppap_host.runs.config.RunConfig`): prompt, num, seed,
            steps, sampler, cfg, device, dtype, unguided and so on.

    Raises:
        PpapError: anything that the caller can mend.
    """
    setup = set_up(described(backbone, guides, options))
    folder = None if out is None else RunFolder(out)
    return Run(setup, folder, watch, keep_gradients=keep_gradients)


def sample(
    backbone: Any = "shapes",
    guides: Guides | None = None,
    *,
    out: str | Path | None = None,
    watch: Watch | None = None,
    **options: Any,
) -> Result:
    """Makes images under guidance.

    Args:
        backbone: a name, a backbone, or a pipeline of diffusers.
        guides: one :func:`guidance` or several; None makes unguided images.
        out: a folder to write each batch to as it ends, so that a long run needs no more memory
            than a short one; None keeps the images in memory.
        watch: told of progress: (what is being done, done so far, in all).
        options: those of a run (:class:`~ppap_host.runs.config.RunConfig`): prompt, num, seed,
            steps, sampler, cfg, device, dtype, unguided and so on.

    Raises:
        PpapError: anything that the caller can mend.
        SamplingError: no image could be made.
    """
    config = described(backbone, guides, options)
    if out is not None:
        return run(config, out, watch)
    return Run(set_up(config), None, watch).finish()


def rerun(
    record: str | Path | Mapping[str, Any] | Result,
    *,
    out: str | Path | None = None,
    watch: Watch | None = None,
    guides: Guides | None = None,
    backbone: Any = None,
    **changes: Any,
) -> Result:
    """Makes the images of a record again, with changes.

    What defaults had decided is taken from the record as values.

    Args:
        record: a ``run.json``, the folder of a run, one of its PNGs, a result, or its record.
        out: a folder to write to; None keeps the images in memory.
        guides, backbone: instead of the record's. What was an object in memory, code or a hub name
            is never taken from a record: give it again.
        changes: options of a run that are to differ, such as ``steps=100``.

    Raises:
        RecordError: there is no record, a target's file is gone, or something has to be given
            again.
        PpapError: as :func:`sample`.
    """
    if isinstance(record, Result):
        record = record.folder or record.record
    place = None
    if isinstance(record, Mapping):
        source = checked_record(record, "the record")
    elif isinstance(record, str | os.PathLike):
        place = Path(local_path(os.fspath(record)))
        source = read_record(place)
    else:
        raise RecordError(
            f"{reprlib.repr(record)} is no record.",
            remedy="Give a run.json, the folder of a run, one of its images, or a result.",
        )
    config, moved = from_record(source, place, guides=guides, backbone=backbone, changes=changes)
    # What is given again may be fetched; what only the record names may not.
    given = guides is not None or backbone is not None or "checkpoint" in changes
    with nothing_fetched("" if given else "the record" if place is None else str(place)):
        if out is not None:
            return run(config, out, watch, moved)
        return Run(set_up(config, moved), None, watch).finish()


def from_record(
    record: Mapping[str, Any],
    place: Path | None,
    *,
    guides: Guides | None = None,
    backbone: Any = None,
    changes: Mapping[str, Any] | None = None,
    code: Sequence[str] = (),
) -> tuple[RunConfig, dict[str, str] | None]:
    """The configuration that makes a record's images again, and where its files are now.

    Args:
        place: the file or the folder that the record was read from.
        code: ``FILE.py:NAME`` that the user has named again.

    Raises:
        RecordError, OptionError: as :func:`rerun`.
    """
    shown = "the record" if place is None else str(place)
    named = _settings(changes or {}, "ppap.rerun")
    chosen = () if guides is None else _several(guides)
    values = _counted({**record["config"], **named}, named, chosen)
    moved: dict[str, str] | None = None
    if guides is not None:
        values["guides"] = []
    else:
        folder = Path(".") if place is None else place if os.path.isdir(place) else place.parent
        moved, again = find_targets(record, folder)
        inputs = (named[key] for key in ("image", "mask") if named.get(key))
        paths = [str(i.get("path") if isinstance(i, Mapping) else i) for i in inputs]
        moved |= {path: path for path in paths}
        values["guides"] = _given_again(values.get("guides", ()), again)
        pictures = {k: v for k, v in again.items() if isinstance(k, str)}
        values |= {k: pictures[k] for k in ("image", "mask") if k in pictures}
        values["pipeline"] = {
            k: pictures.get(k, v) if _was_in_memory(v) else v
            for k, v in (values.get("pipeline") or {}).items()
        }
    if backbone is not None:
        values |= {"backbone": backbone, "checkpoint": None, "backbone_options": {}}
    _refuse_objects(values, shown)
    config = RunConfig.from_dict(values, shown)
    if guides is not None:
        config = replace(config, guides=chosen)
    else:
        refuse_code(config, shown, code)
    _refuse_hub_names(config, record, shown)
    return config, moved


def _given_again(
    guides: Sequence[Mapping[str, Any]], again: Mapping[tuple[int, int] | str, str]
) -> list[dict[str, Any]]:
    """The guides of a record with the copies of targets that were in memory."""
    found = []
    for i, guide in enumerate(guides):
        target = guide.get("target")
        if isinstance(target, list):
            target = [again.get((i, j), row) for j, row in enumerate(target)]
        else:
            target = again.get((i, 0), target)
        found.append({**guide, "target": target})
    return found


def _refuse_objects(values: Mapping[str, Any], shown: str) -> None:
    """Raises RecordError for what was in memory when the record was written."""
    found: list[tuple[str, Any, str]] = []
    for key in ("backbone", "recipe", "image", "mask"):
        value = values.get(key)
        name = f" {value.get('object')!r}" if isinstance(value, Mapping) else ""
        found.append((f"{key}{name} of", value, f"it again: ppap.rerun(..., {key}=...)"))
    for key, value in values.get("pipeline", {}).items():
        found.append((f"argument {key!r} in", value, "it again: ppap.rerun(..., pipeline={...})"))
    for guide in values.get("guides", ()):
        again = "the guidance again: ppap.rerun(..., guides=...)"
        for what, key in (("guide {} of", "what"), ("recipe of {} in", "recipe"),
                          ("target of {} in", "target")):  # fmt: skip
            found.append((what.format(repr(guide.get("name"))), guide.get(key), again))
    for what, value, again in found:
        if _was_in_memory(value):
            raise RecordError(
                f"The {what} {shown} was an object in memory.", remedy=f"Give {again}."
            )


def _was_in_memory(value: Any) -> bool:
    """Whether a record says of a value only what an object was called, or of a part of it."""
    if isinstance(value, Mapping):
        return "object" in value or any(map(_was_in_memory, value.values()))
    return isinstance(value, list) and any(map(_was_in_memory, value))


def _refuse_hub_names(config: RunConfig, record: Mapping[str, Any], shown: str) -> None:
    """Raises RecordError for models that would have to be fetched from a hub."""
    before = record["config"]
    named = [("checkpoint", config.checkpoint, before.get("checkpoint"))]
    for guide, row in zip(config.guides, before.get("guides", ()), strict=False):
        named.append((f"model of {guide.name!r}", guide.model, row.get("model")))
    published = registry().published_files()
    for what, now, then in named:
        if now is None or now != then or now in published or os.path.exists(now):
            continue
        if now.count("/") == 1 and not now.startswith((".", "~", "/")) and "=" not in now:
            raise RecordError(
                f"The {what} in {shown} is {now!r}, which is no file here and may be fetched from "
                "a hub.",
                remedy="Give it again if you want it, such as ppap.rerun(..., checkpoint=...).",
            )


def load_backbone(
    what: Any = "shapes",
    checkpoint: str | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    **options: str,
) -> Backbone:
    """A diffusion model, to be given to :func:`sample` as often as wanted.

    Args:
        what: a name (``ppap.list_backbones()``), or a pipeline of diffusers in memory, which stays
            as it is.
        checkpoint: its weights, where it ships none.
        device, dtype: where a named one is put.
        options: what else its factory takes, such as ``vae``.

    Raises:
        PpapError: it cannot be found or read.
    """
    if isinstance(what, Backbone):
        return what
    if not isinstance(what, str):
        if checkpoint is not None or options:
            raise OptionError(
                f"The backbone {called(what)!r} is in memory, and a checkpoint or options are "
                "given.",
                remedy="Leave them out, or name the backbone.",
            )
        return as_backbone(what, registry())
    place = pick_device(str(device))
    checkpoint, format = _plain(checkpoint), pick_dtype(_plain(dtype), place)
    read(RunConfig, {"checkpoint": checkpoint}, "ppap.load_backbone")
    made = load_backbone_named(registry(), what, checkpoint, options)
    made.to(place, format)
    made.device, made.dtype = place, format
    made.origin = {"backbone": what, "checkpoint": checkpoint, "backbone_options": options}
    return made


def load_guide(
    name: str,
    model: str | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
) -> Guide:
    """A guide, for :func:`guidance` or any loop of torch: ``see`` and ``loss`` are differentiable.

    Args:
        name: of ``ppap.list_guides()``.
        model: its network, where it is not the one that the plugin ships.
        device, dtype: where it is put.

    Raises:
        PpapError: it cannot be found or read.
    """
    place = pick_device(str(device))
    model, format = _plain(model), pick_dtype(_plain(dtype), place)
    read(GuideConfig, {"name": name, "model": model}, "ppap.load_guide")
    guide = load_guide_named(registry(), name, model).to(place, format)
    guide.origin = {"what": name, "model": model}
    return guide
