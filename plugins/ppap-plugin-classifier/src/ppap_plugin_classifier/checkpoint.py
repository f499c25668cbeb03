"""Loads classifiers through timm and repeats their preprocessing differentiably."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from ppap_host.errors import CheckpointError, nearest
from ppap_plugin_classifier.labels import Labels

_MODES = {"bicubic": "bicubic", "bilinear": "bilinear", "lanczos": "bicubic", "random": "bilinear"}
_PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".tar", ".pkl", ".pickle")
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_REMEDY = (
    "Give --model the name of a timm classifier (resnet18.a1_in1k), a hub name (owner/name), a "
    "folder with config.json and model.safetensors, or ARCHITECTURE:weights.safetensors."
)


@dataclass(frozen=True)
class Preparation:
    """What a checkpoint expects to be done to an image, in differentiable torch.

    The whole picture is resized: timm's habit of cutting its border away (``crop_pct``) is left
    out, since a guide must see every pixel it steers. Overshoot is not clipped to the 8-bit range,
    since clipping would cut the gradient.

    Attributes:
        size: (height, width) the network was trained or last measured with.
        mode: of torch's interpolation, antialiased.
        mean, std: of each channel, for pixels in [0, 1].
    """

    size: tuple[int, int]
    mode: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Network input from RGB in [-1, 1]."""
        if tuple(x.shape[-2:]) != self.size:
            x = F.interpolate(x, self.size, mode=self.mode, antialias=True)
        # One multiplication and one addition: exact where mean and deviation are a half.
        factor = [0.5 / s for s in self.std]
        offset = [(0.5 - m) / s for m, s in zip(self.mean, self.std, strict=True)]
        return x * x.new_tensor(factor).view(3, 1, 1) + x.new_tensor(offset).view(3, 1, 1)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded classifier.

    Attributes:
        network: frozen, in evaluation mode; prepared pixels to logits.
        labels: as many as the network has classes.
        files: what was read.
    """

    network: nn.Module
    preparation: Preparation
    labels: Labels
    files: tuple[Path, ...]


@dataclass(frozen=True)
class _Source:
    """What is to be built, before anything is."""

    architecture: str
    arguments: Mapping[str, Any]
    pretrained_cfg: Mapping[str, Any]
    weights: Path
    files: tuple[Path, ...]


def load_checkpoint(name: str) -> Checkpoint:
    """Loads a classifier, its labels and its preprocessing; never unpickles anything.

    Args:
        name: one of

            - a local folder in timm's hub format, ``config.json`` and ``model.safetensors``, also
              written ``local-dir:FOLDER``;
            - a ``.safetensors`` file with a ``config.json`` beside it;
            - ``ARCHITECTURE:FILE.safetensors``: weights for an architecture of timm with its usual
              preprocessing; the number of classes is that of the file, the labels are ImageNet's
              where it has as many, else numbers;
            - a hub name, ``owner/name`` or ``hf-hub:owner/name``, optionally ``@revision``;
            - the name of a pretrained model of timm, with or without its tag.

    Raises:
        CheckpointError: it cannot be found or downloaded, is no classifier of RGB images, has no
            safetensors weights, or these do not fit.
    """
    prefix, _, rest = name.partition(":")
    if prefix in ("hf-hub", "hf_hub") and rest:
        return _built(name, _from_hub(name, rest))
    if prefix == "local-dir" and rest:
        return _built(name, _from_folder(name, Path(rest).expanduser()))
    local = Path(name).expanduser()
    if os.path.isdir(local):  # Path.is_dir raises for names that are too long
        return _built(name, _from_folder(name, local))
    if name.lower().endswith(_PICKLES):
        raise CheckpointError(
            f"The model file {name!r} is a pickle, which may run any program when it is read.",
            remedy="Convert it where you trust it: safetensors.torch.save_file(torch.load(FILE, "
            "weights_only=True), 'model.safetensors'); then give ARCHITECTURE:model.safetensors.",
        )
    if name.lower().endswith(".safetensors"):
        # "C:\weights.safetensors" is a file of Windows, not one of the architecture C.
        if rest and len(prefix) > 1 and not os.path.exists(local):
            return _built(name, _from_file(name, prefix, Path(rest).expanduser()))
        return _built(name, _from_folder(name, local.parent, local.name))
    looks_local = name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name
    if looks_local:
        raise CheckpointError(f"There is no model folder {name!r}.", remedy=_REMEDY)
    if "/" in name:
        return _built(name, _from_hub(name, name))
    return _built(name, _from_timm(name))


def _from_folder(name: str, folder: Path, weights: str = "") -> _Source:
    """A folder in timm's format, or one file of it."""
    path = folder / (weights or _WEIGHTS)
    if not folder.is_dir() or (weights and not path.is_file()):
        kind = "file" if weights else "folder"
        raise CheckpointError(f"There is no model {kind} {name!r}.", remedy=_REMEDY)
    if not (folder / _CONFIG).is_file():
        raise CheckpointError(
            f"There is no {_CONFIG} in {str(folder)!r}.",
            remedy="It says which architecture the weights are for. Without one, write "
            "ARCHITECTURE:FILE.safetensors, such as resnet18:model.safetensors.",
        )
    if not path.is_file():
        others = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
        found = f" Its {others[0]} is a pickle, which is never read." if others else ""
        raise CheckpointError(
            f"There is no {_WEIGHTS} in {str(folder)!r}.{found}",
            remedy="Save the weights with safetensors.torch.save_file.",
        )
    return _described(name, folder / _CONFIG, path)


