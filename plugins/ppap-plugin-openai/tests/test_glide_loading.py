"""Loading GLIDE files and vocabularies: what is accepted, what is refused and how."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ppap_plugin_openai import tokens
from ppap_plugin_openai.adm import (
    PUBLISHED_ADM,
    PUBLISHED_CLASSIFIERS,
    ADMConfig,
    load_adm,
)
from ppap_plugin_openai.glide import (
    PUBLISHED_GLIDE,
    GlideConfig,
    GlideNetwork,
    identify,
    load_glide,
    published_layout,
)
from ppap_plugin_openai.tokens import PromptTokenizer
from safetensors.torch import save_file
from torch import Tensor, nn

from ppap_host.files.errors import CheckpointError, OptionError

State = Callable[[Any], dict[str, Tensor]]
SMALL = GlideConfig(
    image_size=8,
    num_channels=32,
    num_res_blocks=1,
    channel_mult=(1, 2),
    num_head_channels=16,
    attention_resolutions=(4,),
    text_ctx=6,
    xf_width=16,
    xf_layers=2,
    xf_heads=2,
    n_vocab=260,
)


def saved(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


def outputs(path: Path, config: GlideConfig = SMALL) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, config.image_size, config.image_size, generator=generator)
    numbers = torch.randint(0, config.n_vocab, (2, config.text_ctx), generator=generator)
    mask = torch.arange(config.text_ctx) < torch.tensor([[2], [4]])
    small = torch.randn(2, 3, 4, 4, generator=generator) if config.super_res else None
    network = load_glide(path, config)
    with torch.no_grad():
        output: Tensor = network(x, torch.tensor([10, 700]), network.text(numbers, mask), small)
    return output


# What is accepted


def test_every_file_format_gives_the_same_network(tmp_path: Path, random_state: State) -> None:
    state = random_state(SMALL)
    expected = outputs(saved(tmp_path / "zip.pt", state))
    assert expected.shape == (2, 6, 8, 8)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "misnamed.pt")
    for name in ("old.pt", "misnamed.pt"):
        assert torch.equal(outputs(tmp_path / name), expected), name


def test_half_precision_files_load_as_float32_frozen_and_in_evaluation_mode(
    tmp_path: Path, random_state: State
) -> None:
    half = {name: tensor.half() for name, tensor in random_state(SMALL).items()}
    network = load_glide(saved(tmp_path / "half.pt", half), SMALL)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize(
    "flags",
    [
        {"xf_final_ln": False},
        {"xf_padding": False},
        {"use_scale_shift_norm": False},
        {"resblock_updown": False},
        {"num_head_channels": -1, "num_heads": 2, "num_heads_upsample": 4},
        {"channel_mult": (2, 1), "attention_resolutions": (8, 4)},
        {"inpaint": True},
        {"super_res": True},
        {"inpaint": True, "super_res": True},
    ],
    ids=str,
)
def test_every_flag_of_the_network_is_understood(
    tmp_path: Path, random_state: State, flags: dict[str, Any]
) -> None:
    config = replace(SMALL, **flags)
    path = saved(tmp_path / "model.pt", random_state(config))
    assert outputs(path, config).isfinite().all()


@pytest.mark.parametrize("updown", [False, True])
def test_where_no_attention_acts_the_network_is_adms(
    tmp_path: Path, random_state: State, updown: bool
) -> None:
    """Resampling, residual blocks and embedding are those that ADM's vectors check."""
    config = replace(SMALL, attention_resolutions=(8, 4), resblock_updown=updown)
    state = random_state(config)
    for name, tensor in state.items():
        if "proj_out" in name or name.startswith("transformer_proj"):
            tensor.zero_()
    adm = ADMConfig(
        image_size=8, num_channels=32, num_res_blocks=1, channel_mult=(1, 2),
        num_head_channels=16, attention_resolutions=(8, 4), resblock_updown=updown,
        learn_sigma=True,
    )  # fmt: skip
    shared = {name: state[name] for name in _adm_names(adm)}
    unet = load_adm(saved(tmp_path / "adm.pt", shared), adm)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    network = load_glide(saved(tmp_path / "glide.pt", state), config)
    with torch.no_grad():
        expected = unet(x, torch.tensor([3, 900])).sample
        actual = network(x, torch.tensor([3, 900]), torch.randn(2, 6, 16))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def _adm_names(config: ADMConfig) -> list[str]:
    from ppap_plugin_openai.adm import published_layout as layout

    return list(layout(config))


