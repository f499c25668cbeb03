"""GLIDE against recorded outputs of openai/glide-text2im.

The cases lie outside the repository, under ``PPAP_VECTORS`` (default: ``shared/vectors`` beside
it). Every folder there whose ``case.json`` speaks of GLIDE is collected, and what is checked
follows from that file's content alone. ``-rP`` shows the largest errors.
"""

from __future__ import annotations

import gzip
import hashlib
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
from ppap_plugin_openai.backbone import BETAS
from ppap_plugin_openai.glide import (
    PUBLISHED_GLIDE,
    GlideConfig,
    GlideNetwork,
    identify,
    load_glide,
    published_layout,
)
from ppap_plugin_openai.glide_backbone import GlideBackbone, GlideUpsampler
from ppap_plugin_openai.loading import convert
from ppap_plugin_openai.tokens import PromptTokenizer, padded, vocabulary_files
from safetensors.torch import load_file
from torch import Tensor, nn

from ppap_host.backbones.backbone import ClassifierFree, Prediction
from ppap_host.backbones.noise import DiscreteSchedule, NoiseLevel, respace
from ppap_host.sampling.loop import Event, sample
from ppap_host.sampling.solvers import DDIM, DDPM, Solver

_REPOSITORY = Path(__file__).resolve().parents[3]
ROOT = Path(os.environ.get("PPAP_VECTORS", _REPOSITORY.parent / "shared" / "vectors"))
Record = Callable[[str, object], None]


@dataclass(frozen=True)
class Case:
    """A folder of recorded numbers and the content of its ``case.json``."""

    folder: Path
    content: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.content["config"]
        return settings

    @property
    def sampling(self) -> dict[str, Any]:
        sampling: dict[str, Any] = self.settings["sampling"]
        return sampling

    def has(self, *names: str) -> bool:
        """Whether all of these are inputs or outputs."""
        return set(names) <= set(self.content["inputs"]) | set(self.content["outputs"])

    def tensors(self, file: str = "io.safetensors") -> dict[str, Tensor]:
        return load_file(self.folder / file)

    def config(self) -> GlideConfig:
        flags = dict(self.settings["model"])
        if self.settings.get("n_vocab_override"):
            flags["n_vocab"] = self.settings["n_vocab_override"]
        return GlideConfig.from_flags(flags)

    def network(self) -> GlideNetwork:
        (name,) = (file for file in self.content["files"] if file.endswith(".pt"))
        return load_glide(self.folder / name, self.config())

    def backbone(self) -> GlideBackbone:
        flags = self.settings["model"]
        cls = GlideUpsampler if flags["super_res"] else GlideBackbone
        backbone = cls(
            self.network(),
            noise_schedule=flags["noise_schedule"],
            diffusion_steps=flags["diffusion_steps"],
        )
        backbone.clip = (-1.0, 1.0) if self.sampling["clip_denoised"] else None
        return backbone


def _collect() -> Iterator[Case]:
    for path in sorted(ROOT.rglob("case.json")):
        content = json.loads(path.read_text())
        if content.get("system") == "glide":
            yield Case(path.parent, content)


def _is_forward(case: Case) -> bool:
    return "model" in case.settings and case.has("x", "t", "tokens", "mask", "output")


def _is_trajectory(case: Case) -> bool:
    return "sampling" in case.settings and case.has("tokens", "mask", "sample", "pred_xstart")


def _is_schedule(case: Case) -> bool:
    return "diffusion" in case.settings


def _is_layout(case: Case) -> bool:
    configs = case.settings.values()
    return bool(configs) and all(isinstance(c, dict) and "builder" in c for c in configs)


def _is_tokenizer(case: Case) -> bool:
    return "text_ctx" in case.settings


def _is_vocabulary(case: Case) -> bool:
    return "n_vocab" in case.settings and not _is_tokenizer(case)


_KINDS = (_is_forward, _is_trajectory, _is_schedule, _is_layout, _is_tokenizer, _is_vocabulary)
CASES = list(_collect())


def cases(kind: Callable[[Case], bool]) -> pytest.MarkDecorator:
    """Run a test for every case of a kind, or skip it saying why there is none."""
    chosen = [pytest.param(case, id=case.folder.name) for case in CASES if kind(case)]
    if not chosen:
        reason = (
            f"no GLIDE case of this kind under {ROOT}"
            if ROOT.is_dir()
            else f"{ROOT} is not there; set PPAP_VECTORS to the folder of recorded cases"
        )
        chosen = [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))]
    return pytest.mark.parametrize("case", chosen)


