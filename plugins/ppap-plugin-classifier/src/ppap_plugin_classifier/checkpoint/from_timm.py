"""Classifiers of timm: by name, as a folder, or weights alone for one of its architectures."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ppap_host.files.errors import CheckpointError, nearest
from ppap_host.guides.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preparation, torch_mode
from ppap_plugin_classifier.checkpoint.files import (
    REMEDY,
    WEIGHTS,
    Checkpoint,
    download,
    first_line,
    undescribed,
)
from ppap_plugin_classifier.labels import Labels


@dataclass(frozen=True)
class _Source:
    """What is to be built, before anything is."""

    architecture: str
    arguments: Mapping[str, Any]
    pretrained_cfg: Mapping[str, Any]
    weights: Path
    files: tuple[Path, ...]


def load_described(name: str, path: Path, config: Mapping[str, Any], weights: Path) -> Checkpoint:
    """A model with timm's ``config.json``, also of the older flat kind.

    Args:
        name: what the user wrote, for messages.
        path, config: the file and what is in it.
        weights: a safetensors file.

    Raises:
        CheckpointError: it is no classifier of RGB images, or its weights do not fit.
    """
    try:
        architecture = config["architecture"]
        cfg = dict(config.get("pretrained_cfg") or config)
        arguments = dict(config.get("model_args") or {})
        classes = int(config.get("num_classes", cfg.get("num_classes", 0)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise undescribed(path, error) from None
    cfg["num_classes"] = arguments["num_classes"] = classes
    for key, older in (("label_names", "labels"), ("label_descriptions", "")):
        cfg[key] = config.get(key, cfg.get(key, cfg.get(older)))
    _check_known(name, architecture)
    return _built(name, _Source(architecture, arguments, cfg, weights, (path, weights)))


def load_file(name: str, architecture: str, weights: Path) -> Checkpoint:
    """Weights alone, for an architecture with its usual preprocessing.

    Raises:
        CheckpointError: timm has no such architecture, or the weights do not fit it.
    """
    _check_known(name, architecture)
    if not weights.is_file():
        raise CheckpointError(f"There is no model file {str(weights)!r}.", remedy=REMEDY)
    from timm.models import get_pretrained_cfg

    cfg = _timm_cfg(name, get_pretrained_cfg(architecture))
    head = cfg.get("classifier")
    last = head if isinstance(head, str) else (head or ["?"])[0]
    shapes = _shapes(name, weights)
    shape = shapes.get(f"{last}.weight")
    if not shape:
        raise CheckpointError(
            f"The weights {str(weights)!r} lack the classifier {last + '.weight'!r} of "
            f"{architecture}.",
            remedy="It may be a backbone without its head, or another architecture.",
        )
    cfg["num_classes"] = shape[0]
    arguments = {"num_classes": shape[0]}
    return _built(name, _Source(architecture, arguments, cfg, weights, (weights,)))


def load_pretrained(name: str) -> Checkpoint:
    """A pretrained model by the name timm gives it; its weights come from the hub.

    Raises:
        CheckpointError: timm has no such model or no weights for it, or they cannot be had.
    """
    _check_known(name, name)
    from timm.models import get_pretrained_cfg, list_pretrained

    architecture, _, tag = name.partition(".")
    try:
        cfg = _timm_cfg(name, get_pretrained_cfg(name, allow_unregistered=False))
    except RuntimeError:
        tags = [n for n in list_pretrained(f"{architecture}.*") if n != name]
        raise CheckpointError(
            f"timm has no pretrained weights {tag!r} for {architecture}.",
            remedy=f"It has: {', '.join(tags)}." if tags else REMEDY,
        ) from None
    if not cfg.get("hf_hub_id"):
        raise CheckpointError(
            f"timm has no pretrained weights for {name} on the hub.",
            remedy=f"Give weights of your own: {architecture}:FILE.safetensors.",
        )
    _check_classes(name, cfg)  # before anything is downloaded
    filename = str(cfg.get("hf_hub_filename") or "")
    weights = filename if filename.endswith(".safetensors") else WEIGHTS
    path = download(name, cfg["hf_hub_id"], weights)
    return _built(name, _Source(architecture, {}, cfg, path, (path,)))


def _check_known(name: str, architecture: object) -> None:
    from timm.models import is_model, list_models

    if isinstance(architecture, str) and is_model(architecture):
        return
    known = str(architecture).partition(".")[0]
    close = nearest(known, list_models())
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    whose = "" if architecture == name else f" (for {name!r})"
    raise CheckpointError(
        f"timm knows no architecture {architecture!r}{whose}.", remedy=hint + REMEDY
    )


def _check_classes(name: str, cfg: Mapping[str, Any]) -> None:
    if int(cfg.get("num_classes") or 0) < 1:
        raise CheckpointError(
            f"The model {name!r} has no classes: it is a backbone, not a classifier.",
            remedy=REMEDY,
        )


def _timm_cfg(name: str, cfg: Any) -> dict[str, Any]:
    if cfg is None:
        raise CheckpointError(f"timm has no configuration for {name!r}.", remedy=REMEDY)
    return dict(cfg.to_dict())


def _shapes(name: str, weights: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(weights, "pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"The weights {str(weights)!r} of {name!r} are damaged ({first_line(error)}).",
            remedy="Download or save them again.",
        ) from None


def _built(name: str, source: _Source) -> Checkpoint:
    """The network with its weights, every one of them."""
    import timm

    _check_classes(name, source.pretrained_cfg)
    _shapes(name, source.weights)  # says so when the file is damaged
    preparation = read_preparation(name, source.pretrained_cfg)
    labels = read_labels(name, source.pretrained_cfg)
    cfg = {k: v for k, v in source.pretrained_cfg.items() if k in _cfg_fields()}
    # By file, in timm's own way, which also renames what older checkpoints call differently.
    cfg |= {"architecture": source.architecture, "file": str(source.weights), "custom_load": False}
    cfg |= {"hf_hub_id": None, "hf_hub_filename": None, "url": "", "source": None}
    cfg |= {"state_dict": None}
    timm_log = logging.getLogger("timm")
    level = timm_log.level
    timm_log.setLevel(logging.ERROR)
    try:
        network = timm.create_model(
            source.architecture, pretrained=True, pretrained_cfg=cfg, **source.arguments
        )
    except Exception as error:
        # timm and torch raise RuntimeError, TypeError, KeyError ... for what does not fit.
        raise _misfit(name, source, error) from error
    finally:
        timm_log.setLevel(level)
    return Checkpoint(
        network.float().eval().requires_grad_(False), preparation, labels, source.files
    )


def _misfit(name: str, source: _Source, error: Exception) -> CheckpointError:
    """What torch's complaint about the weights means."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    reason = next((line for line in lines if "key(s)" in line or "mismatch" in line), lines[0])
    if len(reason) > 300:
        reason = reason[:300] + " ..."
    head = source.pretrained_cfg.get("classifier")
    heads = (head,) if isinstance(head, str) else tuple(head or ())
    for last in heads:
        shape = _shapes(name, source.weights).get(f"{last}.weight")
        if shape and shape[0] != source.pretrained_cfg["num_classes"]:
            return CheckpointError(
                f"The weights of {name!r} are for {shape[0]} classes, its configuration says "
                f"{source.pretrained_cfg['num_classes']}.",
                remedy="Set num_classes and label_names in config.json to those of the weights.",
            )
    what = "lack some of its weights" if "Missing key(s)" in reason else "do not fit"
    return CheckpointError(
        f"The weights of {name!r} {what} as {source.architecture}: {reason}",
        remedy="They may be a backbone's without its head, or another architecture's; check "
        "architecture and model_args in config.json.",
    )