def test_text_and_image_share_one_softmax(tmp_path: Path, random_state: State) -> None:
    """The middle's attention, computed from the published tensors by its definition."""
    state = random_state(SMALL)
    network = load_glide(saved(tmp_path / "glide.pt", state), SMALL)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 64, 4, 4, generator=generator)
    text = torch.randn(2, 6, 16, generator=generator)

    def linear(name: str, value: Tensor) -> Tensor:
        weight, bias = (state[f"middle_block.1.{name}.{part}"] for part in ("weight", "bias"))
        return weight[..., 0] @ value + bias[:, None]

    normalisation = [state[f"middle_block.1.norm.{part}"] for part in ("weight", "bias")]
    normed = nn.functional.group_norm(x, 32, *normalisation).flatten(2)
    image = linear("qkv", normed).unflatten(1, (4, 3, 16))
    words = linear("encoder_kv", text.transpose(1, 2)).unflatten(1, (4, 2, 16))
    results = []
    for head in range(4):
        query = image[:, head, 0]
        key = torch.cat([words[:, head, 0], image[:, head, 1]], dim=2)
        value = torch.cat([words[:, head, 1], image[:, head, 2]], dim=2)
        weights = (query.transpose(1, 2) @ key / 4).softmax(dim=2)
        results.append(value @ weights.transpose(1, 2))
    expected = x + linear("proj_out", torch.cat(results, dim=1)).view_as(x)
    attention = network.unet.mid_block.attentions[0]
    with torch.no_grad():
        actual = attention(x, encoder_hidden_states=text)
    assert actual.is_contiguous()
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_padding_has_no_position_and_is_attended_to(tmp_path: Path, random_state: State) -> None:
    network = load_glide(saved(tmp_path / "glide.pt", random_state(SMALL)), SMALL)
    numbers, mask = torch.full((1, 6), 259), torch.zeros(1, 6, dtype=torch.bool)
    with torch.no_grad():
        empty = network.text(numbers, mask)
        # What padding tokens and positions are makes no difference, what is not masked does.
        assert torch.equal(network.text(torch.zeros_like(numbers), mask), empty)
        mask[0, 0] = True
        assert not torch.allclose(network.text(numbers, mask)[0, -1], empty[0, -1])


# What is refused


def refusal(path: Path, config: GlideConfig = SMALL) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load_glide(path, config)
    assert str(path) in caught.value.message
    return caught.value


def test_the_first_differences_are_named(tmp_path: Path, random_state: State) -> None:
    state = random_state(SMALL)
    del state["padding_embedding"]
    state["token_embedding.weight"] = torch.zeros(100, 16)
    state["unemb.weight"] = torch.zeros(2)
    message = refusal(saved(tmp_path / "base.pt", state)).message
    assert "1 missing: padding_embedding (6, 16)" in message
    assert "token_embedding.weight is (100, 16), not (260, 16)" in message
    assert "1 unexpected: unemb.weight (2,)" in message


@pytest.mark.parametrize("actual", PUBLISHED_GLIDE)
def test_a_published_file_given_for_another_is_recognised(
    tmp_path: Path, weightless_state: State, actual: str
) -> None:
    config = PUBLISHED_GLIDE[actual].config
    path = saved(tmp_path / "model.pt", weightless_state(config))
    assert f"published {actual}." in refusal(path).message
    with pytest.raises(CheckpointError, match=f"published {actual}\\."):
        load_adm(path, PUBLISHED_ADM["adm-256-uncond"].config)


@pytest.mark.parametrize("actual", ["adm-256-uncond", "adm-256-classifier"])
def test_another_systems_file_is_recognised(
    tmp_path: Path, weightless_state: State, actual: str
) -> None:
    config = {**PUBLISHED_ADM, **PUBLISHED_CLASSIFIERS}[actual].config
    path = saved(tmp_path / "model.pt", weightless_state(config))
    assert actual in refusal(path, PUBLISHED_GLIDE["glide"].config).message


