"""Classifiers of timm: by name, as a folder, or weights alone for one of its architectures."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ppap_host.files.checkpoints import foreign_names, read_state_dict, renamed
from ppap_host.files.errors import CheckpointError, nearest
from ppap_host.files.models import CONFIG, WEIGHTS, ModelFolder, build
from ppap_host.guides.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preparation, torch_mode
from ppap_plugin_classifier.checkpoint.files import REMEDY, Checkpoint, finished

_PREFIX = "timm_model."
"""What transformers puts before the names of a model of timm that it has wrapped."""

# Arguments of timm's factory that say where weights are, or make something else of the network.
_NOT_OF_NETWORKS = {
    "cache_dir", "checkpoint_path", "exportable", "features_only", "in_chans", "no_jit",
    "num_classes", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
    "pretrained_model_args", "pretrained_strict", "scriptable",
}  # fmt: skip


@dataclass(frozen=True)
class _Source:
    """What is to be built, before anything is."""

    name: str
    architecture: str
    arguments: Mapping[str, Any]
    cfg: Mapping[str, Any]
    state: dict[str, Tensor]
    files: tuple[Path, ...]
    remarks: list[str]
    problem: object = None
    may_resize: bool = False


def load_described(
    folder: ModelFolder, config: Mapping[str, Any], weights: Path | None = None
) -> Checkpoint:
    """A model with timm's ``config.json``, also of the older flat kind.

    Args:
        config: what is in it.
        weights: a file that was asked for in place of the folder's.

    Raises:
        CheckpointError: it is no classifier of RGB images, or its weights do not fit.
    """
    name, remarks = folder.name, folder.remarks
    try:
        cfg = dict(config.get("pretrained_cfg") or config)
        given = dict(config.get("model_args") or {})
        classes = config.get("num_classes", cfg.get("num_classes", 0))
        if not isinstance(classes, int) or not isinstance(config.get("architecture"), str):
            raise TypeError("it has no architecture, or num_classes is no number")
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"The {CONFIG} of {name!r} does not describe a model of timm or transformers "
            f"({error}).",
            remedy="It needs an architecture and num_classes, as timm writes them, or "
            "architectures and a model_type, as transformers does.",
        ) from None
    architecture = _current(name, config.get("architecture"), remarks)
    arguments = _of_network(name, given)
    cfg["num_classes"] = arguments["num_classes"] = classes
    for key, older in (("label_names", "labels"), ("label_descriptions", "")):
        cfg[key] = config.get(key, cfg.get(key, cfg.get(older)))
    _check_classes(name, cfg)
    state = folder.weights() if weights is None else read_state_dict(weights, remarks)
    files = folder.files if weights is None else (*folder.files, weights)
    problem = config.get("problem_type", cfg.get("problem_type"))
    return _built(_Source(name, architecture, arguments, cfg, state, files, remarks, problem))


def load_file(name: str, architecture: str, weights: Path) -> Checkpoint:
    """Weights alone, for an architecture with its usual preprocessing.

    Raises:
        CheckpointError: timm has no such architecture, or the weights do not fit it.
    """
    remarks: list[str] = []
    architecture = _current(name, architecture, remarks)
    if not weights.is_file():
        raise CheckpointError(f"There is no model file {str(weights)!r}.", remedy=REMEDY)
    from timm.models import get_pretrained_cfg

    cfg = _timm_cfg(name, get_pretrained_cfg(architecture))
    source = _Source(
        name, architecture.partition(".")[0], {}, cfg, read_state_dict(weights, remarks),
        (weights,), remarks, may_resize=True,
    )  # fmt: skip
    source = _named_alike(source)
    heads = _heads(cfg)
    shapes = {key: tuple(tensor.shape) for key, tensor in source.state.items()}
    shape = next((shapes[f"{h}.weight"] for h in heads if shapes.get(f"{h}.weight")), None)
    if shape is None:
        head = f"{(heads or ['?'])[0]}.weight"
        alike = [k for k in shapes if re.search(r"(fc|head|classifier)\.weight$", k)]
        foreign = foreign_names(shapes, _names(source))
        if not foreign and alike:
            foreign = f"They have {', '.join(map(repr, alike[:3]))}."
        raise CheckpointError(
            f"The weights {str(weights)!r} lack the classifier {head!r} of {architecture}. "
            f"{foreign}".strip(),
            remedy="It may be a backbone without its head, or another architecture.",
        )
    arguments = {"num_classes": shape[0]}
    return _built(replace(source, cfg=dict(cfg) | arguments, arguments=arguments))


def load_pretrained(name: str) -> Checkpoint:
    """A pretrained model by the name timm gives it; its weights come from the hub.

    Raises:
        CheckpointError: timm has no such model or no weights for it, or they cannot be had.
    """
    remarks: list[str] = []
    current = _current(name, name, remarks)
    from timm.models import get_pretrained_cfg, list_pretrained

    architecture, _, tag = current.partition(".")
    try:
        cfg = _timm_cfg(name, get_pretrained_cfg(current, allow_unregistered=False))
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
    folder = ModelFolder(str(cfg["hf_hub_id"]), "classifier", REMEDY)
    folder.name = name
    state = read_state_dict(folder.need(weights), remarks)
    return _built(_Source(name, architecture, {}, cfg, state, folder.files, remarks))


def _current(name: str, architecture: object, remarks: list[str]) -> str:
    """The name that timm has for an architecture by now."""
    from timm.models import get_deprecated_models, is_model, list_models

    if isinstance(architecture, str) and is_model(architecture):
        old, _, tag = architecture.partition(".")
        if old not in get_deprecated_models():
            return architecture
        now = get_deprecated_models()[old]
        if now is not None:
            remarks.append(f"timm calls {old!r} {now!r} by now.")
            return f"{now.partition('.')[0]}.{tag}" if tag else now
        raise CheckpointError(
            f"timm has removed the architecture {old!r} (for {name!r}).", remedy=REMEDY
        )
    known = str(architecture).partition(".")[0][:100]
    close = nearest(known, list_models())
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    whose = "" if architecture == name else f" (for {name!r})"
    raise CheckpointError(
        f"timm knows no architecture {str(architecture)[:100]!r}{whose}.", remedy=hint + REMEDY
    )


def _of_network(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments without those that do not describe a network.

    Raises:
        CheckpointError: they name weights that are elsewhere.
    """
    elsewhere = sorted(
        key
        for key, value in arguments.items()
        if value and key in ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")
    )
    if elsewhere:
        raise CheckpointError(
            f"The model_args of {name!r} name weights that are elsewhere ({elsewhere[0]}); read "
            "are those beside it.",
            remedy=f"Take {elsewhere[0]} out of its {CONFIG}.",
        )
    if arguments.get("in_chans") not in (None, 3):
        raise CheckpointError(
            f"The model {name!r} takes images of {arguments['in_chans']} channels; guides see RGB.",
            remedy="Use a model for colour images.",
        )
    return {k: v for k, v in arguments.items() if k not in _NOT_OF_NETWORKS}


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


