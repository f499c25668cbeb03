"""Loading ADM files: what is accepted, what is refused and with which words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from ppap_plugin_openai.adm import (
    PUBLISHED_ADM,
    PUBLISHED_CLASSIFIERS,
    ADMClassifier,
    ADMClassifierConfig,
    ADMConfig,
    build_adm,
    convert_state_dict,
    load_adm,
    load_adm_classifier,
    published_layout,
)
from safetensors.torch import save_file
from torch import Tensor

from ppap_host.files.errors import CheckpointError, OptionError

SMALL = ADMConfig(
    image_size=16,
    num_channels=32,
    num_res_blocks=1,
    num_heads=4,
    attention_resolutions=(8,),
    channel_mult=(1, 2),
    class_cond=True,
    resblock_updown=True,
    learn_sigma=True,
)
SMALL_CLASSIFIER = ADMClassifierConfig(
    image_size=16,
    model_channels=32,
    num_res_blocks=1,
    attention_resolutions=(2,),
    out_channels=7,
    channel_mult=(1, 2),
    num_head_channels=16,
    pool="attention",
)


def random_state(config: ADMConfig | ADMClassifierConfig) -> dict[str, Tensor]:
    """Weights in the published form, scaled so that activations stay near 1."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in published_layout(config).items():
        fan_in = max(1, torch.Size(shape[1:]).numel())
        state[name] = torch.randn(shape, generator=generator) / fan_in**0.5
    return state


def weightless_state(config: ADMConfig | ADMClassifierConfig) -> dict[str, Tensor]:
    """Zeros in the published form: one stored number a tensor, whatever its shape."""
    return {name: torch.zeros(1).expand(shape) for name, shape in published_layout(config).items()}


def saved(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


def outputs(path: Path, config: ADMConfig = SMALL) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, config.image_size, config.image_size, generator=generator)
    labels = torch.tensor([3, 999]) if config.class_cond else None
    with torch.no_grad():
        result: Tensor = load_adm(path, config)(
            x, torch.tensor([0, 700]), class_labels=labels
        ).sample
    return result


# What is accepted


def test_every_file_format_gives_the_same_network(tmp_path: Path) -> None:
    state = random_state(SMALL)
    expected = outputs(saved(tmp_path / "zip.pt", state))
    assert expected.shape == (2, 6, 16, 16)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "new.safetensors")
    save_file(state, tmp_path / "misnamed.pt")
    for name in ("old.pt", "new.safetensors", "misnamed.pt"):
        assert torch.equal(outputs(tmp_path / name), expected), name


def test_half_precision_files_load_as_float32(tmp_path: Path) -> None:
    half = {name: tensor.half() for name, tensor in random_state(SMALL).items()}
    path = saved(tmp_path / "half.pt", half)
    assert outputs(path).dtype == torch.float32
    again = saved(tmp_path / "float.pt", {name: tensor.float() for name, tensor in half.items()})
    assert torch.equal(outputs(path), outputs(again))


def test_networks_come_frozen_and_in_evaluation_mode(tmp_path: Path) -> None:
    config = replace(SMALL, dropout=0.5)
    unet = load_adm(saved(tmp_path / "unet.pt", random_state(config)), config)
    path = saved(tmp_path / "classifier.pt", random_state(SMALL_CLASSIFIER))
    for network in (unet, load_adm_classifier(path, SMALL_CLASSIFIER)):
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not any(module.training for module in network.modules())


def test_a_network_outlives_its_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "unet.pt", random_state(SMALL))
    unet = load_adm(path, SMALL)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    for name, tensor in unet.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_converted_tensors_share_no_memory() -> None:
    state = random_state(replace(SMALL, use_new_attention_order=True))
    converted = convert_state_dict(state, replace(SMALL, use_new_attention_order=True))
    storages = [t.untyped_storage().data_ptr() for t in (*state.values(), *converted.values())]
    assert len(set(storages)) == len(storages)


