"""Pipelines of diffusers from folders and the hub: which files are read, and what is added."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Collection, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline
from diffusers.utils import is_peft_available, is_transformers_available
from safetensors import safe_open
from torch import nn

from ppap_host.files.checkpoints import read_state_dict
from ppap_host.files.errors import CheckpointError, OptionError, unknown_name
from ppap_host.files.models import (
    from_pretrained,
    local_folder,
    no_larger_than,
    own_path,
    read_json,
)
from ppap_host.pipelines.backbone import PipelineBackbone
from ppap_host.pipelines.families import family_named

_REMEDY = (
    "Give --checkpoint the hub name or the folder of a pipeline with safetensors weights, such as "
    "stable-diffusion-v1-5/stable-diffusion-v1-5."
)
_LOADS: Any = DiffusionPipeline.from_pretrained
# Newer ones call it dtype, and warn of the older name.
_DTYPE = "dtype" if "dtype" in inspect.unwrap(_LOADS).__code__.co_consts else "torch_dtype"
OFFLOADS = ("none", "model", "sequential")
"""What of a pipeline waits in memory while it does not compute."""


def load(
    checkpoint: Any = None,
    lora: str = "",
    controlnet: str = "",
    ip_adapter: str = "",
    offload: str = "none",
    tiling: str = "",
) -> PipelineBackbone:
    """The backbone of a pipeline in memory, on the hub or in a folder.

    Only safetensors are read, and no code that comes with a pipeline is run. Weights keep the
    number format of their files until they are moved.

    Args:
        checkpoint: hub name, folder with a ``model_index.json``, or a pipeline in memory, which
            stays as it is.
        lora: safetensors files of low-rank patches, separated by commas, each perhaps with its
            strength: ``style.safetensors:0.8``.
        controlnet: hub name or folder of a control network; it is shown ``--image``, or
            ``control_image`` where the pipeline also starts from a picture.
        ip_adapter: safetensors file of an IP-Adapter; the call takes ``ip_adapter_image``.
        offload: none, model or sequential.
        tiling: "yes" to decode large pictures in tiles and batches one by one.

    Raises:
        CheckpointError: it cannot be found or downloaded, is no pipeline of diffusers, or has no
            safetensors weights.
        OptionError: an option means nothing to it.
    """
    if offload not in OFFLOADS:
        raise unknown_name("offload", offload, OFFLOADS)
    if checkpoint is not None and not isinstance(checkpoint, str | PathLike):
        return PipelineBackbone(checkpoint)
    if checkpoint is None:
        raise CheckpointError("The backbone 'diffusers' comes without weights.", remedy=_REMEDY)
    checkpoint = fspath(checkpoint)
    folder = local_folder(checkpoint, _REMEDY)
    if folder is None:
        folder = _downloaded(checkpoint)
    described = folder / "model_index.json"
    index = read_json(described, remedy=_REMEDY) if described.is_file() else None
    if not isinstance(index, dict):
        raise CheckpointError(
            f"{checkpoint!r} gives no pipeline: it has no {described.name}.", remedy=_REMEDY
        )
    if isinstance(index.get("_class_name"), list):
        raise _with_code(checkpoint, ".".join(map(str, index["_class_name"])))
    name = str(index.get("_class_name"))
    kind = _class_named(name, checkpoint)
    left_out: dict[str, Any] = dict.fromkeys(_left_out(name, index, bool(ip_adapter)))
    if "requires_safety_checker" in index:
        left_out["requires_safety_checker"] = False
    parts = _parts(checkpoint, folder, index, left_out)
    _need_transformers(checkpoint, index, left_out)
    remarks: list[str] = []
    variant = _variant(checkpoint, parts, remarks)
    read = [path for part in parts for path in _read_of(part, variant)]
    size = sum(path.stat().st_size for path in read if path.suffix == ".safetensors")
    try:
        with no_larger_than(checkpoint, size // 2):
            pipe = from_pretrained(
                kind, folder, use_safetensors=True, variant=variant,
                **{_DTYPE: _formats(read)}, **left_out,
            )  # fmt: skip
    except CheckpointError:
        raise
    # diffusers, transformers and safetensors raise anything for files that do not fit.
    except Exception as error:
        raise CheckpointError(
            f"The {name} of {checkpoint!r} cannot be loaded "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}).",
            remedy="Each of its networks needs safetensors weights that fit its configuration; "
            "pickles (.bin, .ckpt) are not read.",
        ) from error
    files = [folder / "model_index.json", *read]
    if controlnet:
        pipe = _with_control(pipe, controlnet, files)
    _add_patches(pipe, lora, files)
    if ip_adapter:
        _add_adapter(pipe, ip_adapter, files)
    if tiling:
        _tile(pipe)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    return PipelineBackbone(pipe, files, remarks, names=[checkpoint, lora], offload=offload)


def _downloaded(name: str) -> Path:
    """A pipeline of the hub, in its cache."""
    problem: Exception | None = None
    for variant in (None, "fp16"):
        try:
            index = DiffusionPipeline.load_config(name)
            left_out = dict.fromkeys(_left_out(str(index.get("_class_name")), index, False))
            found = DiffusionPipeline.download(
                name, use_safetensors=True, trust_remote_code=False, variant=variant, **left_out
            )
            return Path(found)
        # diffusers and the hub's client each have exceptions of their own; whichever it was, there
        # is no pipeline of this name, or none in this precision.
        except Exception as error:
            problem = problem or error
    raise CheckpointError(
        f"{name!r} gives no pipeline ({type(problem).__name__}).", remedy=_REMEDY
    ) from problem


def _parts(
    name: str, folder: Path, index: Mapping[str, Any], left_out: Collection[str]
) -> list[Path]:
    """The folders of what a pipeline is made of, checked for code of their own."""
    parts = []
    for part, kind in index.items():
        if part.startswith("_") or part in left_out or not isinstance(kind, list):
            continue
        library, of = [str(word) for word in (*kind, "", "")][:2]
        if kind == [None, None]:
            continue
        path = folder / part
        if library not in ("diffusers", "transformers") or Path(part).name != part:
            raise _with_code(name, f"{library}.{of}")
        for file in sorted(path.glob("*config.json")):
            described = read_json(file)
            own = isinstance(described, dict) and described.get("auto_map")
            if own and of.startswith("Auto") and library == "transformers":
                raise _with_code(name, f"the {of} in {part}")
        parts.append(path)
    return parts


def _with_code(name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"The pipeline {name!r} needs code of its own ({what[:200]}), which is never run.",
        remedy="Give a pipeline that diffusers has all the parts of.",
    )


_WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|model)(\.fp16)?(-\d+-of-\d+)?(\.fp16)?\.safetensors"
)
_SETTINGS = (".json", ".txt", ".model")


def _read_of(part: Path, variant: str | None) -> list[Path]:
    """The files of a part that are read: its settings, its words, and one set of weights."""
    found = sorted(path for path in part.glob("*") if path.is_file())
    weights = [path for path in found if _WEIGHTS.fullmatch(path.name)]
    half = [path for path in weights if ".fp16" in path.name]
    chosen = half if half and variant else [path for path in weights if path not in half]
    return sorted([path for path in found if path.suffix in _SETTINGS] + chosen)


def _variant(name: str, parts: Sequence[Path], remarks: list[str]) -> str | None:
    """The word fp16 where weights are there in half precision alone."""
    for part in parts:
        there = [path.name for path in part.glob("*.safetensors") if _WEIGHTS.fullmatch(path.name)]
        if there and all(".fp16" in file for file in there):
            remarks.append(f"{name!r} has half-precision weights only (*.fp16.safetensors).")
            return "fp16"
    return None


def _class_named(name: str, checkpoint: str) -> type[Any]:
    """The pipeline class of diffusers of this name.

    Raises:
        CheckpointError: there is none.
    """
    kind = getattr(diffusers, name, None) if name.endswith("Pipeline") else None
    if inspect.isclass(kind) and issubclass(kind, DiffusionPipeline):
        return kind
    raise CheckpointError(
        f"{checkpoint!r} is a {name}, and the installed diffusers {diffusers.__version__} has no "
        "such pipeline.",
        remedy="Give a pipeline that it has, such as a StableDiffusionPipeline, or install a newer "
        "diffusers.",
    )


def _left_out(name: str, index: Mapping[str, Any], with_adapter: bool) -> list[str]:
    """The parts that have no share in making a picture."""
    family = family_named(name)
    known = set(family.left_out if family else ("safety_checker", "watermarker"))
    if "safety_checker" in index and family is None:
        known.add("feature_extractor")  # which prepares pictures for it alone
    if with_adapter:
        known -= {"image_encoder", "feature_extractor"}
    return [part for part in known if part in index]


def _need_transformers(
    checkpoint: str, index: Mapping[str, Any], left_out: Collection[str]
) -> None:
    for part, kind in index.items():
        if part in left_out or not isinstance(kind, list) or kind[:1] != ["transformers"]:
            continue
        if not is_transformers_available():
            raise CheckpointError(
                f"{checkpoint!r} has text encoders, which need transformers.",
                remedy="Install it with `pip install transformers`.",
            )


def _formats(files: Sequence[Path]) -> dict[str, torch.dtype]:
    """The number format of each part's weights, as its file has it."""
    kinds = {"F16": torch.float16, "BF16": torch.bfloat16}
    found: dict[str, torch.dtype] = {"default": torch.float32}
    for path in files:
        if path.suffix != ".safetensors":
            continue
        try:
            with safe_open(path, "pt") as file:
                stored = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        # What is damaged is told by who reads it.
        except Exception:
            continue
        formats = {kinds.get(kind, torch.float32) for kind in stored if kind.startswith(("F", "B"))}
        formats.add(found.get(path.parent.name, next(iter(formats), torch.float32)))
        one = formats.pop()
        found[path.parent.name] = torch.float32 if formats else one
    return found