class Report:
    """Compares results with a case's recorded outputs, and keeps the largest errors."""

    def __init__(self, case: Case, record_property: Record) -> None:
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
        largest = float(error.max()) if error.numel() else 0.0
        self.record(f"largest error of {name}", f"{largest:.2e}")
        print(f"{self.case.folder.name}: {name}: largest error {largest:.2e}")
        if not bool((error <= allowed).all()):
            self.failures.append(f"{name}: {largest:.3e}, {(error / allowed).max():.2f} times")
        self.unchecked.discard(name)

    def close(self) -> None:
        """Fail if anything was out of tolerance, or any output was not looked at."""
        assert not self.failures, self.failures
        assert not self.unchecked, f"unchecked: {self.unchecked}"


def _capture(module: nn.Module, into: dict[str, Tensor], name: str) -> None:
    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        into[name] = output

    module.register_forward_hook(hook)


@cases(_is_forward)
def test_vector_glide_forward(case: Case, record_property: Record) -> None:
    """A network gives the recorded output, and the recorded values on the way to it."""
    io, network = case.tensors(), case.network()
    seen: dict[str, Tensor] = {}
    assert network.unet.mid_block is not None
    _capture(network.unet.mid_block, seen, "middle_block")
    _capture(network.unet.class_embedding, seen, "xf_proj")
    report = Report(case, record_property)
    images = {name: io[name] for name in ("low_res", "inpaint_image", "inpaint_mask") if name in io}
    with torch.no_grad():
        states = network.text(io["tokens"], io["mask"].bool())
        if "output_no_inpaint_inputs" in io:
            bare = {name: value for name, value in images.items() if "inpaint" not in name}
            output = network(io["x"], io["t"], states, **bare)
            report.compare("output_no_inpaint_inputs", output, io["output_no_inpaint_inputs"])
        output = network(io["x"], io["t"], states, **images)
    report.compare("output", output, io["output"])
    seen["xf_out"] = states.transpose(1, 2)
    for name, value in seen.items():
        if name in io:
            report.compare(name, value, io[name])
    report.close()


@cases(_is_trajectory)
def test_vector_glide_trajectory(case: Case, record_property: Record) -> None:
    """The host's sampler, guidance and schedule walk the recorded path.

    With classifier-free guidance the first half of the record's rows is the result. The second is
    what the reference carries along: states of their own under the first half's guided noise and
    the unconditional branch's variance. It is walked too, so that every number is compared.
    """
    io, backbone = case.tensors(), case.backbone()
    backbone.keeps_known = "denoised_fn" in case.sampling
    report = Report(case, record_property)
    scale = case.sampling.get("guidance_scale")
    guided = scale is not None
    rows = len(io["tokens"]) // 2 if guided else len(io["tokens"])
    condition = backbone.encode_tokens(io["tokens"], io["mask"].bool())
    conditional = {key: value[:rows] for key, value in condition.items()}
    unconditional = {key: value[rows:] for key, value in condition.items()}
    if guided:
        # The empty prompt needs no vocabulary, and is what the reference takes.
        empty = backbone.encode_prompts([""])["states"].expand_as(unconditional["states"])
        torch.testing.assert_close(unconditional["states"], empty, atol=1e-5, rtol=1e-5)
    images = {}
    if isinstance(backbone, GlideUpsampler):
        images = backbone.conditioned_on(io["base_sample"])
        report.compare("low_res", images["low_res"], io["low_res"])
    if "inpaint_mask" in io:
        images |= backbone.inpainting(io["inpaint_image"][:rows], io["inpaint_mask"][:rows])
    if "x_T_unit" in io:
        temperature = case.sampling.get("upsample_temp", 1.0)
        if isinstance(backbone, GlideUpsampler) and temperature == 0.997:
            assert backbone.start_temperature == temperature
        start = temperature * io["x_T_unit"]
        report.compare("x_T", start, io["x_T"])
    else:
        start = io["x_T"]
    guide_free = ClassifierFree(
        backbone,
        {**conditional, **images},
        {**unconditional, **images},
        1.0 if scale is None else scale,
    )

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        first = guide_free(x[:rows], level)
        if not guided:
            return first
        second = backbone.predict(x[:rows], level, {**unconditional, **images})
        assert first.v is not None and second.v is not None
        return Prediction(torch.cat([first.eps] * 2), torch.cat([first.v, second.v]))

    ddim = "ddim" in case.sampling["sampler"]
    solver: Solver = DDIM(case.sampling.get("eta", 0.0)) if ddim else DDPM()
    draws = iter(io["noise"]) if "noise" in io else iter(())
    reports: list[Event] = []
    sample(
        backbone,
        denoise,
        backbone.walk(case.settings["model"]["timestep_respacing"]),
        solver,
        lambda: next(draws),
        start=start,
        watch=reports.append,
    )
    report.compare("sample", torch.stack([r.x_next for r in reports]), io["sample"])
    estimates = torch.stack([r.estimate.x0 for r in reports])
    report.compare("pred_xstart", estimates, io["pred_xstart"])
    times = torch.tensor([int(r.estimate.level.time) for r in reports])
    report.compare("model_t", times, io["model_t"])
    report.close()


