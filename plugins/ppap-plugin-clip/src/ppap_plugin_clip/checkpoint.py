"""Loads CLIP models through transformers: never a pickle, never code from a repository."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppap_host.files.errors import CheckpointError, TargetError
from ppap_host.guides.preprocessing import Preparation, read_processor

REMEDY = (
    "Give --model the hub name of a CLIP with safetensors weights, such as "
    "openai/clip-vit-large-patch14, or a folder with its config.json, model.safetensors, "
    "preprocessor_config.json and tokenizer."
)
"""The ways to write a model, for messages."""

_DESCRIBED = (
    "config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "vocab.json", "merges.txt",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """The half of a CLIP that sees images, and where the other half is.

    Attributes:
        name: as the user gave it.
        source: a folder or a hub name, from which :func:`encode` reads the other half.
        vision: the vision tower, float32, frozen, in evaluation mode.
        projection: of its pooled output, likewise.
        preparation: what it wants done to an image.
        temperature: by which CLIP multiplies cosines to get logits, exp(logit_scale); 100 for most
            published ones.
        context: how many tokens a text may have, its start and end among them.
        vocabulary: how many different tokens there are.
        files: what is read of it.
    """

    name: str
    source: str
    vision: nn.Module
    projection: nn.Module
    preparation: Preparation
    temperature: float
    context: int
    vocabulary: int
    files: tuple[Path, ...]


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
    looks_local = name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name
    folder = Path(name).expanduser()
    local = os.path.isdir(folder)  # Path.is_dir raises for names that are too long
    if looks_local and not local:
        raise CheckpointError(f"There is no model folder {name!r}.", remedy=REMEDY)
    source = str(folder) if local else name
    with _explained(name), _quiet(local):
        from transformers import AutoConfig, AutoImageProcessor, CLIPModel
        from transformers.utils import cached_file

        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        _check_kind(name, config)
        model, report = CLIPModel.from_pretrained(
            source, config=config, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        here = Path(cached_file(source, "config.json")).parent
    if report["missing_keys"]:
        lost = sorted(report["missing_keys"])
        raise CheckpointError(
            f"The CLIP model {name!r} lacks {len(lost)} of its weights, such as {lost[0]!r}.",
            remedy="It may be one of its towers alone. " + REMEDY,
        )
    model = model.float().eval().requires_grad_(False)
    files = [*(here / file for file in _DESCRIBED), *sorted(here.glob("model*.safetensors"))]
    return Checkpoint(
        name,
        source,
        model.vision_model,
        model.visual_projection,
        _fitting(read_processor(name, processor, fit_crop=True), config.vision_config.image_size),
        float(model.logit_scale.exp()),
        int(config.text_config.max_position_embeddings),
        int(config.text_config.vocab_size),
        tuple(file for file in files if file.is_file()),
    )


def encode(checkpoint: Checkpoint, text: str) -> Float[Tensor, "1 d"]:
    """The projected embedding of a text, of any length, as ``CLIPModel.get_text_features`` does it.

    The text tower is loaded for this and forgotten afterwards, on the CPU in float32: one text is
    quickly read, and images need the memory.

    Raises:
        TargetError: the text has no tokens, or more than the model can read.
        CheckpointError: the tokenizer or the text tower cannot be loaded.
    """
    tokens = _tokens(checkpoint, text)
    with _explained(checkpoint.name), _quiet(True):
        from transformers import CLIPTextModelWithProjection

        model, report = CLIPTextModelWithProjection.from_pretrained(
            checkpoint.source, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    if report["missing_keys"]:
        lost = sorted(report["missing_keys"])
        raise CheckpointError(
            f"The text tower of {checkpoint.name!r} lacks {len(lost)} of its weights, such as "
            f"{lost[0]!r}.",
            remedy=REMEDY,
        )
    ids = torch.tensor([tokens])
    with torch.no_grad():
        embedding: Tensor = model.float().eval()(input_ids=ids).text_embeds
    return embedding


def _tokens(checkpoint: Checkpoint, text: str) -> list[int]:
    """The numbers of a text's tokens, start and end among them."""
    with _explained(checkpoint.name), _quiet(True):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(checkpoint.source, trust_remote_code=False)
        special = len(set(tokenizer.all_special_ids))
        # Without its files a tokenizer may still be made, one that knows no words.
        if len(tokenizer) <= special or len(tokenizer) > checkpoint.vocabulary:
            raise CheckpointError(
                f"The tokenizer of {checkpoint.name!r} knows {len(tokenizer)} tokens, its text "
                f"tower {checkpoint.vocabulary}.",
                remedy="The folder needs the model's own tokenizer.json, or vocab.json and "
                "merges.txt.",
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


def _check_kind(name: str, config: Any) -> None:
    if config.model_type != "clip":
        raise CheckpointError(
            f"The model {name!r} is no CLIP: its config.json says {config.model_type!r}.",
            remedy=REMEDY,
        )
    channels = config.vision_config.num_channels
    if channels != 3:
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


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns every way in which loading fails into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        # transformers, its hub client and safetensors each have exceptions of their own; whichever
        # it was, this name does not give a model.
        lines = str(error).strip().splitlines() or [repr(error)]
        raise CheckpointError(
            f"The CLIP model {name!r} cannot be loaded: {lines[0]}", remedy=REMEDY
        ) from error


@contextmanager
def _quiet(local: bool) -> Iterator[None]:
    """No reports on the terminal, since what is wrong is raised; downloads keep their bars."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    if local:
        logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