@pytest.mark.parametrize("new_order", [False, True])
def test_attention_rows_are_dealt_out_by_their_order(tmp_path: Path, new_order: bool) -> None:
    """The middle's attention, computed from the published tensors by the order's definition."""
    config = replace(SMALL, use_new_attention_order=new_order)
    state = random_state(config)
    unet = load_adm(saved(tmp_path / "unet.pt", state), config)
    width, heads = 64, 4
    x = torch.randn(2, width, 4, 4, generator=torch.Generator().manual_seed(2))

    block = {name: state[f"middle_block.1.{name}"] for name in ("norm.weight", "norm.bias")}
    normed = torch.nn.functional.group_norm(
        x, 32, block["norm.weight"], block["norm.bias"]
    ).flatten(2)
    rows = state["middle_block.1.qkv.weight"][..., 0] @ normed
    rows = rows + state["middle_block.1.qkv.bias"][:, None]
    results = []
    size = width // heads
    for head in range(heads):
        first = head * size if new_order else 3 * head * size
        stride = width if new_order else size
        query, key, value = (rows[:, first + k * stride :][:, :size] for k in range(3))
        weights = (query.transpose(1, 2) @ key / size**0.5).softmax(dim=2)
        results.append(value @ weights.transpose(1, 2))
    projected = state["middle_block.1.proj_out.weight"][..., 0] @ torch.cat(results, dim=1)
    expected = x + (projected + state["middle_block.1.proj_out.bias"][:, None]).view_as(x)

    assert unet.mid_block is not None
    with torch.no_grad():
        actual = unet.mid_block.attentions[0](x)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_attention_does_not_switch_the_memory_layout() -> None:
    """Channels-last layers after it would cost a decimal place of float32 on the CPU."""
    unet = build_adm(SMALL)
    assert unet.mid_block is not None
    assert unet.mid_block.attentions[0](torch.randn(2, 64, 4, 4)).is_contiguous()


def test_the_head_width_decides_over_the_number_of_heads() -> None:
    def heads(**flags: Any) -> dict[str, int]:
        unet = build_adm(replace(SMALL, **flags))
        blocks = {n: m for n, m in unet.named_modules() if isinstance(m, Attention)}
        return {name.split("_")[0]: block.heads for name, block in blocks.items()}

    assert heads(num_heads=2) == {"down": 2, "mid": 2, "up": 2}
    assert heads(num_heads=2, num_heads_upsample=8) == {"down": 2, "mid": 2, "up": 8}
    assert heads(num_heads=2, num_heads_upsample=8, num_head_channels=16) == {
        "down": 4,
        "mid": 4,
        "up": 4,
    }


def test_the_timestep_embedding_has_the_base_width(tmp_path: Path) -> None:
    config = replace(SMALL, num_channels=64, channel_mult=(0.5, 1))
    assert published_layout(config)["time_embed.0.weight"] == (256, 64)
    assert published_layout(config)["input_blocks.0.0.weight"] == (32, 3, 3, 3)
    assert outputs(saved(tmp_path / "unet.pt", random_state(config)), config).isfinite().all()


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_every_pool_loads_and_depends_on_image_and_timestep(tmp_path: Path, pool: Any) -> None:
    config = replace(SMALL_CLASSIFIER, pool=pool)
    classifier = load_adm_classifier(saved(tmp_path / "c.pt", random_state(config)), config)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)).requires_grad_()
    early, late = classifier(x, torch.tensor([1, 1])), classifier(x, torch.tensor([900, 900]))
    assert early.shape == (2, 7)
    assert not torch.allclose(early, late)
    (gradient,) = torch.autograd.grad(early[0].sum(), x)
    assert gradient[0].abs().max() > 0
    assert gradient[1].abs().max() == 0


# What is refused: files


def refusal(path: Path, config: ADMConfig = SMALL) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load_adm(path, config)
    assert str(path) in caught.value.message
    return caught.value


# What is refused: files that do not fit


def test_the_first_differences_are_named(tmp_path: Path) -> None:
    state = random_state(SMALL)
    del state["time_embed.0.weight"], state["label_emb.weight"], state["out.0.bias"]
    del state["out.0.weight"]
    state["out.2.weight"] = torch.zeros(3, 32, 3, 3)
    state["low_res.weight"] = torch.zeros(2)
    message = refusal(saved(tmp_path / "model.pt", state)).message
    assert "4 missing: time_embed.0.weight (128, 32); label_emb.weight (1000, 128)" in message
    assert "out.0.bias" not in message
    assert "out.2.weight is (3, 32, 3, 3), not (6, 32, 3, 3)" in message
    assert "1 unexpected: low_res.weight (2,)" in message


@pytest.mark.parametrize("actual", [*PUBLISHED_ADM, *PUBLISHED_CLASSIFIERS])
def test_a_published_file_given_for_another_is_recognised(tmp_path: Path, actual: str) -> None:
    if actual in PUBLISHED_ADM:
        state = weightless_state(PUBLISHED_ADM[actual].config)
    else:
        state = weightless_state(PUBLISHED_CLASSIFIERS[actual].config)
    path = saved(tmp_path / "model.pt", state)
    error = refusal(path)
    assert f"published {actual}" in error.message or f" or {actual}" in error.message