@cases(_is_schedule)
def test_vector_glide_schedules(case: Case, record_property: Record) -> None:
    """Betas, kept steps and posteriors are the recorded ones, in both precisions."""
    io, diffusion = case.tensors(), case.settings["diffusion"]
    exact = (
        case.tensors("io_f64.safetensors") if "io_f64.safetensors" in case.content["files"] else {}
    )
    report = Report(case, record_property)
    steps, ours = diffusion["diffusion_steps"], {}
    for spacing in diffusion["timestep_respacing"]:
        label = spacing.replace(",", "-") or "full"
        ours[f"timesteps/{label}"] = torch.tensor(respace(steps, spacing))
        for name in diffusion["noise_schedule"]:
            betas = BETAS[name](steps)
            schedule = DiscreteSchedule.from_betas(betas)
            walk = schedule.walk(spacing)
            posteriors = [walk.posterior(i) for i in reversed(range(len(walk)))]
            tables = {
                "betas": [math.exp(p.log_upper) for p in posteriors],
                "alphas_cumprod": [level.alpha**2 for level in reversed(walk.levels[:-1])],
                "posterior_variance": [p.variance for p in posteriors],
                "posterior_log_variance_clipped": [p.log_lower for p in posteriors],
                "posterior_mean_coef1": [p.of_x0 for p in posteriors],
                "posterior_mean_coef2": [p.of_xt for p in posteriors],
                "log_betas": [p.log_upper for p in posteriors],
            }
            for table, values in tables.items():
                ours[f"{name}/{label}/{table}"] = torch.tensor(values, dtype=torch.float64)
            ours[f"{name}/betas"] = torch.from_numpy(betas)
            ours[f"{name}/alphas_cumprod"] = torch.from_numpy(schedule.alphas_cumprod)
    for name in case.content["outputs"]:
        report.compare(name, ours[name], io[name])
        if name in exact:
            torch.testing.assert_close(
                ours[name].double(), exact[name].double(), rtol=1e-9, atol=1e-12, msg=name
            )
    report.close()


@cases(_is_layout)
def test_vector_glide_layouts(case: Case, record_property: Record) -> None:
    """Published files' tensors are all named, in order, and all find a place in a network."""
    (file,) = (name for name in case.content["files"] if name.endswith(".json"))
    layouts = json.loads((case.folder / file).read_text())
    assert layouts.keys() == case.settings.keys()
    by_file = {entry.file: (name, entry) for name, entry in PUBLISHED_GLIDE.items()}
    for checkpoint, settings in case.settings.items():
        config = GlideConfig.from_flags(settings["flags"])
        expected = {name: tuple(shape) for name, shape in layouts[checkpoint]["state_dict"].items()}
        assert list(published_layout(config).items()) == list(expected.items()), checkpoint

        with torch.device("meta"):
            state = {name: torch.empty(shape) for name, shape in expected.items()}
            network = GlideNetwork(config)
        network.load_state_dict(_converted(state, config), strict=True, assign=True)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        assert parameters == layouts[checkpoint]["parameters"], checkpoint
        if checkpoint in by_file:
            name, entry = by_file[checkpoint]
            assert identify(expected) == [name]
            assert entry.config == config
            assert entry.noise_schedule == settings["flags"]["noise_schedule"]
        record_property(checkpoint, parameters)


def _converted(state: dict[str, Tensor], config: GlideConfig) -> dict[str, Tensor]:
    from ppap_plugin_openai.glide import _entries

    return convert(state, _entries(config), "")


