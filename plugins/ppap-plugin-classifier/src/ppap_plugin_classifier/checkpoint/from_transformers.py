"""Image classifiers of transformers: ViT, DeiT, ConvNeXt, Swin, BEiT, ResNet and their kin."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ppap_host.files.errors import CheckpointError
from ppap_host.guides.preprocessing import Preparation, read_processor
from ppap_plugin_classifier.checkpoint.files import (
    CONFIG,
    WEIGHTS,
    Checkpoint,
    download,
    first_line,
    library,
    named_weights,
)
from ppap_plugin_classifier.checkpoint.from_timm import read_labels, read_preparation
from ppap_plugin_classifier.labels import Labels

_PROCESSOR, _INDEX = "preprocessor_config.json", "model.safetensors.index.json"
_TASK = "ForImageClassification"
_REMEDY = (
    "Give --model a folder or hub name of an image classification model of transformers with "
    "safetensors weights, such as google/vit-base-patch16-224."
)


class Logits(nn.Module):
    """An image classifier of transformers as a plain function of pixels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """Logits of the classes."""
        logits: Tensor = self.model(pixel_values=pixels).logits
        return logits


def fetch(name: str, repository: str) -> None:
    """Downloads what :func:`load` reads besides ``config.json``, into the same folder.

    Raises:
        CheckpointError: a file is missing or cannot be downloaded.
    """
    if download(name, repository, WEIGHTS, optional=True) is None:
        index = download(name, repository, _INDEX, optional=True)
        if index is None:
            download(name, repository, WEIGHTS)  # says what is wrong
        else:
            for shard in _shards(index):
                download(name, repository, shard)
    download(name, repository, _PROCESSOR, optional=True)


def load(name: str, folder: Path, config: Mapping[str, Any], weights: str = "") -> Checkpoint:
    """A folder that ``save_pretrained`` of transformers wrote, model and image processor.

    Args:
        name: what the user wrote, for messages.
        folder: with ``config.json``, ``preprocessor_config.json`` and safetensors.
        config: what is in ``config.json``.
        weights: the file that was asked for; "" for the folder's.

    Raises:
        CheckpointError: transformers is not there or does not know the model; it is no classifier
            of RGB images, lacks weights, or its image processor is not understood.
    """
    kinds = [str(kind) for kind in config.get("architectures") or ()]
    if not any(_TASK in kind for kind in kinds):
        raise CheckpointError(
            f"The model {name!r} of transformers is no image classifier "
            f"({', '.join(kinds) or config.get('model_type')}).",
            remedy=f"Its config.json should name an architecture that ends in {_TASK}. {_REMEDY}",
        )
    if config.get("problem_type") in ("regression", "multi_label_classification"):
        raise CheckpointError(
            f"The model {name!r} does not choose between classes: its problem_type is "
            f"{config['problem_type']!r}.",
            remedy="Use a model for single_label_classification.",
        )
    if int(config.get("num_channels") or 3) != 3:
        raise CheckpointError(
            f"The model {name!r} takes images of {config['num_channels']} channels; guides see "
            "RGB.",
            remedy="Use a model for colour images.",
        )
    if weights not in ("", WEIGHTS):
        raise CheckpointError(
            f"The file {weights!r} is not the {WEIGHTS} of a model of transformers.",
            remedy=f"Give the folder {str(folder)!r}, and name its weights {WEIGHTS}.",
        )
    files = _weights(folder)
    transformers = library("transformers", "ppap-plugin-classifier[transformers]")
    try:
        with _quiet():
            model, report = transformers.AutoModelForImageClassification.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False, local_files_only=True,
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
            processor = transformers.AutoImageProcessor.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
    except Exception as error:
        # transformers and safetensors each have exceptions of their own; whichever it was, this
        # name does not give a model.
        raise CheckpointError(
            f"The classifier {name!r} cannot be loaded by transformers: {first_line(error)}",
            remedy=_REMEDY,
        ) from error
    _check_whole(name, report)
    if "pixel_values" not in inspect.signature(model.forward).parameters:
        raise CheckpointError(
            f"The model {name!r} ({type(model).__name__}) does not take pixels.", remedy=_REMEDY
        )
    described = (folder / CONFIG, folder / _PROCESSOR)
    return Checkpoint(
        Logits(model).float().eval().requires_grad_(False),
        _preparation(name, processor),
        _labels(name, model.config.id2label),
        tuple(path for path in (*described, *files) if path.is_file()),
    )


def _shards(index: Path) -> list[str]:
    """Names of the files over which weights are spread."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        return sorted({str(shard) for shard in content["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"The file {str(index)!r} does not say where the weights are ({error!r}).",
            remedy="Save or download the model again.",
        ) from None


def _weights(folder: Path) -> list[Path]:
    """All files with weights, each of which must be there."""
    whole, index = folder / WEIGHTS, folder / _INDEX
    if whole.is_file() or not index.is_file():
        return [named_weights(folder, WEIGHTS)]
    return [index, *(named_weights(folder, shard) for shard in _shards(index))]


def _check_whole(name: str, report: Mapping[str, Any]) -> None:
    """Refuses a model some of whose weights were not in the file, or of another shape."""
    lost = sorted(str(key) for key in report["missing_keys"])
    # Name, shape in the file and shape in the network.
    odd = sorted((str(row[0]), *map(tuple, row[1:3])) for row in report["mismatched_keys"])
    if odd:
        key, there, needed = odd[0]
        raise CheckpointError(
            f"{len(odd)} of the weights of {name!r} are of another shape than its configuration "
            f"says: {key} is {there}, not {needed}.",
            remedy="Set id2label and the sizes in config.json to those of the weights.",
        )
    if lost:
        raise CheckpointError(
            f"The classifier {name!r} lacks {len(lost)} of its weights, such as {lost[0]!r}.",
            remedy="It may be a backbone without its classification head. " + _REMEDY,
        )


def _preparation(name: str, processor: Any) -> Preparation:
    """As the image processor says, but for its cuts: the picture is squashed into the window."""
    # A model of timm that transformers wrapped.
    if hasattr(processor, "data_config"):
        return read_preparation(name, processor.data_config)
    return read_processor(name, processor, fit_crop=True)


def _labels(name: str, named: Mapping[int, str]) -> Labels:
    """The configuration's names; the placeholders ``LABEL_0``, ``LABEL_1`` ... are none."""
    classes = len(named)
    if classes < 2:
        raise CheckpointError(
            f"The model {name!r} has {classes} classes, between which there is no choice.",
            remedy=_REMEDY,
        )
    names = [str(named.get(k, f"class {k}")) for k in range(classes)]
    if names == [f"LABEL_{k}" for k in range(classes)]:
        return read_labels(name, {"num_classes": classes})
    return Labels(names)


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no reports on the terminal; what is wrong is raised."""
    logging = library("transformers.utils.logging", "ppap-plugin-classifier[transformers]")
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
