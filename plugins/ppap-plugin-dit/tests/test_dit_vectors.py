"""DiT networks and their sampling against recorded outputs of facebookresearch/DiT.

What is checked follows from the content of a case alone: its settings, its inputs, its outputs and
its tolerances. ``-rP`` shows the largest error of each output.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
import vectors
from ppap_plugin_dit.backbone import DiTBackbone
from ppap_plugin_dit.dit import DiTConfig, infer_config, load_dit, read_dit
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ppap_host.backbones.backbone import Backbone, ClassifierFree, Condition, Prediction
from ppap_host.backbones.noise import NoiseLevel, Walk, respace
from ppap_host.sampling.loop import Event, sample
from ppap_host.sampling.solvers import DDIM, DDPM, Solver

DIFFUSION = {
    "timestep_respacing", "noise_schedule", "learn_sigma", "sigma_small", "predict_xstart",
    "rescale_learned_sigmas", "diffusion_steps", "use_kl",
}  # fmt: skip
"""Settings of a diffusion process; the two about the training loss change no sample."""


def backbones(case: vectors.Case) -> Iterator[DiTBackbone]:
    """One for every checkpoint file of the case, which all hold the same network."""
    for name in case.content["checkpoint"]["files"]:
        yield backbone_of(case, case.folder / name)


def backbone_of(case: vectors.Case, path: Path | None = None) -> DiTBackbone:
    path = case.folder / case.content["checkpoint"]["files"][0] if path is None else path
    config = DiTConfig.from_arguments(case.config["init_kwargs"])
    network, found = load_dit(path, config)
    diffusion = case.config.get("diffusion", {}).get("create_diffusion", {})
    assert diffusion.keys() <= DIFFUSION
    backbone = DiTBackbone(
        network,
        null_class=found.null_class,
        noise_schedule=diffusion.get("noise_schedule", "linear"),
        diffusion_steps=diffusion.get("diffusion_steps", 1000),
        predict_xstart=diffusion.get("predict_xstart", False),
    )
    assert diffusion.get("learn_sigma", config.learn_sigma) == config.learn_sigma
    backbone.fixed_variance = "small" if diffusion.get("sigma_small") else "large"
    return backbone


def is_forward(case: vectors.Case) -> bool:
    return case.system == "dit" and case.holds("out.model")


def network_output(backbone: DiTBackbone, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    out: Tensor = backbone.transformer(x, timestep=t, class_labels=y).sample
    return out


class TimedRows(Backbone):
    """The same network with a step of its own for every row, given with the condition."""

    def __init__(self, backbone: DiTBackbone) -> None:
        self.backbone, self.cfg_channels = backbone, backbone.cfg_channels

    def walk(self, steps: int | str) -> Walk:
        return self.backbone.walk(steps)

    def levels(self) -> tuple[NoiseLevel, ...]:
        return self.backbone.levels()

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        channels = x.shape[1]
        out = network_output(self.backbone, x, condition["time"], condition["labels"])
        return Prediction(out[:, :channels], out[:, channels:])

    def to(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        return self


def both_halves(
    backbone: Backbone, conditional: Condition, null: Condition, scale: float
) -> Callable[[Tensor, NoiseLevel], Prediction]:
    """The published network output under guidance, of which the host keeps the first half.

    Its second half has the null class where the first has the classes: the unguided channels are
    then those of the null class, and a guidance scale of 1 - s gives the same guided ones.
    """
    first = ClassifierFree(backbone, conditional, null, scale)
    second = ClassifierFree(backbone, null, conditional, 1 - scale)

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        half = x[: len(x) // 2]
        a, b = first(half, level), second(half, level)
        v = None if a.v is None or b.v is None else torch.cat([a.v, b.v])
        return Prediction(torch.cat([a.eps, b.eps]), v)

    return denoise


def halves(rows: Mapping[str, Tensor]) -> tuple[Condition, Condition]:
    n = len(next(iter(rows.values()))) // 2
    return {k: v[:n] for k, v in rows.items()}, {k: v[n:] for k, v in rows.items()}


def probed(backbone: DiTBackbone) -> dict[str, nn.Module]:
    """The modules whose outputs are recorded, by their published names."""
    network = backbone.transformer
    embedders = network.transformer_blocks[0].norm1.emb
    return {
        "x_embedder": network.pos_embed.proj,
        "t_embedder": embedders.timestep_embedder,
        "y_embedder": embedders.class_embedder,
        "final_layer": network.proj_out_2,
        **{f"blocks.{i}": block for i, block in enumerate(network.transformer_blocks)},
    }


def _capture(module: nn.Module, into: dict[str, Tensor], name: str) -> RemovableHandle:
    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        into[name] = output

    return module.register_forward_hook(hook)


@vectors.take(is_forward)
def test_vector_forward(case: vectors.Case) -> None:
    """A network gives the recorded output and gradient, and what is recorded on the way."""
    io = case.recorded
    for backbone in backbones(case):
        x = io["in.x"].clone().requires_grad_()
        seen: dict[str, Tensor] = {}
        hooks = [_capture(module, seen, name) for name, module in probed(backbone).items()]
        out = network_output(backbone, x, io["in.t"], io["in.y"])
        for hook in hooks:
            hook.remove()
        case.compare("out.model", out)
        if "in.vjp_cotangent" in io:
            (gradient,) = torch.autograd.grad((out * io["in.vjp_cotangent"]).sum(), x)
            case.compare("out.vjp_dx", gradient)
        if "in.t_fractional" in io:
            with torch.no_grad():
                fractional = network_output(backbone, io["in.x"], io["in.t_fractional"], io["in.y"])
            case.compare("out.model_fractional_t", fractional)
        probes = case.content["outputs"].get("out.probe.<module>")
        if probes is not None:
            (row,) = re.findall(r"batch element (\d+)", probes["meaning"])
            (count,) = re.findall(r"first (\d+) values", probes["meaning"])
            for key in (k for k in io if k.startswith("out.probe.")):
                value = seen[key.removeprefix("out.probe.")].detach()
                if value.ndim == 4:  # a patch convolution: tokens are rows in the published code
                    value = value.flatten(2).transpose(1, 2)
                case.compare(key, value[int(row)].flatten()[: int(count)])
            assert sum(k.startswith("out.probe.") for k in io) == probes["count"]


@vectors.take(lambda case: case.system == "dit" and case.config.get("method") == "forward_with_cfg")
def test_vector_forward_with_cfg(case: vectors.Case) -> None:
    """Classifier-free guidance of the host changes the channels that the published one does."""
    io = case.recorded
    level = NoiseLevel(0.5, 0.5, 0.0)  # not looked at: every row has its own time
    for backbone in backbones(case):
        conditional, null = halves({"labels": io["in.y"], "time": io["in.t"]})
        with torch.no_grad():
            half = io["in.x"][: len(io["in.x"]) // 2]
            raw = network_output(backbone, torch.cat([half, half]), io["in.t"], io["in.y"])
            case.compare("out.raw", raw)
            for name, scale in case.config["cfg_scale"].items():
                denoise = both_halves(TimedRows(backbone), conditional, null, scale)
                guided = denoise(io["in.x"], level)
                assert guided.v is not None
                case.compare(f"out.{name}", torch.cat([guided.eps, guided.v], dim=1))


@vectors.take(lambda case: case.system == "dit" and "diffusion" in case.config)
def test_vector_sampling(case: vectors.Case) -> None:
    """The host's loop and solvers make the recorded trajectory, both halves of it."""
    io, diffusion = case.recorded, case.config["diffusion"]
    process, scale = diffusion["create_diffusion"], diffusion.get("cfg_scale")
    spacing = process["timestep_respacing"] or str(process["diffusion_steps"])
    spacing = ",".join(map(str, spacing)) if isinstance(spacing, list) else str(spacing)
    for backbone in backbones(case):
        backbone.clip = (-1.0, 1.0) if diffusion["clip_denoised"] else None
        walk = backbone.walk(spacing)
        solver: Solver = {
            "ddim_sample_loop": DDIM(diffusion.get("eta", 0.0)),
            "p_sample_loop": DDPM(backbone.fixed_variance),
        }[diffusion["method"]]
        labels = {"labels": io["in.y"]}
        if scale is None:

            def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
                return backbone.predict(x, level, labels)  # noqa: B023
        else:
            denoise = both_halves(backbone, *halves(labels), scale)
        outputs: list[Tensor] = []

        def watched(x: Tensor, level: NoiseLevel) -> Prediction:
            prediction = denoise(x, level)  # noqa: B023
            first = prediction.eps
            if process["predict_xstart"]:
                first = (x - level.sigma * first) / level.alpha
            rest = [] if prediction.v is None else [prediction.v]
            outputs.append(torch.cat([first, *rest], dim=1))  # noqa: B023
            return prediction

        reports: list[Event] = []
        draws = iter(io["in.noise"])
        final = sample(
            backbone,
            watched,
            walk,
            solver,
            lambda: next(draws),  # noqa: B023
            start=io["in.x_T"],
            watch=reports.append,
        )
        before = [io["in.x_T"], *(r.x_next for r in reports[:-1])]
        posteriors = [walk.posterior(i) for i in range(len(walk))]
        kept = respace(process["diffusion_steps"], spacing)
        abar = torch.tensor(backbone._schedule.alphas_cumprod[kept])
        ours = {
            "out.t_index": torch.arange(len(walk)).flip(0),
            "out.timestep": torch.tensor([int(r.estimate.level.time) for r in reports]),
            "out.model_out": torch.stack(outputs),
            "out.pred_xstart": torch.stack([r.estimate.x0 for r in reports]),
            "out.sample": torch.stack([r.x_next for r in reports]),
            "out.final": final if scale is None else final.chunk(2)[0],
            "out.timestep_map": torch.tensor(kept),
            "out.betas": 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]]),
            "out.alphas_cumprod": torch.tensor(
                [level.alpha**2 for level in reversed(walk.levels[:-1])], dtype=torch.float64
            ),
            "out.posterior_log_variance_clipped": torch.tensor(
                [p.log_lower for p in reversed(posteriors)], dtype=torch.float64
            ),
            "out.mean": torch.stack(
                [
                    p.of_x0 * r.estimate.x0 + p.of_xt * x
                    for p, r, x in zip(posteriors, reports, before, strict=True)
                ]
            ),
            "out.log_variance": torch.stack(
                [
                    log_variance(backbone, walk, i, r.estimate.v, r.x_next)
                    for i, r in enumerate(reports)
                ]
            ),
        }
        for name in case.outputs:
            # Tables are relative to each of their numbers.
            case.compare(name, ours[name], relative=io[name].dtype == torch.float64)


