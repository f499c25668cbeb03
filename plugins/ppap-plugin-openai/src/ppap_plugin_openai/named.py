"""What the plugin's names stand for: published models, loaded from a file the user has."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ppap_host.backbones.backbone import Backbone
from ppap_host.files.errors import CheckpointError, OptionError
from ppap_host.files.models import own_path, read_json
from ppap_plugin_openai import adm as _adm
from ppap_plugin_openai import glide as _glide
from ppap_plugin_openai.backbone import BETAS, ADMBackbone, ADMUpsampler
from ppap_plugin_openai.flags import MOST
from ppap_plugin_openai.glide_backbone import GlideBackbone, GlideUpsampler
from ppap_plugin_openai.loading import recognise, shapes_in
from ppap_plugin_openai.tokens import HUB, vocabulary_files


def published_adm(
    name: str, checkpoint: str | None = None, upsampler: str | None = None
) -> ADMBackbone:
    """The model ``name`` of :data:`ppap_plugin_openai.adm.PUBLISHED_ADM`.

    Args:
        checkpoint: its file, or a folder that holds it under its published name.
        upsampler: file of a published upsampler for its images.

    Raises:
        CheckpointError: there is no such file, or it is not this model.
        OptionError: the upsampler does not fit it.
    """
    entry = _adm.PUBLISHED_ADM[name]
    path = _file(name, checkpoint, _adm.PUBLISHED_URL, entry.file)
    second = None if upsampler is None else _upsampler_of(name, entry.config, upsampler)
    return _adm_backbone(name, [path], entry.config, entry.noise_schedule, 1000, second)


def _upsampler_of(name: str, config: _adm.ADMConfig, checkpoint: str) -> Backbone:
    """The published upsampler in a file, for the images of a base model."""
    shapes = shapes_in(own_path(checkpoint))
    known = [found for found in recognise(shapes) if found in _adm.PUBLISHED_ADM]
    for found in known:
        if _adm.PUBLISHED_ADM[found].config.small_size == config.image_size:
            return published_adm(found, checkpoint)
    raise OptionError(
        f"{checkpoint}: no upsampler for images of {config.image_size} pixels, as {name!r} makes "
        f"them; it has the shapes of {' or '.join(known) or 'no published one'}.",
        remedy="Give the file of adm-64-256-upsampler or adm-128-512-upsampler.",
    )


def adm(checkpoint: str | None = None) -> ADMBackbone:
    """Any guided-diffusion U-Net, from its file and a JSON file of flags beside it.

    The flags of ``model.pt`` are in ``model.pt.json``, by their names on guided-diffusion's command
    line: ``{"image_size": 64, "num_channels": 128, "learn_sigma": true, ...}``.

    Raises:
        CheckpointError: there is no such file, or it does not fit the flags.
        OptionError: the flags make no sense.
    """
    if checkpoint is None:
        raise CheckpointError(
            "The backbone 'adm' ships no weights.",
            remedy="Give a file of guided-diffusion with --checkpoint, and its flags as "
            "<checkpoint>.json beside it.",
        )
    path = own_path(checkpoint)
    flags = read_flags(path)
    if flags is None:
        names = recognise(shapes_in(path))
        raise CheckpointError(
            f"{path}: there are no flags of this network ({path.name}.json)."
            + (f" It has the shapes of the published {' or '.join(names)}." if names else ""),
            remedy="Write guided-diffusion's flags to that file as a JSON object"
            + (f", or use --backbone {names[0]}." if names else "."),
        )
    steps, schedule = _process(path, flags, "linear")
    config = _adm.ADMConfig.from_flags(flags)
    return _adm_backbone("adm", [path, flags_file(path)], config, schedule, steps)


def _adm_backbone(
    name: str, files: Sequence[Path], config: _adm.ADMConfig, schedule: Any, steps: int,
    upsampler: Backbone | None = None,
) -> ADMBackbone:  # fmt: skip
    cls = ADMBackbone if config.small_size is None else ADMUpsampler
    remarks: list[str] = []
    unet = _adm.load_adm(files[0], config, remarks)
    return cls(unet, schedule, steps, files, name, upsampler, remarks)


def published_glide(
    name: str,
    checkpoint: str | None = None,
    upsampler: str | None = None,
    vocabulary: str | None = None,
) -> GlideBackbone:
    """The model ``name`` of :data:`ppap_plugin_openai.glide.PUBLISHED_GLIDE`, or one like it.

    One that was trained with other flags says so in ``<checkpoint>.json``, by the names of
    glide-text2im's options. The tokenizer's files are taken from the checkpoint's folder if they
    are there, and from the hub otherwise.

    Args:
        checkpoint: its file, or a folder that holds it under its published name.
        upsampler: file of the upsampler for its images.
        vocabulary: folder or hub name of the tokenizer's files.

    Raises:
        CheckpointError: there is no such file, or it is not this model.
        OptionError: its flags make no sense.
    """
    entry = _glide.PUBLISHED_GLIDE[name]
    path = _file(name, checkpoint, _glide.PUBLISHED_URL, entry.file)
    config, schedule, steps = entry.config, str(entry.noise_schedule), 1000
    files = [path]
    flags = read_flags(path)
    if flags is not None:
        files.append(flags_file(path))
        steps, schedule = _process(path, flags, schedule)
        kind = {"inpaint": config.inpaint, "super_res": config.super_res}
        config = _glide.GlideConfig.from_flags(kind | flags)
        if {key: getattr(config, key) for key in kind} != kind:
            raise OptionError(
                f"{path}.json: describes another kind of network than {name!r}.",
                remedy=f"Choose one of {', '.join(_glide.PUBLISHED_GLIDE)}.",
            )
    cls: type[GlideBackbone] = GlideUpsampler if config.super_res else GlideBackbone
    second = None
    if upsampler is not None:
        if config.super_res:
            raise OptionError(
                f"The backbone {name!r} is an upsampler itself.", remedy="Leave out --upsampler."
            )
        larger = "glide-inpaint-upsampler" if config.inpaint else "glide-upsampler"
        second = published_glide(larger, upsampler, vocabulary=vocabulary)
    remarks: list[str] = []
    return cls(
        _glide.load_glide(path, config, remarks),
        vocabulary=vocabulary or (path.parent if vocabulary_files(path.parent) else HUB),
        noise_schedule=schedule,  # type: ignore[arg-type]  # _process checks it
        diffusion_steps=steps,
        files=files,
        name=name,
        upsampler=second,
        remarks=remarks,
    )


def _file(name: str, checkpoint: str | None, url: str, file: str) -> Path:
    if checkpoint is None:
        raise CheckpointError(
            f"The backbone {name!r} ships no weights.",
            remedy=f"Fetch it with `ppap weights {name}`, or download {url}{file} and give it with "
            "--checkpoint.",
        )
    path = own_path(checkpoint)
    return path / file if os.path.isdir(path) else path


def flags_file(path: Path) -> Path:
    """Where the flags of a checkpoint are, if it has any: ``<checkpoint>.json``."""
    return path.with_name(f"{path.name}.json")


def read_flags(path: Path) -> dict[str, Any] | None:
    """The flags beside a checkpoint; None if there is no such file.

    Raises:
        OptionError: it cannot be read, or is no JSON object.
    """
    beside = flags_file(path)
    if not os.path.isfile(beside):
        return None
    try:
        content = read_json(beside)
    except CheckpointError as error:
        raise OptionError(f"{beside}: the flags are not JSON. {error.message}") from error
    if not isinstance(content, dict):
        raise OptionError(f"{beside}: the flags are no JSON object.")
    return content


def _process(path: Path, flags: Mapping[str, Any], usual: str) -> tuple[int, str]:
    """Steps and schedule of the diffusion process that the flags describe."""
    steps, schedule = flags.get("diffusion_steps", 1000), flags.get("noise_schedule", usual)
    if type(steps) is not int or not 1 <= steps <= MOST["diffusion_steps"]:
        raise OptionError(f"{path}.json: diffusion_steps is {steps!r}, no number of steps.")
    if schedule not in BETAS:
        raise OptionError(
            f"{path}.json: noise_schedule is {schedule!r}.", remedy=f"Known: {', '.join(BETAS)}."
        )
    if flags.get("predict_xstart"):
        raise OptionError(f"{path}.json: networks that predict x_0 are not supported.")
    if flags.get("rescale_timesteps") and steps != 1000:
        raise OptionError(f"{path}.json: rescaled timesteps are supported for 1000 steps only.")
    return steps, schedule


adm_64_cond = partial(published_adm, "adm-64-cond")
adm_128_cond = partial(published_adm, "adm-128-cond")
adm_256_cond = partial(published_adm, "adm-256-cond")
adm_256_uncond = partial(published_adm, "adm-256-uncond")
adm_512_cond = partial(published_adm, "adm-512-cond")
adm_64_256_upsampler = partial(published_adm, "adm-64-256-upsampler")
adm_128_512_upsampler = partial(published_adm, "adm-128-512-upsampler")
adm_lsun_bedroom = partial(published_adm, "adm-lsun-bedroom")
adm_lsun_cat = partial(published_adm, "adm-lsun-cat")
adm_lsun_horse = partial(published_adm, "adm-lsun-horse")
adm_lsun_horse_nodropout = partial(published_adm, "adm-lsun-horse-nodropout")
glide = partial(published_glide, "glide")
glide_inpaint = partial(published_glide, "glide-inpaint")
glide_upsampler = partial(published_glide, "glide-upsampler")
glide_inpaint_upsampler = partial(published_glide, "glide-inpaint-upsampler")
