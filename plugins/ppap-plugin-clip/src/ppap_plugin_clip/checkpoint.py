"""Loads CLIP models through transformers: never a pickle, never code from a repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppap_host.files.errors import CheckpointError, TargetError
from ppap_host.files.models import CONFIG, ModelFolder
from ppap_host.files.pretrained import TOKENIZER, Pretrained, load_pretrained, load_tokenizer
from ppap_host.guides.preprocessing import Preparation, read_processor

REMEDY = (
    "Give --model the hub name of a CLIP with safetensors weights, such as "
    "openai/clip-vit-large-patch14, or a folder with its config.json, model.safetensors, "
    "preprocessor_config.json and tokenizer."
)
"""The ways to write a model, for messages."""


@dataclass(frozen=True)
class Checkpoint:
    """The half of a CLIP that sees images, and where the other half is.

    Attributes:
        name: as the user gave it.
        vision: the vision tower, float32, frozen, in evaluation mode.
        projection: of its pooled output, likewise.
        preparation: what it wants done to an image.
        temperature: by which CLIP multiplies cosines to get logits, exp(logit_scale); 100 for most
            published ones.
        context: how many tokens a text may have, its start and end among them.
        vocabulary: how many different tokens there are.
        files: what is read of it.
        remarks: what had to be chosen or guessed, a sentence each.
    """

    name: str
    vision: nn.Module
    projection: nn.Module
    preparation: Preparation
    temperature: float
    context: int
    vocabulary: int
    files: tuple[Path, ...]
    remarks: tuple[str, ...] = ()


def load_checkpoint(guide: str, name: str | None) -> Checkpoint:
    """Loads what a CLIP needs to look at images; never unpickles or runs anything.

    Args:
        guide: who asks, for messages.
        name: a local folder in transformers' format, or a hub name.

    Raises:
        CheckpointError: there is no name; it cannot be found or downloaded, is no CLIP of RGB
            images, has no safetensors weights, lacks weights, or its image processor is not
            understood.
    """
    if name is None:
        raise CheckpointError(f"The guide {guide!r} ships no weights.", remedy=REMEDY)
    folder = ModelFolder(name, "CLIP", REMEDY)
    loaded = _loaded(folder)
    for file in TOKENIZER:
        folder.find(file)  # what a text is read with
    config, model = loaded.config, loaded.model
    prepared = read_processor(name, loaded.processor, fit_crop=True)
    return Checkpoint(
        name,
        model.vision_model,
        model.visual_projection,
        _fitting(prepared, config.vision_config.image_size),
        float(model.logit_scale.exp()),
        int(config.text_config.max_position_embeddings),
        int(config.text_config.vocab_size),
        folder.files,
        tuple(folder.remarks),
    )


def _loaded(folder: ModelFolder) -> Pretrained:
    """The whole model."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    folder.need(CONFIG)
    described = folder.json(CONFIG) or {}
    _check_kind(folder.name, described)
    return load_pretrained(
        folder, described, config=AutoConfig, model=AutoModel, processor=AutoImageProcessor
    )


def encode(checkpoint: Checkpoint, text: str) -> Float[Tensor, "1 d"]:
    """The projected embedding of a text, of any length, as ``CLIPModel.get_text_features`` does it.

    The model is loaded for this again and forgotten afterwards, on the CPU in float32: one text is
    quickly read, and images need the memory.

    Raises:
        TargetError: the text has no tokens, or more than the model can read.
        CheckpointError: the tokenizer or the text tower cannot be loaded.
    """
    tokens = torch.tensor([_tokens(checkpoint, text)])
    model = _loaded(ModelFolder(checkpoint.name, "CLIP", REMEDY)).model
    with torch.no_grad():
        embedding: Tensor = model.text_projection(model.text_model(input_ids=tokens).pooler_output)
    return embedding


def _tokens(checkpoint: Checkpoint, text: str) -> list[int]:
    """The numbers of a text's tokens, start and end among them."""
    from transformers import AutoTokenizer

    folder = ModelFolder(checkpoint.name, "CLIP", REMEDY)
    tokenizer = load_tokenizer(folder, AutoTokenizer, "clip")
    special = len(set(tokenizer.all_special_ids))
    # Without its files a tokenizer may still be made, one that knows no words.
    if len(tokenizer) <= special or len(tokenizer) > checkpoint.vocabulary:
        raise CheckpointError(
            f"The tokenizer of {checkpoint.name!r} knows {len(tokenizer)} tokens, its text tower "
            f"{checkpoint.vocabulary}.",
            remedy="The folder needs the model's own tokenizer.json, or vocab.json and merges.txt.",
        )
    found: list[int] = tokenizer(text, truncation=False, verbose=False)["input_ids"]
    if len(found) > checkpoint.context:
        raise TargetError(
            f"The text has {len(found) - 2} tokens, and {checkpoint.name!r} reads at most "
            f"{checkpoint.context - 2}.",
            remedy="Say it in fewer words; a token is a short word or a part of a longer one.",
        )
    if len(found) <= 2:
        raise TargetError(f"The text {text!r} says nothing.", remedy="Describe the picture.")
    return found


def _check_kind(name: str, described: Mapping[str, Any]) -> None:
    if described.get("model_type") != "clip":
        raise CheckpointError(
            f"The model {name!r} is no CLIP: its config.json says {described.get('model_type')!r}.",
            remedy=REMEDY,
        )
    vision = described.get("vision_config")
    channels = vision.get("num_channels") if isinstance(vision, dict) else None
    if channels not in (None, 3):
        raise CheckpointError(
            f"The model {name!r} takes images of {channels} channels; guides see RGB.",
            remedy="Use a CLIP for colour images.",
        )


def _fitting(preparation: Preparation, side: int) -> Preparation:
    """The whole picture in the one size that the vision tower takes, whatever would be cut away."""
    return replace(
        preparation,
        size=(side, side),
        shortest_edge=None,
        keep_aspect_ratio=False,
        multiple_of=1.0,
        align_corners=False,
    )