def _described(name: str, config: Path, weights: Path) -> _Source:
    """Reads a timm ``config.json``, also of the older flat kind."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        architecture = content["architecture"]
        cfg = dict(content.get("pretrained_cfg") or content)
        arguments = dict(content.get("model_args") or {})
        classes = int(content.get("num_classes", cfg.get("num_classes", 0)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"The file {str(config)!r} does not describe a timm model ({error!r}).",
            remedy="It needs at least an architecture and num_classes, as timm writes them.",
        ) from None
    cfg["num_classes"] = arguments["num_classes"] = classes
    for key, older in (("label_names", "labels"), ("label_descriptions", "")):
        cfg[key] = content.get(key, cfg.get(key, cfg.get(older)))
    _check_known(name, architecture)
    return _Source(architecture, arguments, cfg, weights, (config, weights))


def _from_file(name: str, architecture: str, weights: Path) -> _Source:
    """Weights alone, for an architecture with its usual preprocessing."""
    _check_known(name, architecture)
    if not weights.is_file():
        raise CheckpointError(f"There is no model file {str(weights)!r}.", remedy=_REMEDY)
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
    return _Source(architecture, {"num_classes": shape[0]}, cfg, weights, (weights,))


def _from_timm(name: str) -> _Source:
    """A pretrained model by the name timm gives it; its weights come from the hub."""
    _check_known(name, name)
    from timm.models import get_pretrained_cfg, list_pretrained

    architecture, _, tag = name.partition(".")
    try:
        cfg = _timm_cfg(name, get_pretrained_cfg(name, allow_unregistered=False))
    except RuntimeError:
        tags = [n for n in list_pretrained(f"{architecture}.*") if n != name]
        raise CheckpointError(
            f"timm has no pretrained weights {tag!r} for {architecture}.",
            remedy=f"It has: {', '.join(tags)}." if tags else _REMEDY,
        ) from None
    if not cfg.get("hf_hub_id"):
        raise CheckpointError(
            f"timm has no pretrained weights for {name} on the hub.",
            remedy=f"Give weights of your own: {architecture}:FILE.safetensors.",
        )
    _check_classes(name, cfg)  # before anything is downloaded
    filename = str(cfg.get("hf_hub_filename") or "")
    weights = filename if filename.endswith(".safetensors") else _WEIGHTS
    path = _download(name, cfg["hf_hub_id"], weights)
    return _Source(architecture, {}, cfg, path, (path,))


def _from_hub(name: str, repository: str) -> _Source:
    config = _download(name, repository, _CONFIG)
    return _described(name, config, _download(name, repository, _WEIGHTS))


def _download(name: str, repository: str, filename: str) -> Path:
    """One file of a hub repository, from the cache where it is there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    repository, _, revision = repository.partition("@")
    try:
        return Path(hf_hub_download(repository, filename, revision=revision or None))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"The classifier {name!r} is not on this machine and the hub cannot be reached.",
            remedy="Connect to the internet, unset HF_HUB_OFFLINE, or give a local folder.",
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no model {repository!r} on the hub, or it is private.", remedy=_REMEDY
        ) from error
    except HFValidationError as error:
        raise CheckpointError(f"{name!r} is no name of a hub model.", remedy=_REMEDY) from error
    except EntryNotFoundError as error:
        raise CheckpointError(
            f"The hub model {repository!r} has no {filename}.",
            remedy="Only timm models with safetensors weights are read. " + _REMEDY,
        ) from error
    except Exception as error:  # gated models, broken connections, a full disk ...
        raise CheckpointError(
            f"The classifier {name!r} cannot be downloaded: {_first_line(error)}", remedy=_REMEDY
        ) from error


def _check_known(name: str, architecture: object) -> None:
    from timm.models import is_model, list_models

    if isinstance(architecture, str) and is_model(architecture):
        return
    known = str(architecture).partition(".")[0]
    close = nearest(known, list_models())
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    whose = "" if architecture == name else f" (for {name!r})"
    raise CheckpointError(
        f"timm knows no architecture {architecture!r}{whose}.", remedy=hint + _REMEDY
    )


def _check_classes(name: str, cfg: Mapping[str, Any]) -> None:
    if int(cfg.get("num_classes") or 0) < 1:
        raise CheckpointError(
            f"The model {name!r} has no classes: it is a backbone, not a classifier.",
            remedy=_REMEDY,
        )


def _timm_cfg(name: str, cfg: Any) -> dict[str, Any]:
    if cfg is None:
        raise CheckpointError(f"timm has no configuration for {name!r}.", remedy=_REMEDY)
    return dict(cfg.to_dict())


def _shapes(name: str, weights: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(weights, "pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"The weights {str(weights)!r} of {name!r} are damaged ({_first_line(error)}).",
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

    ``lanczos`` becomes bicubic, torch's nearest, and ``random`` bilinear, one of the two it chooses
    from.

    Raises:
        CheckpointError: it resizes in another way, or is not for RGB images.
    """
    channels, height, width = cfg.get("input_size") or (3, 224, 224)
    mode = _MODES.get(cfg.get("interpolation") or "bilinear")
    mean, std = cfg.get("mean") or (0.485, 0.456, 0.406), cfg.get("std") or (0.229, 0.224, 0.225)
    if channels != 3 or len(mean) != 3 or len(std) != 3:
        raise CheckpointError(
            f"The model {name!r} takes images of {channels} channels; guides see RGB.",
            remedy="Use a model for colour images.",
        )
    if mode is None:
        raise CheckpointError(
            f"The model {name!r} resizes by {cfg.get('interpolation')!r}, which is not supported.",
            remedy="Set interpolation in its config.json to bicubic or bilinear.",
        )
    return Preparation((int(height), int(width)), mode, tuple(mean), tuple(std))


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


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else repr(error)
