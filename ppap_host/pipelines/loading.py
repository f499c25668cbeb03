"""Pipelines of diffusers from folders and the hub: which files are read, and what is added."""

from __future__ import annotations

import csv
import inspect
import math
import os
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline
from diffusers.loaders import ip_adapter as adapters
from diffusers.utils import MIN_PEFT_VERSION, USE_PEFT_BACKEND, is_transformers_available
from torch import nn

from ppap_host.files.checkpoints import read_state_dict
from ppap_host.files.errors import CheckpointError, OptionError, unknown_name
from ppap_host.files.models import (
    from_pretrained,
    local_folder,
    no_larger_than,
    own_path,
    quietly,
    read_json,
)
from ppap_host.pipelines.autoencoder import small_decoder
from ppap_host.pipelines.backbone import PipelineBackbone
from ppap_host.pipelines.families import family_named
from ppap_host.pipelines.networks import DTYPE, formats, read_network
from ppap_host.pipelines.steering import networks_of

_REMEDY = (
    "Give --checkpoint the hub name or the folder of a pipeline with safetensors weights, such as "
    "stable-diffusion-v1-5/stable-diffusion-v1-5."
)
OFFLOADS = ("none", "model", "sequential")
"""What of a pipeline waits in memory while it does not compute."""


def load(
    checkpoint: Any = None,
    lora: str = "",
    controlnet: str = "",
    ip_adapter: str = "",
    image_encoder: str = "",
    offload: str = "none",
    tiling: str = "",
    decoder: str = "",
    shrink: str = "1",
) -> PipelineBackbone:
    """The backbone of a pipeline in memory, on the hub or in a folder.

    Only safetensors are read, and no code that comes with a pipeline is run. Weights keep the
    number format of their files until they are moved.

    Args:
        checkpoint: hub name, folder with a ``model_index.json``, or a pipeline in memory, which
            stays as it is.
        lora: safetensors files of low-rank patches, separated by commas, each perhaps with its
            strength: ``style.safetensors:0.8``. One with a comma in it stands in double quotes.
        controlnet: hub name or folder of a control network; it is shown ``--image``, or
            ``control_image`` where the pipeline also starts from a picture.
        ip_adapter: safetensors file of an IP-Adapter, perhaps with its strength; the call takes
            ``ip_adapter_image``.
        image_encoder: hub name or folder of what sees the pictures of an IP-Adapter, where the
            pipeline has none and no folder of this name lies beside the file.
        offload: none, model or sequential.
        tiling: "yes" to decode large pictures in tiles and batches one by one.
        decoder: hub name or folder of an ``AutoencoderTiny`` for the same latents, such as TAESD,
            by which guides see the pictures; what is made is decoded by the pipeline's own.
        shrink: guides see pictures in 1 / shrink of their height and width.

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
                **{DTYPE: {"default": torch.float32} | formats(read)}, **left_out,
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
    _add_patches(pipe, lora, files, remarks)
    if ip_adapter:
        remarks += _add_adapter(pipe, ip_adapter, image_encoder, files)
    elif image_encoder:
        raise OptionError(
            "image_encoder is what sees the pictures of an IP-Adapter, and there is none.",
            remedy="Give its file with ip_adapter, or leave out image_encoder.",
        )
    if tiling:
        _tile(pipe)
    for part in networks_of(pipe):
        part.requires_grad_(False).eval()
    view: dict[str, Any] = {}
    if decoder:
        view["decoder"], read_too = small_decoder(decoder)
        view["decoder"].requires_grad_(False).eval()
        files += read_too
    if shrink != "1":
        if not shrink.isdecimal():
            raise OptionError(
                f"{shrink!r} is no whole number.", remedy="Give shrink=2 for half the resolution."
            )
        view["shrink"] = int(shrink)
    return PipelineBackbone(
        pipe, files, remarks, names=[checkpoint, lora], offload=offload, view=view
    )


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


def _with_control(pipe: Any, source: str, files: list[Path]) -> Any:
    """The relative of a pipeline that has a control network."""

    def kind_of(described: Mapping[str, Any]) -> Any:
        name = str(described.get("_class_name"))
        return getattr(diffusers, name, None) if "ControlNet" in name else None

    network, read = read_network(
        source, "control network", "Give a ControlNet in diffusers' format.", kind_of
    )
    try:
        made = AutoPipelineForText2Image.from_pipe(pipe, controlnet=network)
    # diffusers raises anything for a kind that it has no pipeline for.
    except Exception as error:
        raise CheckpointError(
            f"The control network {source!r} does not go with {type(pipe).__name__} "
            f"({' '.join(str(error).split())[:200]}).",
            remedy="Give one that was trained for this kind of model.",
        ) from error
    files += read
    return made


def _safetensors(text: str, what: str) -> Path:
    path = own_path(text)
    if path.suffix != ".safetensors" or not os.path.isfile(path):
        raise CheckpointError(
            f"{text!r} is no safetensors file of {what}.",
            remedy="Download it, and give its path; pickles are not read.",
        )
    return path


def _add_patches(pipe: Any, lora: str, files: list[Path], remarks: list[str]) -> None:
    """Low-rank patches, each with its strength."""
    names, strengths = [], []
    for number, text in enumerate(filter(None, next(csv.reader([lora]), []))):
        text, strength = _with_strength(text)
        path = _safetensors(text, "low-rank patches")
        if not hasattr(pipe, "load_lora_weights"):
            raise OptionError(
                f"{type(pipe).__name__} takes no low-rank patches.", remedy="Leave out --lora."
            )
        if not USE_PEFT_BACKEND:
            raise OptionError(
                f"diffusers reads low-rank patches with peft {MIN_PEFT_VERSION} or newer, which is "
                "not installed.",
                remedy="Install it with `pip install 'ppap-host[pipelines]'`.",
            )
        name, state = f"ppap-{number}", dict(read_state_dict(path))
        there = len({found[0] for key in state if (found := _PATCH.match(key))})
        try:
            with quietly(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # the one before
                pipe.load_lora_weights(state, adapter_name=name)
        except Exception as error:
            raise _does_not_fit(pipe, f"low-rank patches {text!r}", error) from error
        loaded = sum(
            _is_patched(module, name) for part in networks_of(pipe) for module in part.modules()
        )
        if not loaded:
            raise _does_not_fit(pipe, f"low-rank patches {text!r}", f"none of {there} has a layer")
        if loaded < there:
            remarks.append(
                f"Of the {there} low-rank patches in {text!r} only {loaded} have a layer in this "
                f"{type(pipe).__name__}; the others were left out."
            )
        names.append(name)
        strengths.append(strength)
        files.append(path)
    if names:
        pipe.set_adapters(names, strengths)


_PATCH = re.compile(r".*(?=lora[._](down|A)\.)|.*(?=(lokr_w1|hada_w1_a))")
"""The beginning of a key of each low-rank patch, however it is published."""


def _is_patched(module: nn.Module, name: str) -> bool:
    """Whether peft has put a patch of this name around a layer."""
    kinds = getattr(module, "adapter_layer_names", ())
    return any(name in getattr(module, kind, ()) for kind in kinds)


def _does_not_fit(pipe: Any, what: str, why: BaseException | str) -> CheckpointError:
    return CheckpointError(
        f"The {what} do not fit {type(pipe).__name__} ({' '.join(str(why).split())[:200]}).",
        remedy="Give what was trained for this model.",
    )


def _with_strength(text: str) -> tuple[str, float]:
    """A file, and the number behind its last colon; 1 where there is none."""
    path, colon, number = text.rpartition(":")
    try:
        found = (path, float(number)) if colon and path else (text, 1.0)
    except ValueError:
        return text, 1.0
    if not math.isfinite(found[1]):
        raise OptionError(
            f"{number!r} is no strength of {path!r}.", remedy="Give a number, such as 0.8."
        )
    return found


def _add_adapter(pipe: Any, source: str, encoder: str, files: list[Path]) -> list[str]:
    """An IP-Adapter with its strength and what sees its pictures; what there is to say of it."""
    source, strength = _with_strength(source)
    path = _safetensors(source, "an IP-Adapter")
    if not hasattr(pipe, "load_ip_adapter"):
        raise OptionError(
            f"{type(pipe).__name__} takes no IP-Adapter.", remedy="Leave out ip_adapter."
        )
    takes = inspect.signature(pipe.load_ip_adapter).parameters
    # What sees its pictures is read here, by the rules for all models.
    fetched = [name for name in takes if re.fullmatch("image_encoder_(folder|pretrained.*)", name)]
    beside = path.parent / "image_encoder"
    if encoder or (getattr(pipe, "image_encoder", None) is None and beside.is_dir()):
        _add_eye(pipe, encoder or str(beside), files)
    try:
        with quietly():
            pipe.load_ip_adapter(
                str(path.parent), subfolder="", weight_name=path.name, local_files_only=True,
                low_cpu_mem_usage=False,  # which would leave weights that are missing without any
                **dict.fromkeys(fetched),
            )  # fmt: skip
        pipe.set_ip_adapter_scale(strength)
    except Exception as error:
        raise _does_not_fit(pipe, f"layers of the IP-Adapter {source!r}", error) from error
    files.append(path)
    if getattr(pipe, "image_encoder", None) is None:
        return [
            f"Nothing that sees pictures came with the IP-Adapter {source!r}: the call takes "
            "ip_adapter_image_embeds; for ip_adapter_image give image_encoder=FOLDER."
        ]
    return []


def _add_eye(pipe: Any, source: str, files: list[Path]) -> None:
    """What sees the pictures of an IP-Adapter."""

    def kind_of(described: Mapping[str, Any]) -> Any:
        name = (described.get("architectures") or [""])[0]
        return getattr(adapters, name, None) if name in _EYES else None

    network, read = read_network(
        source, "image encoder", f"Give the folder of a {' or a '.join(_EYES)}.", kind_of
    )
    pipe.register_modules(image_encoder=network)
    if type(network).__name__ == _EYES[1] and getattr(pipe, "feature_extractor", None) is None:
        size = network.config.image_size
        processor = adapters.SiglipImageProcessor(size={"height": size, "width": size})
        pipe.register_modules(feature_extractor=processor)
    files += read


_EYES = ("CLIPVisionModelWithProjection", "SiglipVisionModel")


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
