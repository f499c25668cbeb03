"""Loads models of segmentation-models-pytorch (smp), as its ``save_pretrained`` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ppap_host.files.errors import CheckpointError
from ppap_plugin_segmentation.files import (
    ALBUMENTATIONS,
    LABELS,
    REMEDY,
    class_names,
    explained,
    fetched,
    read_json,
    three,
)
from ppap_plugin_segmentation.model import Checkpoint, Preparation, SegmentationNetwork

# OpenCV's numbers, which albumentations uses; its area filter averages, as antialiasing does.
_MODES = {1: "bilinear", 2: "bicubic", 3: "bilinear"}


def load_smp(name: str, source: str, config: Mapping[str, Any]) -> Checkpoint:
    """Loads a model of any of smp's architectures.

    Args:
        name: as the user gave it.
        source: a local folder or a hub name.
        config: the content of its ``config.json``.

    Raises:
        CheckpointError: see :func:`~ppap_plugin_segmentation.checkpoint.load_checkpoint`.
    """
    with explained(name):
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
            remedy=REMEDY,
        )
    count = int(config.get("classes", 1))
    _check_activation(name, config.get("activation"), count)
    with explained(name):
        weights = fetched(source, "model.safetensors")
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
    with explained(name):
        model = getattr(smp, kind)(**kwargs)
        model.load_state_dict(load_file(weights))
    with explained(name):
        described, named = fetched(source, ALBUMENTATIONS), fetched(source, LABELS)
    preparation = Preparation()
    if described is not None:
        preparation = read_albumentations(name, read_json(described, name))
    stride = int(getattr(model.encoder, "output_stride", 32))
    return Checkpoint(
        SegmentationNetwork(model, _masks).eval().requires_grad_(False),
        replace(preparation, multiple_of=stride),
        class_names(name, named, count),
        tuple(sorted(p for p in (weights.parent / "config.json", weights, described, named) if p)),
    )


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
            "its size and ImageNet's mean and standard deviation are used.",
        ) from None
    return found
