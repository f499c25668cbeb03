"""Loads segmentation models and repeats their preprocessing differentiably.

Two public formats are read, both with safetensors weights: folders that ``save_pretrained`` of
segmentation-models-pytorch (smp) wrote, of any of its architectures, and transformers' models for
semantic segmentation. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Resampling
from torch import Tensor, nn
from torch.nn import functional as F

from ppap_host.errors import CheckpointError

_MODES = {Resampling.BICUBIC: "bicubic", Resampling.BILINEAR: "bilinear"}
# OpenCV's numbers, which albumentations uses; its area filter averages, as antialiasing does.
_CV_MODES = {1: "bilinear", 2: "bicubic", 3: "bilinear"}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ALBUMENTATIONS = "albumentations_config_eval.json"
_LABELS = "labels.json"
_REMEDY = (
    "Give --model a folder or hub name of a semantic segmentation model with safetensors weights: "
    "one saved by segmentation-models-pytorch's save_pretrained, or one for transformers such as "
    "nvidia/segformer-b0-finetuned-ade-512-512."
)


class SegmentationNetwork(nn.Module):
    """A segmentation model of either library as a plain function of pixels.

    Args:
        model: what turns pixels into logits, alone, first in a tuple, or as ``logits``.
        keyword: name of its argument; None passes the pixels by position.
    """

    def __init__(self, model: nn.Module, keyword: str | None = None) -> None:
        super().__init__()
        self.model = model
        self.keyword = keyword

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Logits of the classes, at the model's own resolution.

        A model with a single output, as smp's for binary masks, gets a second class that comes
        first, its background: the softmax of (0, z) is the sigmoid of z.
        """
        keyword = self.keyword
        output: Any = self.model(**{keyword: pixels}) if keyword else self.model(pixels)
        if hasattr(output, "logits"):
            output = output.logits
        elif isinstance(output, tuple):
            output = output[0]  # smp's models with a classification head: masks come first
        logits: Tensor = output
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits


