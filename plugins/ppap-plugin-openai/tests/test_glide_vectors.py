"""GLIDE against recorded outputs of openai/glide-text2im.

What is checked follows from the content of a case alone. ``-rP`` shows the largest errors.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import vectors
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


def config_of(case: vectors.Case) -> GlideConfig:
    flags = dict(case.config["model"])
    if case.config.get("n_vocab_override"):
        flags["n_vocab"] = case.config["n_vocab_override"]
    return GlideConfig.from_flags(flags)


def network_of(case: vectors.Case) -> GlideNetwork:
    (name,) = (file for file in case.content["files"] if file.endswith(".pt"))
    return load_glide(case.folder / name, config_of(case))


def backbone_of(case: vectors.Case) -> GlideBackbone:
    flags = case.config["model"]
    cls = GlideUpsampler if flags["super_res"] else GlideBackbone
    backbone = cls(
        network_of(case),
        noise_schedule=flags["noise_schedule"],
        diffusion_steps=flags["diffusion_steps"],
    )
    backbone.clip = (-1.0, 1.0) if case.config["sampling"]["clip_denoised"] else None
    return backbone


def is_forward(case: vectors.Case) -> bool:
    names = ("x", "t", "tokens", "mask", "output")
    return case.system == "glide" and "model" in case.config and case.holds(*names)


def is_vocabulary(case: vectors.Case) -> bool:
    return case.system == "glide" and "n_vocab" in case.config and "text_ctx" not in case.config


def is_layout(case: vectors.Case) -> bool:
    configs = case.config.values()
    return case.system == "glide" and all(isinstance(c, dict) and "builder" in c for c in configs)


def _capture(module: nn.Module, into: dict[str, Tensor], name: str) -> None:
    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        into[name] = output

    module.register_forward_hook(hook)


@vectors.take(is_forward)
def test_vector_glide_forward(case: vectors.Case) -> None:
    """A network gives the recorded output, and the recorded values on the way to it."""
    io, network = case.recorded, network_of(case)
    seen: dict[str, Tensor] = {}
    assert network.unet.mid_block is not None
    _capture(network.unet.mid_block, seen, "middle_block")
    _capture(network.unet.class_embedding, seen, "xf_proj")
    images = {name: io[name] for name in ("low_res", "inpaint_image", "inpaint_mask") if name in io}
    with torch.no_grad():
        states = network.text(io["tokens"], io["mask"].bool())
        if "output_no_inpaint_inputs" in io:
            bare = {name: value for name, value in images.items() if "inpaint" not in name}
            output = network(io["x"], io["t"], states, **bare)
            case.compare("output_no_inpaint_inputs", output)
        output = network(io["x"], io["t"], states, **images)
    case.compare("output", output)
    seen["xf_out"] = states.transpose(1, 2)
    for name, value in seen.items():
        if name in io:
            case.compare(name, value)


@vectors.take(lambda case: case.system == "glide" and "sampling" in case.config)
def test_vector_glide_trajectory(case: vectors.Case) -> None:
    """The host's sampler, guidance and schedule walk the recorded path.

    With classifier-free guidance the first half of the record's rows is the result. The second is
    what the reference carries along: states of their own under the first half's guided noise and
    the unconditional branch's variance. It is walked too, so that every number is compared.
    """
    io, backbone, sampling = case.recorded, backbone_of(case), case.config["sampling"]
    backbone.keeps_known = "denoised_fn" in sampling
    scale = sampling.get("guidance_scale")
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
        case.compare("low_res", images["low_res"])
    if "inpaint_mask" in io:
        images |= backbone.inpainting(io["inpaint_image"][:rows], io["inpaint_mask"][:rows])
    if "x_T_unit" in io:
        temperature = sampling.get("upsample_temp", 1.0)
        if isinstance(backbone, GlideUpsampler) and temperature == 0.997:
            assert backbone.start_temperature == temperature
        start = temperature * io["x_T_unit"]
        case.compare("x_T", start)
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

    ddim = "ddim" in sampling["sampler"]
    solver: Solver = DDIM(sampling.get("eta", 0.0)) if ddim else DDPM()
    draws = iter(io["noise"]) if "noise" in io else iter(())
    events: list[Event] = []
    sample(
        backbone,
        denoise,
        backbone.walk(case.config["model"]["timestep_respacing"]),
        solver,
        lambda: next(draws),
        start=start,
        watch=events.append,
    )
    case.compare("sample", torch.stack([e.x_next for e in events]))
    case.compare("pred_xstart", torch.stack([e.estimate.x0 for e in events]))
    case.compare("model_t", torch.tensor([int(e.estimate.level.time) for e in events]))


@vectors.take(lambda case: case.system == "glide" and "diffusion" in case.config)
def test_vector_glide_schedules(case: vectors.Case) -> None:
    """Betas, kept steps and posteriors are the recorded ones, in both precisions."""
    diffusion, wide = case.config["diffusion"], case.folder / "io_f64.safetensors"
    exact = load_file(wide) if wide.exists() else {}
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
    for name in case.outputs:
        case.compare(name, ours[name])
        if name in exact:
            torch.testing.assert_close(
                ours[name].double(), exact[name].double(), rtol=1e-9, atol=1e-12, msg=name
            )


@vectors.take(is_layout)
def test_vector_glide_layouts(case: vectors.Case) -> None:
    """Published files' tensors are all named, in order, and all find a place in a network."""
    (file,) = (name for name in case.content["files"] if name.endswith(".json"))
    layouts = json.loads((case.folder / file).read_text())
    assert layouts.keys() == case.config.keys()
    by_file = {entry.file: (name, entry) for name, entry in PUBLISHED_GLIDE.items()}
    for checkpoint, settings in case.config.items():
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


