"""Tiny random CLIPs in the published format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import pre_tokenizers
from torch import nn

WORDS = ("red", "blue", "cube", "cone", "a", "the")


def write_vocabulary(folder: Path, words: Sequence[str] = WORDS) -> int:
    """CLIP's ``vocab.json`` and ``merges.txt`` for a few words; every other text in single bytes.

    Returns:
        How many tokens there are.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merge = (parts[0], parts[1])
            parts = [parts[0] + parts[1], *parts[2:]]
            if merge not in merges:
                merges.append(merge)
                tokens.append(parts[0])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: k for k, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "unk_token": "<|endoftext|>",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(vocabulary)


def write_clip(folder: Path, seed: int = 0, side: int = 32) -> Path:
    """A CLIP of random weights as ``save_pretrained`` writes it: model, tokenizer, preprocessing.

    Args:
        side: of the images it sees, in pixels; patches are 8 x 8.
    """
    folder.mkdir(parents=True)
    count = write_vocabulary(folder)
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "projection_dim": 12,
    }
    config = transformers.CLIPConfig(
        text_config=tower | {
            "vocab_size": count, "max_position_embeddings": 77, "bos_token_id": count - 2,
            "eos_token_id": count - 1, "pad_token_id": count - 1,
        },
        vision_config=tower | {"image_size": side, "patch_size": 8},
        projection_dim=12,
    )  # fmt: skip
    model = transformers.CLIPModel(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # as drawn they are so small that nothing is seen
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
    model.logit_scale.data.fill_(torch.tensor(100.0).log())
    model.save_pretrained(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _plain_terminal() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip")
