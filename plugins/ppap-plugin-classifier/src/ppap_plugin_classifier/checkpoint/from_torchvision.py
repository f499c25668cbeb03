"""Classifiers of torchvision: with its published weights, or with a state dict of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from ppap_host.files.checkpoints import read_state_dict, renamed, require_layout
from ppap_host.files.errors import CheckpointError, nearest
from ppap_host.files.models import first_line, own_path
from ppap_host.guides.preprocessing import Preparation, torch_mode
from ppap_plugin_classifier.checkpoint.files import Checkpoint, finished, library

_REMEDY = (
    "Write torchvision:ARCHITECTURE, such as torchvision:resnet50, torchvision:ARCHITECTURE."
    "WEIGHTS, or torchvision:ARCHITECTURE:FILE with a state dict."
)
# Their auxiliary classifiers are for training; nothing of them is seen in the output.
_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


def load(name: str, rest: str) -> Checkpoint:
    """A classifier of torchvision.

    Args:
        name: what the user wrote, for messages.
        rest: that without its prefix, one of

            - ``ARCHITECTURE``: with torchvision's default weights, downloaded into its cache;
            - ``ARCHITECTURE.WEIGHTS``: with particular ones, such as ``IMAGENET1K_V1``;
            - ``ARCHITECTURE:FILE``: with a state dict, of ``torch.save`` or safetensors, read
              without executing anything. A published file, told by its name, is taken with its own
              preprocessing and labels. Any other has as many classes as its last layer, the
              preprocessing of the default weights, and their labels if there are as many;
            - ``ARCHITECTURE.WEIGHTS:FILE``: with a state dict, and the preprocessing and labels of
              these weights.

    Raises:
        CheckpointError: torchvision is not there, or has no such classifier or weights; they cannot
            be downloaded or read, or do not fit.
    """
    models = library("torchvision.models", "torchvision")
    given, _, file = rest.partition(":")
    architecture, _, wanted = given.partition(".")
    known: list[str] = models.list_models(module=models)
    if architecture not in known:
        close = nearest(architecture, known)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        raise CheckpointError(
            f"torchvision has no classifier {architecture!r}.", remedy=hint + _REMEDY
        )
    # Weights without classes are those of a backbone, whose head was never trained.
    entries = {
        key: entry
        for key, entry in models.get_model_weights(architecture).__members__.items()
        if entry.meta.get("categories")
    }
    if wanted not in entries and (wanted or not entries):
        raise CheckpointError(
            f"torchvision has no classifier's weights {wanted or 'at all'!r} for {architecture}.",
            remedy=f"It has: {', '.join(entries)}." if entries else _REMEDY,
        )
    entry = entries[wanted or "DEFAULT"]
    if file:
        path = own_path(file)
        published = next((e for e in entries.values() if _filename(e) == path.name), None)
        as_published = bool(wanted) or published is not None
        entry = entry if wanted else published or entry
    else:
        path, as_published = _downloaded(name, entry), True
    remarks: list[str] = []
    state = read_state_dict(path, remarks)
    published_entry = entry if as_published else None
    network, classes = _built(name, models, architecture, published_entry, state, remarks)
    categories = list(entry.meta["categories"])
    return finished(
        name,
        network,
        read_transform(name, entry.transforms()),
        categories if classes == len(categories) else None,
        (path,),
        classes=classes,
        remarks=remarks,
    )


def read_transform(name: str, transform: Any) -> Preparation:
    """The preprocessing of torchvision's weights.

    The whole picture is squashed into the square that torchvision would cut out of its middle.

    Args:
        name: of the model, for messages.
        transform: an ``ImageClassification`` of ``torchvision.transforms``, not called.

    Raises:
        CheckpointError: it is another kind of transform, or resizes in another way.
    """
    try:
        crop, mean, std = transform.crop_size, tuple(transform.mean), tuple(transform.std)
        height, width = (crop, crop) if isinstance(crop, int) else (crop[0], crop[-1])
        mode = torch_mode(transform.interpolation)
    except AttributeError as error:
        raise CheckpointError(
            f"The preprocessing of {name!r} is not understood ({error}).", remedy=_REMEDY
        ) from None
    if mode is None:
        raise CheckpointError(
            f"The model {name!r} resizes by {transform.interpolation}, which is not supported.",
            remedy="Use weights that are resized by bilinear or bicubic interpolation.",
        )
    return Preparation(size=(int(height), int(width)), mode=mode, mean=mean, std=std)


def _filename(entry: Any) -> str:
    return Path(urlparse(entry.url).path).name


def _downloaded(name: str, entry: Any) -> Path:
    """The file of published weights in torchvision's cache, where it is downloaded if need be."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / _filename(entry)
    if path.is_file():
        return path
    try:
        entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # no connection, a wrong hash, a full disk ...
        raise CheckpointError(
            f"The weights of {name!r} are not on this machine and cannot be downloaded from "
            f"{entry.url}: {first_line(error)}",
            remedy="Connect to the internet, or download the file elsewhere and give "
            "torchvision:ARCHITECTURE:FILE.",
        ) from error
    return path


