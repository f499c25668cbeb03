"""Networks, files, time steps and sampling against NVlabs/edm's own numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import vectors
from ppap_plugin_edm.backbone import EDMBackbone, time_steps
from ppap_plugin_edm.checkpoint import Snapshot, build, load, make, read
from ppap_plugin_edm.networks import (
    FourierEmbedding,
    PositionalEmbedding,
    ResampledConv,
    UNetBlock,
)
from ppap_plugin_edm.preconditioning import Denoiser, iDDPMPrecond
from safetensors.torch import load_file
from torch import Tensor, nn

from ppap_host.backbones.backbone import Prediction
from ppap_host.backbones.noise import CLEAN, NoiseLevel, Walk
from ppap_host.files.errors import CheckpointError
from ppap_host.recipes.estimate import Estimate
from ppap_host.sampling.loop import Event, sample
from ppap_host.sampling.solvers import Churn, Heun

COMPONENTS: dict[str, Callable[..., nn.Module]] = {
    "UNetBlock": UNetBlock,
    "Conv2d": ResampledConv,
    "PositionalEmbedding": PositionalEmbedding,
    "FourierEmbedding": FourierEmbedding,
}


def of_kind(kind: str) -> Callable[[vectors.Case], bool]:
    """Cases of a kind, told by their settings, not by their names."""

    def kind_of(case: vectors.Case) -> str:
        config = case.config.values()
        if "files" in case.content:
            return "files"
        if "sampler_args" in case.config:
            return "sampling"
        if "class" in case.config and case.holds("out.D"):
            return "network"
        if "limits" in case.config:
            return "steps"
        return "blocks" if all(isinstance(c, dict) and "component" in c for c in config) else "?"

    return lambda case: case.system == "edm" and kind_of(case) == kind


def slice_of(case: vectors.Case, name: str) -> int:
    """Which x of the case an output belongs to: "D(x[4]; sigma[4])"."""
    match = re.search(r"x\[(\d+)\]", case.says(name))
    assert match is not None, f"{name} does not say for which x it is"
    return int(match[1])


# Networks


def number(value: Any) -> float:
    """A number, where JSON has no infinity."""
    return float(value)


def outputs_of(network: Denoiser, part: str, run: Callable[[], Any]) -> Tensor:
    """What a part of the network returns when ``run`` runs it."""
    found: list[Tensor] = []
    module = network.get_submodule(part)
    handle = module.register_forward_hook(lambda _, __, output: found.append(output.detach()))
    with torch.no_grad():
        run()
    handle.remove()
    (output,) = found
    return output


def noise_of(network: Denoiser, run: Callable[[], Any]) -> Tensor:
    """The c_noise that the U-Net is given when ``run`` runs it."""
    found: list[Tensor] = []
    handle = network.model.register_forward_pre_hook(lambda _, given: found.append(given[1]))
    with torch.no_grad():
        run()
    handle.remove()
    return found[0].flatten()[0]


@vectors.take(of_kind("network"))
def test_vector_networks(case: vectors.Case) -> None:
    io, checkpoint, config = case.recorded, case.content["checkpoint"], case.config
    path = case.folder / checkpoint["file"]
    snapshot = read(path)
    assert snapshot.class_name == config["class"]
    told = {k: tuple(v) if isinstance(v, list) else v for k, v in snapshot.arguments.items()}
    named = {k: tuple(v) if isinstance(v, list) else v for k, v in config["init_kwargs"].items()}
    assert told == named
    network = load(path)
    weights = load_file(case.folder / checkpoint["same_weights"])
    assert network.state_dict().keys() == weights.keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    rebuilt = build(Snapshot(config["class"], config["init_kwargs"], weights))
    stored = config["stored_attributes"]
    for limit in ("sigma_min", "sigma_max"):
        assert getattr(network, limit) == number(stored[limit])

    x, sigma, labels = io["in.x"], io["in.sigma"], io.get("in.class_labels")
    count = range(len(sigma))

    @torch.no_grad()
    def denoised(x: Tensor, sigma: Tensor, *given: Tensor | None) -> Tensor:
        return network(x, sigma, *given)  # type: ignore[no-any-return]

    compare = case.compare
    compare("out.D", torch.stack([denoised(x[i], sigma[i], labels) for i in count]))
    with torch.no_grad():
        assert torch.equal(rebuilt(x[0], sigma[0], labels), denoised(x[0], sigma[0], labels))
    raw = [outputs_of(network, "model", lambda i=i: network(x[i], sigma[i], labels)) for i in count]
    compare("out.F", torch.stack(raw))
    noise = [noise_of(network, lambda i=i: network(x[i], sigma[i], labels)) for i in count]
    compare("out.c_noise", torch.stack(noise))
    compare("out.D_vec", denoised(io["in.x_vec"], io["in.sigma_vec"], labels))
    match = re.search(r"at sigma ([\d.]+)", case.says("out.D_zero"))
    assert match is not None
    zero, level = torch.zeros_like(io["out.D_zero"]), torch.tensor(float(match[1]))
    compare("out.D_zero", denoised(zero, level, labels))
    raw_zero = outputs_of(network, "model", lambda: network(zero, level, labels))
    compare("out.F_zero", raw_zero)
    for name, *given in (
        ("out.D_nolabel", None),
        ("out.D_soft", io.get("in.class_labels_soft")),
        ("out.D_augment", labels, *(io[k] for k in io if k.startswith("in.augment"))),
    ):
        if name in io:
            i = slice_of(case, name)
            compare(name, denoised(x[i], sigma[i], *given))
    if "out.round_sigma_out" in io:
        assert isinstance(network, iDDPMPrecond)
        compare("out.round_sigma_out", network.round_sigma(io["in.round_sigma_in"]))
        compare("out.round_sigma_index", network.nearest(io["in.round_sigma_in"]))
    i = slice_of(case, "out.vjp_dx")
    leaf = x[i].clone().requires_grad_(True)
    product = (io["in.vjp_cotangent"] * network(leaf, sigma[i], labels)).sum()
    compare("out.vjp_dx", *torch.autograd.grad(product, leaf))
    probes = [name for name in io if name.startswith("out.probe.")]
    for name in probes:
        i = slice_of(case, "out.probe.<module>")
        part = f"model.{name.removeprefix('out.probe.')}"
        output = outputs_of(network, part, lambda i=i: network(x[i], sigma[i], labels))[0]
        compare(name, output[:16] if output.ndim == 1 else output[:4, :4, :4])


@vectors.take(of_kind("blocks"))
def test_vector_blocks(case: vectors.Case) -> None:
    io, weights = case.recorded, load_file(case.folder / "state_dict.safetensors")
    for name, config in case.config.items():
        arguments = dict(config["args"])
        module = COMPONENTS[config["component"]](**arguments).eval()
        prefix = f"{name}."
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        module.load_state_dict(own, strict=True)
        if isinstance(module, UNetBlock):
            assert module.num_heads == config["num_heads"]
        given = [io[f"in.{name}.{key}"] for key in ("x", "emb") if f"in.{name}.{key}" in io]
        with torch.no_grad():
            case.compare(f"out.{name}.y", module(*given))


# Files


@vectors.take(of_kind("files"))
def test_vector_hostile_and_honest_files(
    case: vectors.Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io, weights = case.recorded, load_file(case.folder / "state_dict.safetensors")
    monkeypatch.chdir(tmp_path)
    for name, told in case.content["files"].items():
        if not told["may_load"]:
            with pytest.raises(CheckpointError) as caught:
                load(case.folder / name)
            assert caught.value.remedy
            called = re.search(r"reduce call is \w+\.(\w+)", told["content"])
            if called is not None:
                assert called[1] in caught.value.message
        else:
            network = load(case.folder / name)
            state = network.state_dict()
            assert state.keys() == weights.keys()
            assert all(torch.equal(tensor, weights[k]) for k, tensor in state.items())
            with torch.no_grad():
                case.compare("out.D", network(io["in.x"], io["in.sigma"]))
        assert not list(tmp_path.iterdir()), f"{name} was run"


# Time steps


def raised_levels(walk: Walk, churn: Churn) -> list[float]:
    """The noise levels of the first evaluation of each step."""
    seen: list[NoiseLevel] = []

    def evaluate(x: Tensor, level: NoiseLevel) -> Estimate:
        seen.append(level)
        return Estimate(level, x, 0 * x, 0 * x)

    solver = Heun(churn, level_at=lambda s: NoiseLevel(1.0, s, s))
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    found = []
    for i in range(len(walk)):
        seen.clear()
        solver.step(x, i, walk, evaluate, lambda: x, None)
        found.append(seen[0].sigma)
    return found


@vectors.take(of_kind("steps"))
def test_vector_time_steps(case: vectors.Case) -> None:
    config, io = case.config, case.recorded
    limits = {name: (number(a), number(b)) for name, (a, b) in config["limits"].items()}
    pattern = r"([\d.]+)"
    for name in case.outputs:
        meaning, arguments = case.says(name), dict(config["defaults"])
        parts = name.removeprefix("out.").split("_")
        rounded = parts[-1] != "unrounded"
        kind, steps = parts[-2 if rounded else -3], int(parts[-1 if rounded else -2])
        custom = re.search(rf"sigma {pattern} -> {pattern}, rho {pattern}", meaning)
        if kind in limits:
            arguments["limits"] = limits[kind]
        elif custom is not None:
            high, low, rho = map(float, custom.groups())
            arguments |= {"sigma_max": high, "sigma_min": low, "rho": rho}
        times = time_steps(steps, **arguments)
        if kind == "iddpm" and rounded:
            network = make(
                "iDDPMPrecond",
                img_resolution=8,
                img_channels=3,
                model_channels=4,
                channel_mult=[1],
                num_blocks=1,
                attn_resolutions=[],
            )
            assert isinstance(network, iDDPMPrecond)
            network.u = io["in.iddpm_u"]
            times = network.round_sigma(times)
        if parts[0] == "churn" and "hat" in parts:
            told = [re.search(rf"S_{key} {pattern}", meaning) for key in ("churn", "min", "max")]
            churn = Churn(*(float(found[1]) for found in told if found is not None))
            levels = [NoiseLevel(1.0, sigma, sigma) for sigma in times.tolist()]
            times = torch.tensor(raised_levels(Walk((*levels, CLEAN)), churn), dtype=torch.float64)
        if len(io[name]) == steps + 1:
            times = torch.cat([times, times.new_zeros(1)])
        case.compare(name, times)


# Sampling


@vectors.take(of_kind("sampling"))
def test_vector_sampling_trajectory(case: vectors.Case) -> None:
    io = case.recorded
    settings = {name: number(value) for name, value in case.config["sampler_args"].items()}
    grid = {name: settings[name] for name in ("sigma_min", "sigma_max", "rho")}
    backbone = EDMBackbone(str(case.folder / case.content["checkpoint"]["file"]), **grid)
    churn = Churn(*(settings[f"S_{name}"] for name in ("churn", "min", "max", "noise")))
    condition = {}
    if "in.class_index" in io:
        condition = backbone.encode_classes(io["in.class_index"].tolist())
        assert torch.equal(condition["classes"], io["in.class_labels"])
    draws = list(io["in.noise"]) if "in.noise" in io else []
    calls: list[tuple[NoiseLevel, Tensor, Tensor]] = []

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        prediction = backbone.predict(x, level, condition)
        calls.append((level, x.detach(), x.detach() - level.sigma * prediction.eps.detach()))
        return prediction

    walk = backbone.walk(int(settings["num_steps"]))
    reports: list[Event] = []
    start = io["in.latents"].double() * walk.levels[0].sigma
    final = sample(
        backbone,
        denoise,
        walk,
        Heun(churn, level_at=backbone.level_at),
        lambda: draws.pop(0),
        start=start,
        watch=reports.append,
    )
    assert not draws
    assert final.dtype is torch.float64
    first, second = calls[::2], calls[1::2]
    ours = {
        "out.t_steps": torch.tensor([level.sigma for level in walk.levels], dtype=torch.float64),
        "out.t_hat": torch.tensor([level.sigma for level, *_ in first], dtype=torch.float64),
        "out.x_cur": torch.stack([start, *(report.x_next for report in reports[:-1])]),
        "out.x_hat": torch.stack([x for _, x, _ in first]),
        "out.denoised_1": torch.stack([d for *_, d in first]),
        "out.x_euler": torch.stack([x for _, x, _ in second]),
        "out.denoised_2": torch.stack([d for *_, d in second]),
        "out.final": final,
    }
    for name, value in ours.items():
        if name in io:
            case.compare(name, value)
    levels = final.permute(0, 2, 3, 1) * 127.5 + 128
    difference = levels.clamp(0, 255).to(torch.uint8).int() - io["out.images_uint8"].int()
    assert difference.abs().max() <= 1
    assert ((levels - levels.round()).abs()[difference != 0] <= 0.02).all()
    case.met("out.images_uint8", float(difference.abs().max()))