def _converted(state: dict[str, Tensor], config: GlideConfig) -> dict[str, Tensor]:
    from ppap_plugin_openai.glide import _entries

    return convert(state, _entries(config), "")


@vectors.take(is_vocabulary)
def test_vector_glide_vocabulary(case: vectors.Case) -> None:
    """The vocabulary's files are read as they are, and are those that were recorded."""
    for name, described in case.content["files"].items():
        data = (case.folder / name).read_bytes()
        assert len(data) == described["bytes"]
        assert hashlib.sha256(data).hexdigest() == described["sha256"]
    tokenizer = PromptTokenizer.read(case.folder)
    assert tokenizer.size == case.config["n_vocab"]
    assert tokenizer.size - 1 == case.config["end_token"]
    assert tokenizer.files == vocabulary_files(case.folder)


def _vocabularies(case: vectors.Case) -> Iterator[Path]:
    named = str(case.config.get("vocabulary", "")).split(" ")[0]
    folders = [case.folder, case.folder / named]
    folders += [other.folder for other in vectors.CASES if is_vocabulary(other)]
    return (folder for folder in folders if folder.is_dir() and vocabulary_files(folder))


@vectors.take(lambda case: case.system == "glide" and "text_ctx" in case.config)
def test_vector_glide_tokens(case: vectors.Case, tmp_path: Path) -> None:
    """Every recorded prompt becomes the recorded tokens, padding and mask, however it is packed."""
    folder = next(_vocabularies(case))
    files = vocabulary_files(folder)
    assert files is not None
    for path, name in zip(files, ("vocab.json", "merges.txt"), strict=True):
        data = path.read_bytes()
        (tmp_path / name).write_bytes(gzip.decompress(data) if path.suffix == ".gz" else data)
    (file,) = (name for name in case.content["files"] if name.endswith(".json"))
    rows = json.loads((case.folder / file).read_text())
    for source in (folder, tmp_path):
        tokenizer = PromptTokenizer.read(source)
        assert tokenizer.size == case.config["n_vocab"]
        for row in rows:
            assert tokenizer.encode(row["prompt"]) == row["tokens"], row["prompt"]
        for length in case.config["text_ctx"]:
            tokens, mask = tokenizer([row["prompt"] for row in rows], length)
            case.compare(f"padded_tokens_{length}", tokens)
            case.compare(f"mask_{length}", mask.long())
            by_hand = padded([row["tokens"] for row in rows], length, case.config["end_token"])
            assert all(torch.equal(a, b) for a, b in zip(by_hand, (tokens, mask), strict=True))


@vectors.take(is_forward, vectors.nothing)
def test_vector_glide_forward_notices_what_is_easy_to_get_wrong(case: vectors.Case) -> None:
    """The comparison has teeth: mask, pooled position and number of heads all show."""
    io, config = case.recorded, config_of(case)
    images = {name: io[name] for name in ("low_res", "inpaint_image", "inpaint_mask") if name in io}

    def error(network: GlideNetwork, states: Tensor) -> float:
        with torch.no_grad():
            output = network(io["x"], io["t"], states, **images)
        return float((output - io["output"]).abs().max())

    network = network_of(case)
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
