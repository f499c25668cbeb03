"""ADM networks against recorded outputs of openai/guided-diffusion.

What is checked follows from the content of a case alone: its settings, its inputs, its outputs and
its tolerances. ``-rP`` shows the largest error of each output.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import vectors
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d import UNet2DModel
from ppap_plugin_openai.adm import (
    PUBLISHED_ADM,
    PUBLISHED_CLASSIFIERS,
    ADMClassifier,
    ADMClassifierConfig,
    ADMConfig,
    build_adm,
    convert_state_dict,
    identify,
    load_adm,
    load_adm_classifier,
    published_layout,
)
from torch import Tensor, nn


def weights(case: vectors.Case, *, classifier: bool) -> Path:
    """The one file of weights, or of two the classifier's or the other."""
    files: list[str] = [name for name in case.content["files"] if name.endswith(".pt")]
    if len(files) > 1:
        files = [name for name in files if ("classifier" in name) == classifier]
    (name,) = files
    return case.folder / name


def model_of(case: vectors.Case) -> UNet2DModel:
    return load_adm(weights(case, classifier=False), ADMConfig.from_flags(case.config["model"]))


def classifier_of(case: vectors.Case) -> ADMClassifier:
    config = ADMClassifierConfig.from_flags(case.config["classifier"])
    return load_adm_classifier(weights(case, classifier=True), config)


def is_forward(case: vectors.Case) -> bool:
    return case.system == "adm" and "model" in case.config and case.holds("x", "t", "output")


def is_classifier(case: vectors.Case) -> bool:
    return case.system == "adm" and "classifier" in case.config and case.holds("x", "t", "logits")


def is_trajectory(case: vectors.Case) -> bool:
    names = ("x_T", "sample", "pred_xstart", "model_t")
    return case.system == "adm" and "model" in case.config and case.holds(*names)


def is_layout(case: vectors.Case) -> bool:
    configs = case.config.values()
    return case.system == "adm" and all(isinstance(c, dict) and "builder" in c for c in configs)


def _capture(module: nn.Module, into: dict[str, Tensor], name: str) -> None:
    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        into[name] = output

    module.register_forward_hook(hook)


@vectors.take(is_forward)
def test_vector_forward(case: vectors.Case) -> None:
    """A U-Net gives the recorded output, and the recorded values on the way to it."""
    io, unet = case.recorded, model_of(case)
    seen: dict[str, Tensor] = {}
    _capture(unet.time_proj, seen, "timestep_embedding")
    _capture(unet.time_embedding, seen, "time_embed")
    assert unet.mid_block is not None
    _capture(unet.mid_block, seen, "middle_block")
    with torch.no_grad():
        if "t_fractional" in io:
            fractional = unet(io["x"], io["t_fractional"], class_labels=io.get("y")).sample
            case.compare("output_fractional_t", fractional)
        output = unet(io["x"], io["t"], class_labels=io.get("y")).sample
    case.compare("output", output)
    for name, value in seen.items():
        if name in io:
            case.compare(name, value)


@vectors.take(is_classifier)
def test_vector_classifier(case: vectors.Case) -> None:
    """A noise-aware classifier gives the recorded logits and gradient."""
    io, classifier = case.recorded, classifier_of(case)
    seen: dict[str, Tensor] = {}
    _capture(classifier.mid_block, seen, "middle_block")
    x = io["x"].clone().requires_grad_()
    logits = classifier(x, io["t"])
    case.compare("logits", logits)
    if "y" in io:
        chosen = _selected_log_probability(logits, io["y"])
        (gradient,) = torch.autograd.grad(chosen.sum(), x)
        case.compare("selected_log_prob", chosen)
        case.compare("gradient", gradient)
    if "middle_block" in io:
        case.compare("middle_block", seen["middle_block"])