def log_variance(backbone: Backbone, walk: Walk, i: int, v: Tensor | None, x: Tensor) -> Tensor:
    """What the ancestral step draws with, as :class:`DDPM` documents it."""
    posterior = walk.posterior(i)
    if v is not None:
        fraction = (v + 1) / 2
        return fraction * posterior.log_upper + (1 - fraction) * posterior.log_lower
    small = backbone.fixed_variance == "small" or i == len(walk) - 1
    return torch.full_like(x, posterior.log_lower if small else posterior.log_upper)


@vectors.take(is_forward, vectors.nothing)
def test_vector_forward_notices_diffusers_own_settings(case: vectors.Case) -> None:
    """The comparison has teeth: with diffusers' timestep embedding the output is another."""
    io, backbone = case.recorded, backbone_of(case)
    backbone.transformer.transformer_blocks[0].norm1.emb.time_proj.downscale_freq_shift = 1
    with torch.no_grad():
        out = network_output(backbone, io["in.x"], io["in.t"], io["in.y"])
    assert (out - io["out.model"]).abs().max() > 10 * case.content["tolerance"]["default"]


@vectors.take(
    lambda case: case.system == "dit" and any(case.folder.glob("train_checkpoint*.pt")),
    vectors.nothing,
)
def test_vector_training_checkpoint_loads(case: vectors.Case) -> None:
    """A whole training checkpoint, with its argparse.Namespace, gives its averaged weights."""
    for path in case.folder.glob("train_checkpoint*.pt"):
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(path, weights_only=True)
        state = read_dit(path)
        assert all(torch.equal(state[name], value) for name, value in content["ema"].items())
        config = infer_config({name: tuple(t.shape) for name, t in state.items()}, num_heads=1)
        network, _ = load_dit(path, config)
        size = config.input_size
        x = torch.zeros(1, config.in_channels, size, size)
        with torch.no_grad():
            out = network(x, timestep=torch.tensor([1]), class_labels=torch.tensor([0])).sample
        assert out.isfinite().all()