def _heads(cfg: Mapping[str, Any]) -> list[str]:
    head = cfg.get("classifier")
    return [head] if isinstance(head, str) else [str(part) for part in head or ()]


def _made(source: _Source, **more: Any) -> nn.Module:
    """The network as timm initialises it, or with weights that are among its arguments."""
    import timm

    with _without_remarks():
        arguments = dict(source.arguments) | more
        network: nn.Module = timm.create_model(source.architecture, **arguments)
    return network


@contextmanager
def _without_remarks() -> Iterator[None]:
    """What is wrong is raised, and what was renamed is told by other means."""
    log = logging.getLogger("timm")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _names(source: _Source) -> list[str]:
    """What the network calls its tensors."""
    try:
        made = build(lambda: _made(source, pretrained=False), source.state, source.name)
        return list(made.state_dict())
    except CheckpointError:
        raise
    except Exception as error:
        # timm and torch raise RuntimeError, TypeError, KeyError ... for what does not fit.
        raise _misfit(source, error) from error


def _named_alike(source: _Source) -> _Source:
    """The source with its tensors under the network's names, as far as wrappers go."""
    bare = {key.removeprefix(_PREFIX): tensor for key, tensor in source.state.items()}
    return replace(source, state=renamed(bare, _names(source), source.remarks))