@dataclass(frozen=True)
class Preparation:
    """What a checkpoint's preprocessing does to an image, in differentiable torch.

    Resizing antialiases. Bicubic overshoot is not clipped to the 8-bit range, since clipping would
    cut the gradient. Crops and padding are left out: the network is shown the whole picture and
    nothing else.

    Attributes:
        size: (height, width) asked for, None to keep the image's.
        shortest_edge: the shorter side asked for, in place of ``size``; the aspect ratio is kept.
        multiple_of: each side becomes the nearest multiple of this.
        mode: of torch's interpolation.
        scale: from the 8-bit range to what ``mean`` and ``std`` refer to, usually 1 / 255.
        swapped: whether the network wants blue first.
    """

    size: tuple[int, int] | None = None
    shortest_edge: int | None = None
    multiple_of: int = 1
    mode: str = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD
    swapped: bool = False

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the network is given for an image of this size."""
        if self.size is not None:
            height, width = self.size
        elif self.shortest_edge is not None:
            factor = self.shortest_edge / min(height, width)
            # Cut, not rounded, as transformers does it.
            height, width = int(factor * height), int(factor * width)
        m = self.multiple_of
        # A half goes up; Python's round would send 16 to 0 and 48 to 64 for m = 32.
        return max(m, (2 * height + m) // (2 * m) * m), max(m, (2 * width + m) // (2 * m) * m)

    def __call__(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Network input from RGB in [-1, 1]."""
        size = self.output_size(x.shape[-2], x.shape[-1])
        if size != tuple(x.shape[-2:]):
            x = F.interpolate(x, size, mode=self.mode, antialias=True)
        pixels = (x.flip(1) if self.swapped else x).add(1) * (127.5 * self.scale)
        mean, std = pixels.new_tensor(self.mean), pixels.new_tensor(self.std)
        return (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded segmentation model.

    Attributes:
        network: frozen, in evaluation mode.
        labels: names of the classes, in the order of the network's output.
        files: what was read.
    """

    network: SegmentationNetwork
    preparation: Preparation
    labels: tuple[str, ...]
    files: tuple[Path, ...]


def load_checkpoint(name: str) -> Checkpoint:
    """Loads a segmentation model, its preprocessing and the names of its classes.

    Args:
        name: a local folder or a hub name.

    Raises:
        CheckpointError: it cannot be found or downloaded, is no semantic segmentation model, has no
            safetensors weights, lacks weights, or its preprocessing is not understood.
    """
    looks_local = name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name
    folder = Path(name).expanduser()
    local = os.path.isdir(folder)  # Path.is_dir raises for names that are too long
    if looks_local and not local:
        raise CheckpointError(f"There is no model folder {name!r}.", remedy=_REMEDY)
    source = str(folder) if local else name
    with _explained(name):
        found = _fetched(source, "config.json")
    if found is None:
        raise CheckpointError(f"The model {name!r} has no config.json.", remedy=_REMEDY)
    config = _read_json(found, name)
    if not isinstance(config, dict) or not {"_model_class", "model_type"} & config.keys():
        raise CheckpointError(
            f"The config.json of the model {name!r} names neither an architecture of "
            "segmentation-models-pytorch (_model_class) nor one of transformers (model_type).",
            remedy=_REMEDY,
        )
    if "model_type" in config:
        return _load_transformers(name, source, local)
    return _load_smp(name, source, config)


# --- segmentation-models-pytorch


def _load_smp(name: str, source: str, config: Mapping[str, Any]) -> Checkpoint:
    import segmentation_models_pytorch as smp
    from safetensors.torch import load_file

    kind = str(config["_model_class"])
    if kind not in {c.__name__ for c in smp.MODEL_ARCHITECTURES_MAPPING.values()}:
        raise CheckpointError(
            f"The model {name!r} is a {kind!r}, which segmentation-models-pytorch "
            f"{smp.__version__} does not know.",
            remedy="Update segmentation-models-pytorch, or give another --model.",
        )
    if config.get("in_channels", 3) != 3:
        raise CheckpointError(
            f"The model {name!r} takes {config['in_channels']} channels, an image has three.",
            remedy=_REMEDY,
        )
    count = int(config.get("classes", 1))
    _check_activation(name, config.get("activation"), count)
    with _explained(name):
        weights = _fetched(source, "model.safetensors")
    if weights is None:
        raise CheckpointError(
            f"The model {name!r} has no model.safetensors; pickled weights are never opened.",
            remedy="Save it again with segmentation-models-pytorch's save_pretrained, which writes "
            "safetensors.",
        )
    # Weights of the whole network follow, so none for the encoder are to be downloaded. Whatever
    # the activation, what it is applied to are the logits.
    kwargs = {k: v for k, v in config.items() if not k.startswith("_")}
    kwargs |= {"encoder_weights": None, "activation": None}
    with _explained(name):
        model = getattr(smp, kind)(**kwargs)
        model.load_state_dict(load_file(weights))
    with _explained(name):
        described, named = _fetched(source, _ALBUMENTATIONS), _fetched(source, _LABELS)
    preparation = Preparation()
    if described is not None:
        preparation = read_albumentations(name, _read_json(described, name))
    stride = int(getattr(model.encoder, "output_stride", 32))
    labels = _class_names(name, None if named is None else _read_json(named, name), count)
    return Checkpoint(
        SegmentationNetwork(model).eval().requires_grad_(False),
        replace(preparation, multiple_of=stride),
        labels,
        tuple(sorted(p for p in (weights.parent / "config.json", weights, described, named) if p)),
    )


def _check_activation(name: str, activation: Any, count: int) -> None:
    """Refuses models whose outputs are no distribution over the classes."""
    fine = (None, "identity", "softmax", "softmax2d", "logsoftmax")
    if activation in fine or (activation == "sigmoid" and count == 1):
        return
    raise CheckpointError(
        f"The model {name!r} ends in {activation!r}: its {count} classes are not told apart pixel "
        "by pixel.",
        remedy="Use a model that was trained with cross entropy (activation null or softmax).",
    )


def _class_names(name: str, stored: Any, count: int) -> tuple[str, ...]:
    """Names from ``labels.json``: a list in the order of the classes, or {"0": name, ...}."""
    shown = 2 if count == 1 else count
    if stored is None:
        plain = [f"class {i}" for i in range(shown)]
        return ("background", "foreground") if count == 1 else tuple(plain)
    names = stored
    if isinstance(stored, dict):
        names = [stored.get(str(i)) for i in range(len(stored))]
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise CheckpointError(
            f"The {_LABELS} of the model {name!r} is no list of names.",
            remedy='Write a JSON list such as ["wall", "floor"], in the order of the classes.',
        )
    if count == 1 and len(names) == 1:
        names = ["background", *names]
    if len(names) != shown:
        raise CheckpointError(
            f"The {_LABELS} of the model {name!r} has {len(names)} names for {shown} classes.",
            remedy="Give one name for each class, in their order.",
        )
    return tuple(names)


def read_albumentations(name: str, stored: Any) -> Preparation:
    """The preprocessing in ``albumentations_config_eval.json``, which smp's models are shared with.

    Resizing, normalisation, and crops and padding, which are left out, are understood.

    Raises:
        CheckpointError: there is another transform in it.
    """
    found = Preparation()
    try:
        steps: Sequence[Mapping[str, Any]] = stored["transform"]["transforms"]
        for step in steps:
            kind = str(step["__class_fullname__"]).rsplit(".", 1)[-1]
            if kind == "Resize":
                mode = _CV_MODES[int(step.get("interpolation", 1))]
                found = replace(found, size=(int(step["height"]), int(step["width"])), mode=mode)
            elif kind == "SmallestMaxSize":
                mode = _CV_MODES[int(step.get("interpolation", 1))]
                found = replace(found, shortest_edge=int(step["max_size"]), mode=mode)
            elif kind == "Normalize":
                if step.get("normalization", "standard") != "standard":
                    raise KeyError(step["normalization"])
                found = replace(
                    found,
                    scale=1 / float(step.get("max_pixel_value", 255)),
                    mean=_three(step["mean"]),
                    std=_three(step["std"]),
                )
            elif kind not in ("PadIfNeeded", "CenterCrop", "ToTensorV2"):
                raise KeyError(kind)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The {_ALBUMENTATIONS} of the model {name!r} is not understood ({error}).",
            remedy="Write one with Resize and Normalize alone, or remove it: then the image keeps "
            "its size and ImageNet's mean and standard deviation are used.",
        ) from None
    return found


def _three(values: Any) -> tuple[float, ...]:
    numbers = tuple(float(v) for v in values)
    if len(numbers) != 3:
        raise ValueError(f"{len(numbers)} values for three channels")
    return numbers


# --- transformers


def _load_transformers(name: str, source: str, local: bool) -> Checkpoint:
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
    from transformers.utils import cached_file

    with _explained(name):
        config = AutoConfig.from_pretrained(source)
        with _quiet(local):
            model, report = AutoModelForSemanticSegmentation.from_pretrained(
                source, config=config, use_safetensors=True, dtype=torch.float32,
                output_loading_info=True,
            )  # fmt: skip
        processor = AutoImageProcessor.from_pretrained(source)
        found = cached_file(source, "config.json")
    if report["missing_keys"]:
        lost = sorted(report["missing_keys"])
        raise CheckpointError(
            f"The segmentation model {name!r} lacks {len(lost)} of its weights, such as "
            f"{lost[0]!r}.",
            remedy="It may be a backbone without its segmentation head. " + _REMEDY,
        )
    here = Path(found).parent
    files = [here / "config.json", here / "preprocessor_config.json", *here.glob("*.safetensors")]
    named = config.id2label
    return Checkpoint(
        SegmentationNetwork(model, "pixel_values").eval().requires_grad_(False),
        read_processor(name, processor),
        tuple(str(named[i]) for i in range(len(named))),
        tuple(sorted(file for file in files if file.exists())),
    )


def read_processor(name: str, processor: Any) -> Preparation:
    """The preprocessing that a transformers image processor is configured for.

    Raises:
        CheckpointError: it resizes in a way that is not understood.
    """
    found = Preparation()
    if getattr(processor, "do_resize", False):
        wanted = getattr(processor, "size", None) or {}
        height, width, edge = (_entry(wanted, k) for k in ("height", "width", "shortest_edge"))
        resample = getattr(processor, "resample", None)
        if not ((height and width) or edge) or resample not in _MODES:
            raise CheckpointError(
                f"The image processor {type(processor).__name__} of the model {name!r} resizes "
                f"to {wanted or 'no size'} with filter {resample}, which is not supported.",
                remedy="Use a model whose preprocessor_config.json gives a height and a width or a "
                "shortest edge, and bilinear or bicubic resampling.",
            )
        size = (height, width) if height and width else None
        found = replace(
            found,
            size=size,
            shortest_edge=None if size else edge,
            multiple_of=int(getattr(processor, "ensure_multiple_of", None) or 1),
            mode=_MODES[Resampling(resample)],
        )
    rescale = float(processor.rescale_factor) if getattr(processor, "do_rescale", True) else 1.0
    # MobileViT's processor has no mean; it only rescales.
    normalise = getattr(processor, "do_normalize", None) or False
    return replace(
        found,
        scale=rescale,
        mean=_three(processor.image_mean) if normalise else (0.0, 0.0, 0.0),
        std=_three(processor.image_std) if normalise else (1.0, 1.0, 1.0),
        swapped=bool(getattr(processor, "do_flip_channel_order", False)),
    )


def _entry(size: Any, side: str) -> int | None:
    value = size.get(side) if hasattr(size, "get") else getattr(size, side, None)
    return None if value is None else int(value)


# --- files


def _fetched(source: str, file: str) -> Path | None:
    """The file in a folder, or in the hub's cache after a download; None if there is none."""
    if os.path.isdir(source):
        path = Path(source) / file
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, file))
    except LocalEntryNotFoundError:
        # Derived from the other, but means no connection, not that there is no such file. What
        # may be absent is taken as absent.
        if file in (_ALBUMENTATIONS, _LABELS):
            return None
        raise
    except EntryNotFoundError:
        return None


def _read_json(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"The {path.name} of the model {name!r} is not readable JSON ({error}).",
            remedy="Save or download the model again.",
        ) from None


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns every way in which loading fails into a CheckpointError."""
    try:
        yield
    except Exception as error:
        # The libraries, their hub client and safetensors each have exceptions of their own;
        # whichever it was, this name does not give a model.
        lines = str(error).strip().splitlines() or [repr(error)]
        # torch names the weights that do not fit on the second line.
        reason = " ".join(line.strip() for line in lines[:2])
        reason = reason if len(reason) < 300 else reason[:300] + "..."
        raise CheckpointError(
            f"The segmentation model {name!r} cannot be loaded: {reason}", remedy=_REMEDY
        ) from error


@contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    """No progress bar for what takes no time; downloads keep theirs."""
    from transformers.utils import logging

    if not wanted or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