def _built(
    name: str,
    models: Any,
    architecture: str,
    entry: Any,
    state: dict[str, Tensor],
    remarks: list[str],
) -> tuple[nn.Module, int]:
    """The network with its weights, and how many classes it has.

    Args:
        entry: the published weights that ``state`` is in the manner of; None for any other.
    """
    auxiliary = _AUXILIARY.get(architecture)
    options = {"aux_logits": False, "init_weights": False} if auxiliary else {}
    # Initial weights are drawn though they are replaced; that must not move a caller's seed.
    with torch.random.fork_rng(devices=[]):
        network: nn.Module = models.get_model(architecture, weights=None, **options)
        state = renamed(state, network.state_dict(), remarks)
        kept = {k: v for k, v in state.items() if not k.startswith(auxiliary or ("\0",))}
        head, classes = _head(network)
        rows = state.get(f"{head}.weight")
        wanted = classes if rows is None or rows.ndim == 0 else len(rows)
        if entry is not None and wanted == len(entry.meta["categories"]):
            try:
                with _served(entry, state):
                    network = models.get_model(architecture, weights=entry, progress=False)
            except RuntimeError as error:
                raise _misfit(name, network, kept, error) from error
            for prefix in auxiliary or ():
                setattr(network, prefix.removesuffix("."), None)
            return network, wanted
        if wanted != classes:
            network = models.get_model(architecture, weights=None, num_classes=wanted, **options)
    try:
        network.load_state_dict(kept)
    except RuntimeError as error:
        raise _misfit(name, network, kept, error) from error
    return network, wanted


def _head(network: nn.Module) -> tuple[str, int]:
    """Name and number of outputs of the layer that makes the logits, the last one there is."""
    found = ("", 0)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            found = name, layer.out_features
        elif isinstance(layer, nn.Conv2d):
            found = name, layer.out_channels
    return found


@contextmanager
def _served(entry: Any, state: dict[str, Tensor]) -> Iterator[None]:
    """Lets torchvision's own builder load ``state`` as these published weights.

    Only the builder knows what belongs to them: the size of a ViT's picture, a change of colours
    before GoogLeNet, older names in DenseNet's files. But it would unpickle the file in full.
    """
    entry.get_state_dict = lambda *_, **__: dict(state)
    try:
        yield
    finally:
        del entry.get_state_dict


def _misfit(
    name: str, network: nn.Module, state: Mapping[str, Tensor], error: Exception
) -> CheckpointError:
    """Which tensors do not fit; counters, which are no floating-point numbers, are left aside."""
    layout = {k: tuple(v.shape) for k, v in network.state_dict().items() if v.is_floating_point()}
    counters = network.state_dict().keys() - layout.keys()
    try:
        require_layout({k: v for k, v in state.items() if k not in counters}, layout)
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
    except CheckpointError as misfit:
        reason = misfit.message
    return CheckpointError(
        f"The weights do not fit {name!r}: {reason}",
        remedy="Give the file of this architecture, as a state dict of the whole network.",
    )