def _built(source: _Source) -> Checkpoint:
    """The network with its weights, every one of them."""
    name, cfg, classes = source.name, source.cfg, int(source.cfg["num_classes"])
    _check_classes(name, cfg)
    names, keys = read_names(name, cfg)
    preparation = read_preparation(name, cfg)
    _check_head(source)
    source = _named_alike(source)
    network = _with_weights(source)
    other = _resampled(source, network)
    if other:
        source, preparation = _at_its_size(source, preparation, other)
        network = _with_weights(source)
        if other := _resampled(source, network):
            raise _other_size(source, other)
    return finished(
        name, network, preparation, names, source.files, classes=classes, keys=keys,
        problem=source.problem, remarks=source.remarks,
    )  # fmt: skip


def _with_weights(source: _Source) -> nn.Module:
    from timm.models import PretrainedCfg

    fields = set(PretrainedCfg.__dataclass_fields__) - {"label_names", "label_descriptions"}
    cfg = {k: v for k, v in source.cfg.items() if k in fields}
    # In timm's own way, which also renames what older checkpoints call differently.
    cfg |= {"architecture": source.architecture, "custom_load": False, "file": None}
    cfg |= {"hf_hub_id": None, "hf_hub_filename": None, "url": "", "source": None}
    cfg |= {"state_dict": dict(source.state)}
    try:
        network = _made(source, pretrained=True, pretrained_cfg=cfg)
    except Exception as error:
        raise _misfit(source, error) from error
    # It keeps what it was made with.
    network.pretrained_cfg = {k: v for k, v in cfg.items() if k != "state_dict"}  # type: ignore[assignment]
    return network


def _check_head(source: _Source) -> None:
    for head in _heads(source.cfg):
        weight = source.state.get(f"{head}.weight")
        if weight is not None and weight.ndim and len(weight) != source.cfg["num_classes"]:
            raise CheckpointError(
                f"The weights of {source.name!r} are for {len(weight)} classes, its configuration "
                f"says {source.cfg['num_classes']}.",
                remedy="Set num_classes and label_names in config.json to those of the weights.",
            )


def _resampled(source: _Source, network: nn.Module) -> list[str]:
    """The tensors of which timm has made others, of another size."""
    there = network.state_dict()
    return [
        key
        for key, tensor in source.state.items()
        if key in there and there[key].numel() != tensor.numel()
    ]


def _at_its_size(
    source: _Source, preparation: Preparation, other: Sequence[str]
) -> tuple[_Source, Preparation]:
    """For a transformer's weights at another size than usual: that size.

    Raises:
        CheckpointError: it cannot be told, or the size was said to be another one.
    """
    if not source.may_resize or list(other) != ["pos_embed"]:
        raise _other_size(source, other)
    made = _made(source, pretrained=False)
    patch = getattr(getattr(made, "patch_embed", None), "patch_size", None)
    tokens = source.state["pos_embed"].shape[1]
    prefix = 0 if getattr(made, "no_embed_class", False) else getattr(made, "num_prefix_tokens", 0)
    side = math.isqrt(tokens - prefix) if tokens > prefix else 0
    if not patch or side * side != tokens - prefix:
        raise _other_size(source, other)
    size = (side * patch[0], side * patch[1])
    source.remarks.append(
        f"The weights of {source.name!r} are for images of {size[0]} x {size[1]} pixels, not the "
        f"usual {' x '.join(map(str, preparation.size or ()))} of {source.architecture}; the "
        "network is made for that."
    )
    arguments = dict(source.arguments) | {"img_size": size}
    return replace(source, arguments=arguments), replace(preparation, size=size)


def _other_size(source: _Source, other: Sequence[str]) -> CheckpointError:
    shown = ", ".join(other[:3]) + ", ..." * (len(other) > 3)
    return CheckpointError(
        f"The weights of {source.name!r} are those of a {source.architecture} for images of "
        f"another size: {len(other)} of them would have to be resampled ({shown}).",
        remedy="Give the architecture that they were trained as, or a folder whose config.json "
        "has that size (img_size in model_args, input_size in pretrained_cfg).",
    )


