"""Image classifiers of transformers: ViT, DeiT, ConvNeXt, Swin, BEiT, ResNet and their kin."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ppap_host.files.errors import CheckpointError
from ppap_host.files.models import WEIGHTS, ModelFolder
from ppap_host.files.pretrained import load_pretrained
from ppap_host.guides.preprocessing import read_processor
from ppap_plugin_classifier.checkpoint.files import Checkpoint, finished, library

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


def load(folder: ModelFolder, config: Mapping[str, Any], weights: Path | None = None) -> Checkpoint:
    """A folder that ``save_pretrained`` of transformers wrote, model and image processor.

    Args:
        folder: with ``config.json``, ``preprocessor_config.json`` and safetensors.
        config: what is in ``config.json``.
        weights: the file that was asked for; None for the folder's.

    Raises:
        CheckpointError: transformers is not there or does not know the model; it is no classifier
            of RGB images, lacks weights, or its image processor is not understood.
    """
    name = folder.name
    folder.remedy = _REMEDY
    kinds = config.get("architectures") or ()
    kinds = [str(kind) for kind in kinds] if isinstance(kinds, list | tuple) else []
    if not any(_TASK in kind for kind in kinds):
        raise CheckpointError(
            f"The model {name!r} of transformers is no image classifier "
            f"({', '.join(kinds) or config.get('model_type')}).",
            remedy=f"Its config.json should name an architecture that ends in {_TASK}. {_REMEDY}",
        )
    if config.get("num_channels") not in (None, 3):
        raise CheckpointError(
            f"The model {name!r} takes images of {config['num_channels']} channels; guides see "
            "RGB.",
            remedy="Use a model for colour images.",
        )
    if weights is not None and weights.name != WEIGHTS:
        raise CheckpointError(
            f"The file {weights.name!r} is not the {WEIGHTS} of a model of transformers.",
            remedy=f"Give the folder {str(folder.folder)!r}, and name its weights {WEIGHTS}.",
        )
    transformers = library("transformers", "ppap-plugin-classifier[transformers]")
    loaded = load_pretrained(
        folder,
        config,
        config=transformers.AutoConfig,
        model=transformers.AutoModelForImageClassification,
        processor=transformers.AutoImageProcessor,
    )
    if "pixel_values" not in inspect.signature(loaded.model.forward).parameters:
        raise CheckpointError(
            f"The model {name!r} ({type(loaded.model).__name__}) does not take pixels.",
            remedy=_REMEDY,
        )
    named = list(loaded.labels)
    placeholders = named == [f"LABEL_{k}" for k in range(len(named))]
    return finished(
        name,
        Logits(loaded.model),
        # As the image processor says, but for its cuts: the picture is squashed into the window.
        read_processor(name, loaded.processor, fit_crop=True),
        None if placeholders else named,
        folder.files,
        classes=int(loaded.config.num_labels),
        problem=config.get("problem_type"),
        remarks=folder.remarks,
    )