def _with_control(pipe: Any, source: str, files: list[Path]) -> Any:
    """The relative of a pipeline that has a control network."""
    folder = local_folder(source, "Give the folder of a ControlNet in diffusers' format.")
    if folder is None:
        folder = Path(DiffusionPipeline.download(source, use_safetensors=True))
    described = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    name = described.get("_class_name") if isinstance(described, dict) else None
    kind = getattr(diffusers, str(name), None)
    if not inspect.isclass(kind) or "ControlNet" not in kind.__name__:
        raise CheckpointError(
            f"{source!r} gives no control network.",
            remedy="Give the folder of a ControlNet in diffusers' format.",
        )
    try:
        network = from_pretrained(kind, folder, use_safetensors=True)
        made = AutoPipelineForText2Image.from_pipe(pipe, controlnet=network)
    # diffusers raises anything for files that do not fit, or a kind that it has no pipeline for.
    except Exception as error:
        raise CheckpointError(
            f"The control network {source!r} does not go with {type(pipe).__name__} "
            f"({' '.join(str(error).split())[:200]}).",
            remedy="Give one that was trained for this kind of model.",
        ) from error
    files += [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return made


def _safetensors(text: str, what: str) -> Path:
    path = own_path(text)
    if path.suffix != ".safetensors" or not os.path.isfile(path):
        raise CheckpointError(
            f"{text!r} is no safetensors file of {what}.",
            remedy="Download it, and give its path; pickles are not read.",
        )
    return path


def _add_patches(pipe: Any, lora: str, files: list[Path]) -> None:
    """Low-rank patches, each with its strength."""
    names, strengths = [], []
    for number, text in enumerate(filter(None, lora.split(","))):
        text, strength = _with_strength(text)
        path = _safetensors(text, "low-rank patches")
        if not hasattr(pipe, "load_lora_weights"):
            raise OptionError(
                f"{type(pipe).__name__} takes no low-rank patches.", remedy="Leave out --lora."
            )
        if not is_peft_available():
            raise OptionError(
                "diffusers reads low-rank patches with peft, which is not installed.",
                remedy="Install it with `pip install peft`.",
            )
        names.append(f"ppap-{number}")
        strengths.append(strength)
        try:
            pipe.load_lora_weights(dict(read_state_dict(path)), adapter_name=names[-1])
        except Exception as error:
            raise CheckpointError(
                f"The low-rank patches {text!r} do not fit {type(pipe).__name__} "
                f"({' '.join(str(error).split())[:200]}).",
                remedy="Give patches that were trained for this model.",
            ) from error
        files.append(path)
    if names:
        pipe.set_adapters(names, strengths)


def _with_strength(text: str) -> tuple[str, float]:
    """A file, and the number behind its last colon; 1 where there is none."""
    path, colon, number = text.rpartition(":")
    try:
        return (path, float(number)) if colon and path else (text, 1.0)
    except ValueError:
        return text, 1.0


def _add_adapter(pipe: Any, source: str, files: list[Path]) -> None:
    path = _safetensors(source, "an IP-Adapter")
    if not hasattr(pipe, "load_ip_adapter"):
        raise OptionError(
            f"{type(pipe).__name__} takes no IP-Adapter.", remedy="Leave out ip_adapter."
        )
    try:
        pipe.load_ip_adapter(
            str(path.parent), subfolder="", weight_name=path.name, image_encoder_folder=None,
            local_files_only=True,
        )  # fmt: skip
    except Exception as error:
        raise CheckpointError(
            f"The IP-Adapter {source!r} does not fit {type(pipe).__name__} "
            f"({' '.join(str(error).split())[:200]}).",
            remedy="Give one that was trained for this model.",
        ) from error
    files.append(path)


def _tile(pipe: Any) -> None:
    network: Any = getattr(pipe, "vae", None)
    if not hasattr(network, "enable_tiling"):
        raise OptionError(
            f"{type(pipe).__name__} has no autoencoder that decodes in tiles.",
            remedy="Leave out --tiling.",
        )
    network.enable_tiling()
    if hasattr(network, "enable_slicing"):
        network.enable_slicing()
