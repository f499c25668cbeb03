"""Loading DiT files: what is accepted, what is refused and with which words."""

from __future__ import annotations

import argparse
import io
import json
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ppap_plugin_dit.dit import (
    PUBLISHED,
    DiTConfig,
    infer_config,
    load_dit,
    published_layout,
)
from safetensors.torch import save_file
from torch import Tensor

from ppap_host.files.errors import CheckpointError, OptionError

TINY = DiTConfig(
    input_size=4, hidden_size=8, depth=2, num_heads=2, mlp_size=32, num_classes=3, patch_size=2
)


def random_state(config: DiTConfig) -> dict[str, Tensor]:
    """Weights in the published form, scaled so that activations stay near 1."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) / max(1, torch.Size(shape[1:]).numel()) ** 0.5
        for name, shape in published_layout(config).items()
    }


def training_checkpoint(config: DiTConfig) -> dict[str, Any]:
    """What the published train.py saves."""
    state = random_state(config)
    return {
        "model": {name: torch.zeros_like(tensor) for name, tensor in state.items()},
        "ema": state,
        "opt": {"state": {}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]},
        "args": argparse.Namespace(model="DiT-XL/2", image_size=256),
    }


def saved(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def output(path: Path, config: DiTConfig | None = TINY) -> Tensor:
    network, found = load_dit(path, config)
    x = torch.randn(
        2, found.in_channels, found.input_size, found.input_size,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    with torch.no_grad():
        out: Tensor = network(
            x, timestep=torch.tensor([0, 700]), class_labels=torch.tensor([0, 1])
        ).sample
    return out


# What is accepted


def test_every_form_of_file_gives_the_same_network(tmp_path: Path) -> None:
    state = random_state(TINY)
    expected = output(saved(tmp_path / "plain.pt", state))
    assert expected.shape == (2, 8, 4, 4)
    old = {"_use_new_zipfile_serialization": False}
    save_file(state, tmp_path / "weights.safetensors")
    for path in (
        saved(tmp_path / "old.pt", state, **old),
        saved(tmp_path / "ema.pt", {"ema": state}),
        saved(tmp_path / "training.pt", training_checkpoint(TINY)),
        saved(tmp_path / "old-training.pt", training_checkpoint(TINY), **old),
        tmp_path / "weights.safetensors",
    ):
        assert torch.equal(output(path), expected), path.name


def test_networks_come_frozen_in_float32_and_outlive_their_file(tmp_path: Path) -> None:
    half = {name: tensor.half() for name, tensor in random_state(TINY).items()}
    path = saved(tmp_path / "half.pt", half)
    network, _ = load_dit(path, TINY)
    tensors = [*network.parameters(), *network.buffers()]
    assert not any(tensor.requires_grad for tensor in tensors)
    assert not network.training
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    before = [tensor.clone() for tensor in tensors]
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"learn_sigma": False},
        {"patch_size": 4, "input_size": 8, "in_channels": 3},
        {"mlp_size": 20},
        {"depth": 1, "num_heads": 4, "num_classes": 1},
    ],
)
def test_a_configuration_is_told_from_the_shapes(changes: dict[str, Any], tmp_path: Path) -> None:
    config = replace(TINY, **changes)
    path = saved(tmp_path / "dit.pt", random_state(config))
    (tmp_path / "dit.pt.json").write_text(json.dumps({"num_heads": config.num_heads}))
    network, found = load_dit(path)
    assert found == config
    assert network.config.num_attention_heads == config.num_heads
    assert output(path, None).isfinite().all()


def test_the_papers_networks_need_nothing_beside_them() -> None:
    for config in PUBLISHED.values():
        assert infer_config(published_layout(config)) == config


def test_a_json_file_beside_says_that_there_is_no_null_class(tmp_path: Path) -> None:
    path = saved(tmp_path / "dit.pt", random_state(TINY))
    beside = {"num_heads": 2, "class_dropout_prob": 0.0, "mlp_ratio": 4.0}
    (tmp_path / "dit.pt.json").write_text(json.dumps(beside))
    _, found = load_dit(path)
    assert (found.num_classes, found.null_class) == (4, False)


def test_arguments_are_those_of_the_published_constructor() -> None:
    config = DiTConfig.from_arguments(
        {"input_size": 8, "hidden_size": 48, "mlp_ratio": 2.3, "class_dropout_prob": 0.1}
    )
    assert (config.mlp_size, config.null_class, config.depth) == (110, True, 28)
    assert DiTConfig.from_arguments({"hidden_size": 48, "num_heads": 3}).mlp_size == 192
    with pytest.raises(OptionError, match="Did you mean 'num_heads'"):
        DiTConfig.from_arguments({"num_head": 3})
    for wrong in (
        {"num_heads": 5},
        {"depth": 0},
        {"depth": 2.0},
        {"mlp_ratio": "4"},
        {"input_size": 9},
    ):
        with pytest.raises(OptionError):
            DiTConfig.from_arguments(wrong)


# What is refused


def test_an_error_says_what_the_file_really_is(tmp_path: Path) -> None:
    small = DiTConfig(depth=1)
    state = random_state(replace(small, input_size=64, hidden_size=16, num_heads=2))
    path = saved(tmp_path / "large.pt", state)
    with pytest.raises(CheckpointError, match=r"pos_embed is \(1, 1024, 16\), not \(1, 256, 16\)"):
        load_dit(path, replace(small, hidden_size=16, num_heads=2))


def test_the_published_networks_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppap_plugin_dit import dit

    def shapes_only(path: Any, remarks: Any) -> dict[str, Tensor]:
        with torch.device("meta"):
            return {k: torch.empty(s) for k, s in published_layout(large).items()}

    large = PUBLISHED["DiT-XL-2-512x512.pt"]
    monkeypatch.setattr(dit, "read_dit", shapes_only)
    with pytest.raises(CheckpointError, match=r"published DiT-XL-2-512x512\.pt") as caught:
        load_dit("DiT-XL-2-256x256.pt", PUBLISHED["DiT-XL-2-256x256.pt"])
    assert "pos_embed is (1, 1024, 1152), not (1, 256, 1152)" in str(caught.value)


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path) -> None:
    state = random_state(TINY)
    del state["blocks.1.attn.qkv.bias"]
    state["extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"missing: blocks\.1\.attn\.qkv\.bias.*extra"):
        load_dit(saved(tmp_path / "dit.pt", state), TINY)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"transformer_blocks.0.norm1.linear.weight": torch.zeros(1)}, "diffusers' conversion"),
        ({"conv.weight": torch.zeros(1)}, "not those of a DiT: 'pos_embed' is missing"),
        ({"pos_embed": torch.zeros(3)}, r"'pos_embed' has the shape \(3,\)"),
        ({"model": {}, "opt": {}}, "'model', 'opt' are no plain tensor"),
    ],
)
def test_other_contents_are_refused(content: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        load_dit(saved(tmp_path / "dit.pt", content))


def test_a_training_checkpoint_says_which_weights_are_taken(tmp_path: Path) -> None:
    remarks: list[str] = []
    load_dit(saved(tmp_path / "training.pt", training_checkpoint(TINY)), TINY, remarks)
    (said,) = remarks
    assert "averaged weights under ['ema']" in said and "'model' left aside" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "object"),
        ("{", "no readable JSON"),
        ('{"num_heads": 2.5}', "num_heads"),
        ('{"num_heads": 3}', "do not divide"),
        ('{"num_heads": 2, "heads": 2}', "'heads' is no argument"),
        ('{"num_heads": 2, "depth": 9}', "depth as 9, its tensors as 2"),
        ('{"num_heads": 2, "num_classes": 9}', r"is \(4, 8\), not \(10, 8\)"),
        ("[" * 100_000, "no readable JSON"),
    ],
)
def test_a_wrong_json_file_beside_is_an_error(text: str, words: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "dit.pt", random_state(TINY))
    (tmp_path / "dit.pt.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        load_dit(path)


def test_heads_that_cannot_be_known_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="JSON file beside"):
        load_dit(saved(tmp_path / "dit.pt", random_state(TINY)))


# Damage


def _bytes(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _safetensors() -> bytes:
    header = {
        name: {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 0]}
        for name, shape in published_layout(TINY).items()
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


FILES = [
    _bytes(random_state(replace(TINY, depth=1))),
    _bytes(training_checkpoint(replace(TINY, depth=1))),
    _bytes(training_checkpoint(replace(TINY, depth=1)), _use_new_zipfile_serialization=False),
    _safetensors(),
]


@given(
    which=st.integers(0, len(FILES) - 1),
    cut=st.none() | st.floats(0, 1),
    spots=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    near_end=st.booleans(),
)
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_file_is_a_checkpoint_error_or_a_network(
    tmp_path: Path, which: int, cut: float | None, spots: list[Any], near_end: bool
) -> None:
    whole = FILES[which]
    data = bytearray(whole if cut is None else whole[: int(cut * len(whole))])
    for place, value in spots:
        if data:
            # Pickles and tables of contents are at the ends, tensors between them.
            at = int(place * min(len(data), 2000))
            data[-at if near_end else min(at, len(data) - 1)] = value
    path = tmp_path / "dit.pt"
    path.write_bytes(bytes(data))
    for config in (replace(TINY, depth=1), None):
        with suppress(CheckpointError):
            load_dit(path, config)