def test_no_two_published_networks_share_a_layout() -> None:
    for name, entry in PUBLISHED_GLIDE.items():
        assert identify(published_layout(entry.config)) == [name]


# Flags


def test_flags_of_the_process_are_skipped() -> None:
    flags = {
        "noise_schedule": "linear", "timestep_respacing": "fast27", "use_fp16": True,
        "cache_text_emb": True, "diffusion_steps": 4000, "attention_resolutions": "32,16,8",
        "channel_mult": "",
    }  # fmt: skip
    assert GlideConfig.from_flags(flags) == GlideConfig()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"image_sise": 64}, "image_size"),
        ({"image_size": 512}, "channel_mult"),
        ({"xf_width": 0}, "xf_width is 0"),
        ({"xf_heads": 7}, "xf_heads 7 does not divide"),
        ({"text_ctx": "128"}, "type int"),
        ({"num_head_channels": 50}, "does not divide"),
        ({"attention_resolutions": "0"}, "at least 1"),
    ],
)
def test_flags_that_describe_no_network_are_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        GlideConfig.from_flags(flags)


def test_every_parameter_comes_from_the_file() -> None:
    with torch.device("meta"):
        network = GlideNetwork(SMALL)
    sizes = [torch.Size(shape).numel() for shape in published_layout(SMALL).values()]
    assert sum(parameter.numel() for parameter in network.parameters()) == sum(sizes)


# Vocabulary


def test_the_prompt_is_lowered_merged_and_padded(vocabulary: Path) -> None:
    tokenizer = PromptTokenizer.read(vocabulary)
    numbers = json.loads((vocabulary / "vocab.json").read_text())
    assert tokenizer.encode("RED cat") == [numbers[t] for t in ("red", "Ġc", "a", "t")]
    rows, mask = tokenizer(["red", "", "red cat and more"], 4)
    assert rows[0].tolist() == [numbers["red"], 259, 259, 259]
    assert mask.sum(dim=1).tolist() == [1, 0, 4]
    # Not special, wherever it comes from.
    assert 259 not in tokenizer.encode("<|endoftext|>")


def test_packed_files_and_glides_own_names_are_read(vocabulary: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    for ours, theirs in (("vocab.json", "encoder.json.gz"), ("merges.txt", "vocab.bpe.gz")):
        (packed / theirs).write_bytes(gzip.compress((vocabulary / ours).read_bytes()))
    tokenizer = PromptTokenizer.read(packed)
    assert tokenizer.encode("red") == PromptTokenizer.read(vocabulary).encode("red")
    assert [path.name for path in tokenizer.files] == ["encoder.json.gz", "vocab.bpe.gz"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("vocab.json", b"[1, 2]", "no vocabulary"),
        ("vocab.json", b'{"a": 0, "b": 5}', "not numbered"),
        ("vocab.json", b'{"a": "0"}', "no vocabulary"),
        ("vocab.json", b"{", "no vocabulary in JSON"),
        ("vocab.json", b"<html></html>", "no vocabulary in JSON"),
        ("vocab.json", b"\xff\xfe", "damaged"),
        ("vocab.json", b"\x1f\x8b broken", "damaged"),
        ("merges.txt", b"#version: 0.2\nno pair here", "no pair"),
        ("merges.txt", b"#version: 0.2\nzz yy\n", "merges do not belong"),
    ],
)
def test_a_damaged_vocabulary_is_refused(
    vocabulary: Path, name: str, content: bytes, words: str
) -> None:
    (vocabulary / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        PromptTokenizer.read(vocabulary)
    assert "vocab.bpe.gz" in caught.value.remedy


def test_a_vocabulary_that_is_nowhere_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="holds no vocabulary"):
        PromptTokenizer.read(tmp_path)

    def offline(name: str, file: str) -> str:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(CheckpointError, match="cannot be had from the hub") as caught:
        PromptTokenizer.read(tokens.HUB)
    assert "encoder.json.gz" in caught.value.remedy


def test_the_hubs_files_are_read_like_a_folder(
    vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda name, file: str(vocabulary / file)
    )
    assert PromptTokenizer.read("someone/gpt2").size == 260