def _misfit(source: _Source, error: Exception) -> CheckpointError:
    """What torch's complaint about the weights means."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    reason = next((line for line in lines if "key(s)" in line or "mismatch" in line), lines[0])
    if len(reason) > 300:
        reason = reason[:300] + " ..."
    what = "lack some of its weights" if "Missing key(s)" in reason else "do not fit"
    if "key(s)" in reason and (foreign := foreign_names(source.state, _names(source))):
        reason = foreign
    return CheckpointError(
        f"The weights of {source.name!r} {what} as {source.architecture}: {reason}",
        remedy="They may be a backbone's without its head, or another architecture's; check "
        "architecture and model_args in config.json.",
    )


def read_preparation(name: str, cfg: Mapping[str, Any]) -> Preparation:
    """The preprocessing that a timm ``pretrained_cfg`` asks for.

    The picture is squashed into the network's size: timm's habit of cutting its border away
    (``crop_pct``) is left out. ``lanczos`` becomes bicubic, torch's nearest, and ``random``
    bilinear, one of the two it chooses from.

    Raises:
        CheckpointError: it resizes in another way, or is not for RGB images.
    """
    resample = cfg.get("interpolation") or "bilinear"
    try:
        channels, height, width = (int(side) for side in cfg.get("input_size") or (3, 224, 224))
        mode = "bilinear" if resample == "random" else torch_mode(resample)
        mean, std = (
            tuple(float(value) for value in cfg.get(key) or usual)
            for key, usual in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"The preprocessing of {name!r} is not understood ({error}).",
            remedy="Its pretrained_cfg needs input_size, mean and std of three numbers each.",
        ) from None
    if channels != 3 or len(mean) != 3 or len(std) != 3:
        raise CheckpointError(
            f"The model {name!r} takes images of {channels} channels; guides see RGB.",
            remedy="Use a model for colour images.",
        )
    if max(mean) > 2:
        raise CheckpointError(
            f"The model {name!r} gives the mean {mean}, as of pixels from 0 to 255; in timm's "
            "pretrained_cfg they are from 0 to 1.",
            remedy="Divide its mean and std by 255.",
        )
    if mode is None:
        raise CheckpointError(
            f"The model {name!r} resizes by {resample!r}, which is not supported.",
            remedy="Set interpolation in its config.json to bicubic or bilinear.",
        )
    return Preparation(size=(height, width), mode=mode, mean=mean, std=std)


def read_names(name: str, cfg: Mapping[str, Any]) -> tuple[list[str] | None, tuple[str, ...]]:
    """The names of the classes that a configuration gives, None without any, and their keys.

    Raises:
        CheckpointError: it names more or fewer classes than it has.
    """
    classes = int(cfg["num_classes"])
    own: Any = cfg.get("label_names")
    if not own or (
        isinstance(own, list) and own == [f"LABEL_{k}" for k in range(len(own))]  # transformers'
    ):
        return None, ()
    try:
        if isinstance(own, Mapping):
            by_index = {int(k): str(v) for k, v in own.items()}
            if sorted(by_index) == list(range(1, classes + 1)):
                by_index = {k - 1: name for k, name in by_index.items()}
            if all(0 <= k < classes for k in by_index):
                own = [by_index.get(k, f"class {k}") for k in range(classes)]
        if isinstance(own, Mapping | str) or len(own) not in {classes, 2 if classes == 1 else 0}:
            raise ValueError
    except (ValueError, TypeError):
        count = len(own) if isinstance(own, Mapping | list) else "no list of"
        raise CheckpointError(
            f"The model {name!r} has {classes} classes but {count} label_names.",
            remedy="Mend label_names in its config.json.",
        ) from None
    keys = tuple(str(k) for k in own)
    described = cfg.get("label_descriptions")
    if isinstance(described, Mapping) and described:
        return [str(described.get(k, k)) for k in keys], keys
    return list(keys), ()
