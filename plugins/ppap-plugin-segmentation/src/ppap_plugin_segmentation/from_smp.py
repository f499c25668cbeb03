"""Loads models of segmentation-models-pytorch (smp), as its ``save_pretrained`` writes them."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ppap_host.files.checkpoints import foreign_names, renamed
from ppap_host.files.errors import CheckpointError
from ppap_host.files.models import ModelFolder, build
from ppap_host.guides.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preparation, accepted
from ppap_plugin_segmentation.files import LABELS, REMEDY, class_names, explained, three
from ppap_plugin_segmentation.model import Checkpoint, SegmentationNetwork

ALBUMENTATIONS = "albumentations_config_eval.json"
"""What smp calls the preprocessing that a model may be shared with."""

# OpenCV's numbers, which albumentations uses; its area filter averages, as antialiasing does.
_MODES = {1: "bilinear", 2: "bicubic", 3: "bilinear"}

# Arguments that reach timm's factory and say where weights are.
_ELSEWHERE = {
    "cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
}  # fmt: skip

_HALF = (0.5, 0.5, 0.5)
_DPN_MEAN = (124 / 255, 117 / 255, 104 / 255)
_DPN_STD = (1 / (0.0167 * 255),) * 3


def load_smp(folder: ModelFolder, config: Mapping[str, Any]) -> Checkpoint:
    """Loads a model of any of smp's architectures.

    Without a description of its preprocessing, it is that of its encoder's published weights.

    Args:
        folder: where it is.
        config: the content of its ``config.json``.

    Raises:
        CheckpointError: see :func:`~ppap_plugin_segmentation.checkpoint.load_checkpoint`.
    """
    name, remarks = folder.name, folder.remarks
    with explained(name):
        import segmentation_models_pytorch as smp

    kind = str(config["_model_class"])
    if kind not in {c.__name__ for c in smp.MODEL_ARCHITECTURES_MAPPING.values()}:
        raise CheckpointError(
            f"The model {name!r} is a {kind[:100]!r}, which segmentation-models-pytorch "
            f"{smp.__version__} does not know.",
            remedy="Update segmentation-models-pytorch, or give another --model.",
        )
    if config.get("in_channels", 3) != 3:
        raise CheckpointError(
            f"The model {name!r} takes {config['in_channels']} channels, an image has three.",
            remedy=REMEDY,
        )
    count = config.get("classes", 1)
    if not isinstance(count, int) or count < 1:
        raise CheckpointError(f"The model {name!r} has {count!r} classes.", remedy=REMEDY)
    _check_activation(name, config.get("activation"), count)
    model, encoder = _built(folder, getattr(smp, kind), config)
    described, named = folder.json(ALBUMENTATIONS), folder.find(LABELS)
    usual = encoders_own(encoder, str(config.get("encoder_weights") or ""))
    preparation = usual if described is None else read_albumentations(name, described, usual)
    if described is None or "Normalize" not in str(described):
        remarks.append(
            f"{name!r} does not say how images are normalised for it; it is taken to be as for its "
            f"encoder {encoder}: mean {_shown(usual.mean)}, deviation {_shown(usual.std)}."
        )
    stride = int(getattr(model.encoder, "output_stride", 32))
    preparation = replace(preparation, multiple_of=float(stride), rounding="up")
    network = SegmentationNetwork(model, _masks).float().eval().requires_grad_(False)
    preparation = accepted(network, preparation, name, remarks)
    labels = class_names(name, named, count)
    return Checkpoint(network, preparation, labels, folder.files, remarks=tuple(remarks))


def _built(folder: ModelFolder, kind: Any, config: Mapping[str, Any]) -> tuple[Any, str]:
    """The network with its weights, and what its encoder is called."""
    name = folder.name
    arguments = {k: v for k, v in config.items() if not k.startswith("_")}
    # Weights of the whole network follow, so none for the encoder are to be downloaded. Whatever
    # the activation, what it is applied to are the logits.
    arguments |= {"encoder_weights": None, "activation": None}
    elsewhere = sorted(key for key in arguments if key in _ELSEWHERE and arguments[key])
    usual = inspect.signature(kind).parameters["encoder_name"].default
    encoder = arguments.setdefault("encoder_name", usual)
    # "tu-hf-hub:owner/name" would be fetched.
    if elsewhere or not isinstance(encoder, str) or not re.fullmatch(r"[\w.-]+", encoder):
        what = elsewhere[0] if elsewhere else f"the encoder {str(encoder)[:100]!r}"
        raise CheckpointError(
            f"The config.json of {name!r} names something that is elsewhere ({what}); read are "
            "the weights beside it.",
            remedy="Take it out of the file, and name an encoder that smp has.",
        )
    arguments = {key: value for key, value in arguments.items() if key not in _ELSEWHERE}
    state = folder.weights()

    def make() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names of encoders that will be others one day
            made: nn.Module = kind(**arguments)
        return made

    with explained(name):
        model = build(make, state, name)
    state = renamed(state, model.state_dict(), folder.remarks)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = foreign_names(state, model.state_dict()) or " ".join(lines[:2])[:300]
        raise CheckpointError(
            f"The weights of the segmentation model {name!r} do not fit its config.json: {reason}",
            remedy="Save it again with segmentation-models-pytorch's save_pretrained. " + REMEDY,
        ) from error
    return model, encoder


def encoders_own(encoder: str, weights: str = "") -> Preparation:
    """What the published weights of an encoder want done to an image.

    smp keeps it on the hub, for its own encoders, and in timm, for those that begin with ``tu-``.
    The former is written down here: nothing is fetched for it.

    Args:
        encoder: its name in smp.
        weights: the name of its weights, such as "advprop"; "" for the usual ones.
    """
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    kind = encoder.removeprefix("timm-")
    if encoder.startswith("tu-") or _is_timms(encoder):
        from timm.models import get_pretrained_cfg

        timms = f"tf_{kind}" if "mobilenetv3" in kind and kind != encoder else kind
        try:
            cfg = get_pretrained_cfg(timms.removeprefix("tu-"))
        except RuntimeError:  # of a tag that it does not have
            cfg = None
        if cfg is not None:
            mean, std = three(cfg.mean), three(cfg.std)
    elif kind.startswith("dpn"):
        mean, std = _DPN_MEAN, _DPN_STD
    elif kind.startswith(("inception", "xception", "tf_efficientnet_lite")) or (
        kind.startswith("efficientnet") and weights == "advprop"
    ):
        mean, std = _HALF, _HALF
    return Preparation(mean=mean, std=std)


def _is_timms(encoder: str) -> bool:
    """Whether smp makes an encoder of this older name by timm."""
    own = ("timm-regnet", "timm-res2", "timm-resnest", "timm-mobilenetv3", "timm-gernet")
    return encoder.startswith(own)


def _shown(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers)


def _masks(output: Any) -> Tensor:
    """Masks alone: a model with a classification head returns its answer, too, after them."""
    masks: Tensor = output[0] if isinstance(output, tuple) else output
    return masks


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


def read_albumentations(name: str, stored: Any, usual: Preparation | None = None) -> Preparation:
    """The preprocessing in ``albumentations_config_eval.json``, which smp's models are shared with.

    Resizing, normalisation, and crops and padding, which are left out, are understood.

    Args:
        usual: where the numbers come from that it does not give; ImageNet's by default.

    Raises:
        CheckpointError: there is another transform in it.
    """
    found = usual or Preparation()
    try:
        steps: Sequence[Mapping[str, Any]] = stored["transform"]["transforms"]
        for step in steps:
            kind = str(step["__class_fullname__"]).rsplit(".", 1)[-1]
            if kind == "Resize":
                mode = _MODES[int(step.get("interpolation", 1))]
                found = replace(found, size=(int(step["height"]), int(step["width"])), mode=mode)
            elif kind == "SmallestMaxSize":
                mode = _MODES[int(step.get("interpolation", 1))]
                found = replace(found, shortest_edge=int(step["max_size"]), mode=mode)
            elif kind == "Normalize":
                if step.get("normalization", "standard") != "standard":
                    raise KeyError(step["normalization"])
                found = replace(
                    found,
                    scale=1 / float(step.get("max_pixel_value", 255)),
                    mean=three(step["mean"]),
                    std=three(step["std"]),
                )
            elif kind not in ("PadIfNeeded", "CenterCrop", "ToTensorV2"):
                raise KeyError(kind)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The {ALBUMENTATIONS} of the model {name!r} is not understood ({error}).",
            remedy="Write one with Resize and Normalize alone, or remove it: then the image keeps "
            "its size, and its encoder's mean and standard deviation are used.",
        ) from None
    return found