def test_a_classifier_file_is_no_backbone_and_the_reverse(tmp_path: Path) -> None:
    unet = PUBLISHED_ADM["adm-256-uncond"].config
    classifier = PUBLISHED_CLASSIFIERS["adm-256-classifier"].config
    path = saved(tmp_path / "classifier.pt", weightless_state(classifier))
    assert "published adm-256-classifier" in refusal(path, unet).message
    path = saved(tmp_path / "unet.pt", weightless_state(unet))
    with pytest.raises(CheckpointError, match="published adm-256-uncond"):
        load_adm_classifier(path, classifier)


def test_an_unknown_misfit_is_not_taken_for_a_published_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", random_state(replace(SMALL, num_res_blocks=2)))
    error = refusal(path)
    assert "published" not in error.message
    assert "flags" in error.remedy


# Flags


def test_flags_that_change_no_weight_are_skipped() -> None:
    flags = {"image_size": 64, "num_channels": 64}
    extra = {
        "use_fp16": True,
        "use_checkpoint": True,
        "diffusion_steps": 4000,
        "noise_schedule": "cosine",
        "timestep_respacing": "ddim25",
        "rescale_timesteps": True,
    }
    assert ADMConfig.from_flags(flags | extra) == ADMConfig.from_flags(flags)


def test_lists_may_be_written_as_on_the_command_line() -> None:
    written = ADMConfig.from_flags(
        {"image_size": 32, "attention_resolutions": "16,8", "channel_mult": "1,2,2"}
    )
    given = ADMConfig.from_flags(
        {"image_size": 32, "attention_resolutions": [16, 8], "channel_mult": (1, 2, 2)}
    )
    assert written == given
    assert written.channel_mult == (1, 2, 2)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"image_sise": 64}, "image_size"),
        ({"image_size": 96}, "channel_mult"),
        ({"image_size": "64"}, "type int"),
        ({"class_cond": "True"}, "type bool"),
        ({"attention_resolutions": "16,x"}, "list of numbers"),
        ({"attention_resolutions": [8.5]}, "whole numbers"),
        ({"attention_resolutions": "0"}, "at least 1"),
        ({"num_channels": 24}, "normalisation groups"),
        ({"num_head_channels": 48}, "does not divide"),
        ({"num_heads": 3}, "num_heads 3 does not divide"),
        ({"num_res_blocks": 0}, "num_res_blocks is 0"),
        ({"image_size": 20, "channel_mult": "1,1,1,1"}, "halved"),
        ({"large_size": 256}, "small_size"),
    ],
)
def test_flags_that_describe_no_network_are_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        ADMConfig.from_flags(flags)


def test_upsamplers_take_two_images_and_multipliers_of_their_own() -> None:
    flags = {"large_size": 512, "small_size": 128, "num_channels": 64, "num_head_channels": 64}
    config = ADMConfig.from_flags(flags)
    assert config.in_channels == 6
    assert config.channel_mult == (1, 1, 2, 2, 4, 4)
    assert published_layout(config)["input_blocks.0.0.weight"] == (64, 6, 3, 3)
    assert ADMConfig(image_size=512).channel_mult == (0.5, 1, 1, 2, 2, 4, 4)


def test_both_vocabularies_describe_the_same_classifier() -> None:
    arguments = {
        "constructor": "EncoderUNetModel",
        "image_size": 64,
        "in_channels": 3,
        "model_channels": 128,
        "out_channels": 1000,
        "num_res_blocks": 4,
        "attention_resolutions": [2, 4, 8],
        "channel_mult": [1, 2, 3, 4],
        "num_head_channels": 64,
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        "pool": "attention",
    }
    flags = {"image_size": 64, "classifier_depth": 4, "classifier_use_fp16": True}
    assert ADMClassifierConfig.from_flags(arguments) == ADMClassifierConfig.from_flags(flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"classifier_widht": 64}, "classifier_width"),
        ({"image_size": 64, "model_channels": 64, "classifier_depth": 2}, "classifier_depth"),
        ({"model_channels": 64}, "lack image_size"),
        ({"constructor": "UNetModel"}, "UNetModel"),
        ({"classifier_pool": "mean"}, "attention, adaptive, spatial, spatial_v2"),
        ({"image_size": 96}, "channel_mult"),
    ],
)
def test_flags_that_describe_no_classifier_are_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        ADMClassifierConfig.from_flags(flags)


def test_the_attention_pool_needs_a_head_width() -> None:
    with pytest.raises(OptionError, match="num_head_channels"):
        ADMClassifier(replace(SMALL_CLASSIFIER, num_head_channels=-1))