def _cfg_fields() -> set[str]:
    from dataclasses import fields

    from timm.models import PretrainedCfg

    return {field.name for field in fields(PretrainedCfg)} - {"label_names", "label_descriptions"}


def read_preparation(name: str, cfg: Mapping[str, Any]) -> Preparation:
    """The preprocessing that a timm ``pretrained_cfg`` asks for.

    The picture is squashed into the network's size: timm's habit of cutting its border away
    (``crop_pct``) is left out. ``lanczos`` becomes bicubic, torch's nearest, and ``random``
    bilinear, one of the two it chooses from.

    Raises:
        CheckpointError: it resizes in another way, or is not for RGB images.
    """
    channels, height, width = cfg.get("input_size") or (3, 224, 224)
    resample = cfg.get("interpolation") or "bilinear"
    mode = "bilinear" if resample == "random" else torch_mode(resample)
    mean, std = tuple(cfg.get("mean") or IMAGENET_MEAN), tuple(cfg.get("std") or IMAGENET_STD)
    if channels != 3 or len(mean) != 3 or len(std) != 3:
        raise CheckpointError(
            f"The model {name!r} takes images of {channels} channels; guides see RGB.",
            remedy="Use a model for colour images.",
        )
    if mode is None:
        raise CheckpointError(
            f"The model {name!r} resizes by {resample!r}, which is not supported.",
            remedy="Set interpolation in its config.json to bicubic or bilinear.",
        )
    return Preparation(size=(int(height), int(width)), mode=mode, mean=mean, std=std)


def read_labels(name: str, cfg: Mapping[str, Any]) -> Labels:
    """The names of the classes: the configuration's own, else ImageNet's, else numbers.

    Which ImageNet it is, timm tells by the number of classes.

    Raises:
        CheckpointError: it names more or fewer classes than it has.
    """
    classes = int(cfg["num_classes"])
    own: Any = cfg.get("label_names")
    if own:
        by_index = {int(k): str(v) for k, v in own.items()} if isinstance(own, Mapping) else None
        if by_index is not None and all(0 <= k < classes for k in by_index):
            own = [by_index.get(k, f"class {k}") for k in range(classes)]
        if isinstance(own, Mapping) or len(own) != classes:
            raise CheckpointError(
                f"The model {name!r} has {classes} classes but {len(own)} label_names.",
                remedy="Mend label_names in its config.json.",
            )
        keys: Sequence[str] = [str(k) for k in own]
        described: Mapping[str, str] = cfg.get("label_descriptions") or {}
        return Labels([described.get(k, k) for k in keys], keys) if described else Labels(keys)

    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": classes})
    if subset is None:
        return Labels.numbered(classes)
    info = ImageNetInfo(subset)
    return Labels(
        info.label_descriptions(), info.label_names(), info.label_descriptions(detailed=True)
    )
