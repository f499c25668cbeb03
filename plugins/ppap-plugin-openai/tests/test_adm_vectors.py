"""ADM networks against recorded outputs of openai/guided-diffusion.

The cases lie outside the repository, under ``PPAP_VECTORS`` (default: ``shared/vectors`` beside
it). Every folder there whose ``case.json`` speaks of an ADM network is collected, and what is
checked follows from that file's content alone: its settings, its inputs, its outputs and its
tolerances. ``-rP`` shows the largest error of each output.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
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
from safetensors.torch import load_file
from torch import Tensor, nn

_REPOSITORY = Path(__file__).resolve().parents[3]
ROOT = Path(os.environ.get("PPAP_VECTORS", _REPOSITORY.parent / "shared" / "vectors"))


@dataclass(frozen=True)
class Case:
    """A folder of recorded numbers and the content of its ``case.json``."""

    folder: Path
    content: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.content["config"]
        return settings

    def has(self, *names: str) -> bool:
        """Whether all of these are inputs or outputs."""
        return set(names) <= set(self.content["inputs"]) | set(self.content["outputs"])

    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.folder / "io.safetensors")

    def weights(self, *, classifier: bool) -> Path:
        """The one file of weights, or of two the classifier's or the other."""
        files: list[str] = [name for name in self.content["files"] if name.endswith(".pt")]
        if len(files) > 1:
            files = [name for name in files if ("classifier" in name) == classifier]
        (name,) = files
        return self.folder / name

    def model(self) -> UNet2DModel:
        config = ADMConfig.from_flags(self.settings["model"])
        return load_adm(self.weights(classifier=False), config)

    def classifier(self) -> ADMClassifier:
        config = ADMClassifierConfig.from_flags(self.settings["classifier"])
        return load_adm_classifier(self.weights(classifier=True), config)


def _collect() -> Iterator[Case]:
    for path in sorted(ROOT.rglob("case.json")):
        content = json.loads(path.read_text())
        if content.get("system") == "adm":
            yield Case(path.parent, content)


def _is_forward(case: Case) -> bool:
    return "model" in case.settings and case.has("x", "t", "output")


def _is_classifier(case: Case) -> bool:
    return "classifier" in case.settings and case.has("x", "t", "logits")


def _is_trajectory(case: Case) -> bool:
    return "model" in case.settings and case.has("x_T", "sample", "pred_xstart", "model_t")


def _is_layout(case: Case) -> bool:
    configs = case.settings.values()
    return bool(configs) and all(isinstance(c, dict) and "builder" in c for c in configs)


_KINDS: tuple[Callable[[Case], bool], ...] = (
    _is_forward,
    _is_classifier,
    _is_trajectory,
    _is_layout,
)
CASES = list(_collect())


def cases(kind: Callable[[Case], bool]) -> pytest.MarkDecorator:
    """Run a test for every case of a kind, or skip it saying why there is none."""
    chosen = [pytest.param(case, id=case.folder.name) for case in CASES if kind(case)]
    if not chosen:
        reason = (
            f"no case of this kind under {ROOT}"
            if ROOT.is_dir()
            else f"{ROOT} is not there; set PPAP_VECTORS to the folder of recorded cases"
        )
        chosen = [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))]
    return pytest.mark.parametrize("case", chosen)


class Report:
    """Compares results with a case's recorded outputs, and keeps the largest errors."""

    def __init__(self, case: Case, record_property: Callable[[str, object], None]) -> None:
        self.case = case
        self.record = record_property
        self.failures: list[str] = []
        self.unchecked = set(case.content["outputs"])

    def compare(self, name: str, actual: Tensor, expected: Tensor) -> None:
        tolerance = self.case.content["tolerance"]
        tolerance = tolerance.get("per_output", {}).get(name, tolerance)
        assert actual.shape == expected.shape, name
        error = (actual.double() - expected.double()).abs()
        allowed = tolerance["atol"] + tolerance["rtol"] * expected.double().abs()
        self.record(f"largest error of {name}", f"{error.max():.2e}")
        print(f"{self.case.folder.name}: {name}: largest error {error.max():.2e}")
        if not bool((error <= allowed).all()):
            self.failures.append(f"{name}: {error.max():.3e}, {(error / allowed).max():.2f} times")
        self.unchecked.discard(name)

    def close(self, *, not_the_networks: frozenset[str] = frozenset()) -> None:
        """Fail if anything was out of tolerance, or any output was not looked at."""
        assert not self.failures, self.failures
        assert self.unchecked <= not_the_networks, f"unchecked: {self.unchecked}"


def _capture(module: nn.Module, into: dict[str, Tensor], name: str) -> None:
    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        into[name] = output

    module.register_forward_hook(hook)