@vectors.take(is_trajectory, lambda name: name in ("pred_xstart", "selected_log_prob", "gradient"))
def test_vector_networks_of_trajectory(case: vectors.Case) -> None:
    """At every state of a recorded trajectory, network and classifier agree with the record.

    Sampling itself is not the subject: each step starts from the recorded state, so only the
    step's clean estimate and gradient depend on the networks.
    """
    io, unet = case.recorded, model_of(case)
    flags, sampling = case.config["model"], case.config["sampling"]
    states = torch.cat([io["x_T"][None], io["sample"][:-1]]).flatten(0, 1)
    steps, batch = io["sample"].shape[:2]
    shape = io["sample"].shape
    labels = io["y"].repeat(steps) if "y" in io else None

    if "classifier" in case.config:
        classifier = classifier_of(case)
        assert labels is not None
        x = states.clone().requires_grad_()
        logits = classifier(x, io["classifier_t"].repeat_interleave(batch))
        chosen = _selected_log_probability(logits, labels)
        (gradient,) = torch.autograd.grad(chosen.sum() * sampling["classifier_scale"], x)
        case.compare("selected_log_prob", chosen.view(steps, batch))
        case.compare("gradient", gradient.view(shape))

    t = io["model_t"].repeat_interleave(batch)
    with torch.no_grad():
        class_labels = labels if flags["class_cond"] else None
        output = unet(states, t, class_labels=class_labels).sample
    # The clean estimate, in float64 so that no rounding but the networks' is compared.
    abar = _alphas_cumprod(flags)[t].view(-1, 1, 1, 1)
    noisy, eps = states.double(), output[:, :3].double()
    clean = eps if flags["predict_xstart"] else (noisy - (1 - abar).sqrt() * eps) / abar.sqrt()
    if sampling["clip_denoised"]:
        clean = clean.clamp(-1, 1)
    if sampling["use_ddim"] and "gradient" in io:
        # The guided DDIM's estimate is taken from the shifted noise and not clipped again.
        eps = (noisy - abar.sqrt() * clean) / (1 - abar).sqrt()
        eps = eps - (1 - abar).sqrt() * io["gradient"].flatten(0, 1)
        clean = (noisy - (1 - abar).sqrt() * eps) / abar.sqrt()
    case.compare("pred_xstart", clean.view(shape))


@vectors.take(is_layout)
def test_vector_layouts(case: vectors.Case) -> None:
    """Published files' tensors are all named, in order, and all find a place in a network."""
    (file,) = (name for name in case.content["files"] if name.endswith(".json"))
    layouts = json.loads((case.folder / file).read_text())
    assert layouts.keys() == case.config.keys()
    for checkpoint, settings in case.config.items():
        config: ADMConfig | ADMClassifierConfig
        if settings["builder"] == "create_classifier":
            config = ADMClassifierConfig.from_flags(settings["flags"])
        else:
            config = ADMConfig.from_flags(settings["flags"])
        expected = {name: tuple(shape) for name, shape in layouts[checkpoint]["state_dict"].items()}
        assert list(published_layout(config).items()) == list(expected.items()), checkpoint

        with torch.device("meta"):
            state = {name: torch.empty(shape) for name, shape in expected.items()}
            network = build_adm(config) if isinstance(config, ADMConfig) else ADMClassifier(config)
        network.load_state_dict(convert_state_dict(state, config), strict=True, assign=True)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        assert parameters == layouts[checkpoint]["parameters"], checkpoint

        by_file = {
            **{entry.file: (name, entry.config) for name, entry in PUBLISHED_ADM.items()},
            **{entry.file: (name, entry.config) for name, entry in PUBLISHED_CLASSIFIERS.items()},
        }
        if checkpoint in by_file:
            name, published = by_file[checkpoint]
            assert name in identify(expected)
            assert published == config


@vectors.take(is_forward, vectors.nothing)
def test_vector_forward_notices_wrong_flags(case: vectors.Case) -> None:
    """The comparison has teeth: flags that no shape betrays still change the output."""
    io = case.recorded
    config = ADMConfig.from_flags(case.config["model"])
    wrong = replace(config, use_new_attention_order=not config.use_new_attention_order)
    unet = load_adm(weights(case, classifier=False), wrong)
    if all(block.heads == 1 for block in unet.modules() if isinstance(block, Attention)):
        return  # with one head the two orders of queries, keys and values are the same
    with torch.no_grad():
        output = unet(io["x"], io["t"], class_labels=io.get("y")).sample
    error = (output - io["output"]).abs().max().item()
    assert error > 10 * case.content["tolerance"]["atol"]


def _selected_log_probability(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0]


def _alphas_cumprod(flags: dict[str, Any]) -> Tensor:
    """Products of 1 - beta by original timestep, in float64 (arXiv 2102.09672, section 3.2)."""
    steps: int = flags["diffusion_steps"]
    if flags["noise_schedule"] == "linear":
        # The end points belong to 1000 steps; shorter processes scale them up.
        scale = 1000 / steps
        betas = torch.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=torch.float64)
    else:
        assert flags["noise_schedule"] == "cosine"
        signal = [
            math.cos((k / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(steps + 1)
        ]
        betas = torch.tensor(
            [min(1 - signal[k + 1] / signal[k], 0.999) for k in range(steps)], dtype=torch.float64
        )
    return (1 - betas).cumprod(0)
