"""Small networks in the published formats, for tests that need no recorded numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from ppap_plugin_openai.adm import ADMClassifierConfig, ADMConfig
from ppap_plugin_openai.adm import published_layout as adm_layout
from ppap_plugin_openai.glide import GlideConfig
from ppap_plugin_openai.glide import published_layout as glide_layout
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

AnyConfig = ADMConfig | ADMClassifierConfig | GlideConfig
MERGES = (("r", "e"), ("re", "d"), ("Ġ", "c"))


def _layout(config: AnyConfig) -> Mapping[str, tuple[int, ...]]:
    return glide_layout(config) if isinstance(config, GlideConfig) else adm_layout(config)


@pytest.fixture
def random_state() -> Callable[[AnyConfig], dict[str, Tensor]]:
    """Weights in the published form, scaled so that activations stay near 1."""

    def make(config: AnyConfig) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        state = {}
        for name, shape in _layout(config).items():
            fan_in = max(1, torch.Size(shape[1:]).numel())
            state[name] = torch.randn(shape, generator=generator) / fan_in**0.5
        return state

    return make


@pytest.fixture
def weightless_state() -> Callable[[AnyConfig], dict[str, Tensor]]:
    """Zeros in the published form: one stored number a tensor, whatever its shape."""

    def make(config: AnyConfig) -> dict[str, Tensor]:
        return {name: torch.zeros(1).expand(shape) for name, shape in _layout(config).items()}

    return make


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    """A folder with a vocabulary of 260 tokens: bytes, three merges, padding."""
    folder = tmp_path / "vocabulary"
    folder.mkdir()
    write_vocabulary(folder)
    return folder


def write_vocabulary(folder: Path) -> None:
    tokens = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in MERGES), "<|endoftext|>"]
    numbers = {token: k for k, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(numbers), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