@cases(_is_forward)
def test_vector_forward(case: Case, record_property: Callable[[str, object], None]) -> None:
    """A U-Net gives the recorded output, and the recorded values on the way to it."""
    io, unet = case.tensors(), case.model()
    seen: dict[str, Tensor] = {}
    _capture(unet.time_proj, seen, "timestep_embedding")
    _capture(unet.time_embedding, seen, "time_embed")
    assert unet.mid_block is not None
    _capture(unet.mid_block, seen, "middle_block")
    report = Report(case, record_property)
    with torch.no_grad():
        if "t_fractional" in io:
            fractional = unet(io["x"], io["t_fractional"], class_labels=io.get("y")).sample
            report.compare("output_fractional_t", fractional, io["output_fractional_t"])
        output = unet(io["x"], io["t"], class_labels=io.get("y")).sample
    report.compare("output", output, io["output"])
    for name, value in seen.items():
        if name in io:
            report.compare(name, value, io[name])
    report.close()


@cases(_is_classifier)
def test_vector_classifier(case: Case, record_property: Callable[[str, object], None]) -> None:
    """A noise-aware classifier gives the recorded logits and gradient."""
    io, classifier = case.tensors(), case.classifier()
    seen: dict[str, Tensor] = {}
    _capture(classifier.mid_block, seen, "middle_block")
    report = Report(case, record_property)
    x = io["x"].requires_grad_()
    logits = classifier(x, io["t"])
    report.compare("logits", logits.detach(), io["logits"])
    if "y" in io:
        chosen = _selected_log_probability(logits, io["y"])
        (gradient,) = torch.autograd.grad(chosen.sum(), x)
        report.compare("selected_log_prob", chosen.detach(), io["selected_log_prob"])
        report.compare("gradient", gradient, io["gradient"])
    if "middle_block" in io:
        report.compare("middle_block", seen["middle_block"].detach(), io["middle_block"])
    report.close()


@cases(_is_trajectory)
def test_vector_networks_of_trajectory(
    case: Case, record_property: Callable[[str, object], None]
) -> None:
    """At every state of a recorded trajectory, network and classifier agree with the record.

    Sampling itself is not the subject: each step starts from the recorded state, so only the
    step's clean estimate and gradient depend on the networks.
    """
    io, unet = case.tensors(), case.model()
    report = Report(case, record_property)
    flags, sampling = case.settings["model"], case.settings["sampling"]
    states = torch.cat([io["x_T"][None], io["sample"][:-1]]).flatten(0, 1)
    steps, batch = io["sample"].shape[:2]
    shape = io["sample"].shape
    labels = io["y"].repeat(steps) if "y" in io else None

    if "classifier" in case.settings:
        classifier = case.classifier()
        assert labels is not None
        x = states.clone().requires_grad_()
        logits = classifier(x, io["classifier_t"].repeat_interleave(batch))
        chosen = _selected_log_probability(logits, labels)
        (gradient,) = torch.autograd.grad(chosen.sum() * sampling["classifier_scale"], x)
        report.compare(
            "selected_log_prob", chosen.detach().view(steps, batch), io["selected_log_prob"]
        )
        report.compare("gradient", gradient.view(shape), io["gradient"])

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
    report.compare("pred_xstart", clean.view(shape), io["pred_xstart"])
    report.close(not_the_networks=frozenset({"sample", "image_uint8", "model_t", "classifier_t"}))


@cases(_is_layout)
def test_vector_layouts(case: Case, record_property: Callable[[str, object], None]) -> None:
    """Published files' tensors are all named, in order, and all find a place in a network."""
    (file,) = (name for name in case.content["files"] if name.endswith(".json"))
    layouts = json.loads((case.folder / file).read_text())
    assert layouts.keys() == case.settings.keys()
    for checkpoint, settings in case.settings.items():
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
        record_property(checkpoint, parameters)


def test_vector_cases_are_all_understood() -> None:
    """No recorded network is left out because its case looks unlike the known kinds."""
    if not CASES:
        pytest.skip(f"no ADM case under {ROOT}; set PPAP_VECTORS to the folder of recorded cases")
    described = [case for case in CASES if {"model", "classifier"} & case.settings.keys()]
    for case in described:
        assert any(kind(case) for kind in _KINDS), case.folder


@cases(_is_forward)
def test_vector_forward_notices_wrong_flags(case: Case) -> None:
    """The comparison has teeth: flags that no shape betrays still change the output."""
    io = case.tensors()
    config = ADMConfig.from_flags(case.settings["model"])
    wrong = replace(config, use_new_attention_order=not config.use_new_attention_order)
    unet = load_adm(case.weights(classifier=False), wrong)
    if all(block.heads == 1 for block in unet.modules() if isinstance(block, Attention)):
        pytest.skip("with one head the two orders of queries, keys and values are the same")
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