@cases(_is_vocabulary)
def test_vector_glide_vocabulary(case: Case, record_property: Record) -> None:
    """The vocabulary's files are read as they are, and are those that were recorded."""
    for name, described in case.content["files"].items():
        data = (case.folder / name).read_bytes()
        assert len(data) == described["bytes"]
        assert hashlib.sha256(data).hexdigest() == described["sha256"]
    tokenizer = PromptTokenizer.read(case.folder)
    assert tokenizer.size == case.settings["n_vocab"]
    assert tokenizer.size - 1 == case.settings["end_token"]
    assert tokenizer.files == vocabulary_files(case.folder)
    record_property("tokens", tokenizer.size)


def _vocabularies(case: Case) -> Iterator[Path]:
    named = str(case.settings.get("vocabulary", "")).split(" ")[0]
    folders = [case.folder, case.folder / named]
    folders += [other.folder for other in CASES if _is_vocabulary(other)]
    return (folder for folder in folders if folder.is_dir() and vocabulary_files(folder))


@cases(_is_tokenizer)
def test_vector_glide_tokens(case: Case, record_property: Record, tmp_path: Path) -> None:
    """Every recorded prompt becomes the recorded tokens, padding and mask, however it is packed."""
    folder = next(_vocabularies(case), None)
    if folder is None:
        pytest.skip(f"no vocabulary for {case.folder}")
    files = vocabulary_files(folder)
    assert files is not None
    for path, name in zip(files, ("vocab.json", "merges.txt"), strict=True):
        data = path.read_bytes()
        (tmp_path / name).write_bytes(gzip.decompress(data) if path.suffix == ".gz" else data)
    io = case.tensors()
    (file,) = (name for name in case.content["files"] if name.endswith(".json"))
    rows = json.loads((case.folder / file).read_text())
    report = Report(case, record_property)
    for source in (folder, tmp_path):
        tokenizer = PromptTokenizer.read(source)
        assert tokenizer.size == case.settings["n_vocab"]
        for row in rows:
            assert tokenizer.encode(row["prompt"]) == row["tokens"], row["prompt"]
        for length in case.settings["text_ctx"]:
            tokens, mask = tokenizer([row["prompt"] for row in rows], length)
            report.compare(f"padded_tokens_{length}", tokens, io[f"padded_tokens_{length}"])
            report.compare(f"mask_{length}", mask.long(), io[f"mask_{length}"])
            by_hand = padded([row["tokens"] for row in rows], length, case.settings["end_token"])
            assert all(torch.equal(a, b) for a, b in zip(by_hand, (tokens, mask), strict=True))
    record_property("prompts", len(rows))
    report.close()


def test_vector_glide_cases_are_all_understood() -> None:
    """No recorded case is left out because it looks unlike the known kinds."""
    if not CASES:
        pytest.skip(f"no GLIDE case under {ROOT}; set PPAP_VECTORS to the folder of cases")
    for case in CASES:
        assert sum(kind(case) for kind in _KINDS) == 1, case.folder


@cases(_is_forward)
def test_vector_glide_forward_notices_what_is_easy_to_get_wrong(case: Case) -> None:
    """The comparison has teeth: mask, pooled position and number of heads all show."""
    io, config = case.tensors(), case.config()
    images = {name: io[name] for name in ("low_res", "inpaint_image", "inpaint_mask") if name in io}

    def error(network: GlideNetwork, states: Tensor) -> float:
        with torch.no_grad():
            output = network(io["x"], io["t"], states, **images)
        return float((output - io["output"]).abs().max())

    network = case.network()
    least = 10 * case.content["tolerance"]["atol"]
    with torch.no_grad():
        states = network.text(io["tokens"], io["mask"].bool())
        if config.xf_padding and not io["mask"].all():
            unmasked = network.text(io["tokens"], torch.ones_like(io["mask"]).bool())
            assert error(network, unmasked) > least
    # As if the pooled vector were the last real token's.
    swapped = torch.cat([states[:, -1:], states[:, 1:-1], states[:, :1]], dim=1)
    assert error(network, swapped) > least
    if config.xf_heads > 1:
        (name,) = (file for file in case.content["files"] if file.endswith(".pt"))
        wrong = load_glide(case.folder / name, replace(config, xf_heads=1))
        with torch.no_grad():
            states = wrong.text(io["tokens"], io["mask"].bool())
        assert error(wrong, states) > least
    assert any(isinstance(module, Attention) for module in network.unet.modules())
