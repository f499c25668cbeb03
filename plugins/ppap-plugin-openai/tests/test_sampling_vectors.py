"""The host's schedules and sampling against guided-diffusion's own numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import vectors
from PIL import Image
from ppap_plugin_openai.adm import (
    ADMClassifierConfig,
    ADMConfig,
    load_adm,
    load_adm_classifier,
)
from ppap_plugin_openai.backbone import ADMBackbone
from safetensors.torch import load_file
from torch import Tensor, nn

from ppap_host.backbones.backbone import Backbone, ClassifierFree, Condition, Prediction
from ppap_host.backbones.noise import (
    DiscreteSchedule,
    NoiseLevel,
    Walk,
    cosine_betas,
    linear_betas,
    respace,
)
from ppap_host.files.images import from_tensor
from ppap_host.guides.guide import Guide
from ppap_host.guides.targets import Given, Target
from ppap_host.recipes.presets import NAIVE
from ppap_host.sampling.evaluator import Evaluator, Guidance, Health
from ppap_host.sampling.loop import Event, sample
from ppap_host.sampling.solvers import DDIM, DDPM, Solver

PUBLISHED = replace(NAIVE, absolute=True)
BETAS = {"linear": linear_betas, "cosine": cosine_betas}


def is_schedule(case: vectors.Case) -> bool:
    return case.system == "adm" and "diffusion" in case.config and "sampling" not in case.config


class StubBackbone(Backbone):
    """Answers with a recorded network output whatever its input."""

    name = "stub"
    state_shape = (1, 1, 1)

    def __init__(self, schedule: DiscreteSchedule, clip: bool) -> None:
        self.schedule, self.clip = schedule, (-1.0, 1.0) if clip else None
        self.answer = Prediction(torch.zeros(1, 1, 1, 1))

    def walk(self, steps: int | str) -> Walk:
        return self.schedule.walk(steps)

    def levels(self) -> tuple[NoiseLevel, ...]:
        return self.schedule.levels()

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        return self.answer

    def to(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        return self


class GradientGuide(Guide):
    """Its log likelihood has the recorded gradient everywhere."""

    name = "stub"

    def network(self) -> nn.Module:
        return nn.Identity()

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        raise NotImplementedError

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return -(output * target).sum(dim=(1, 2, 3))

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        raise NotImplementedError

    def picture(self, output: Tensor) -> list[Image.Image]:
        raise NotImplementedError

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        raise NotImplementedError


class NoiseAwareClassifier(GradientGuide):
    """guided-diffusion's classifier, which is told the original step."""

    def __init__(self, classifier: nn.Module) -> None:
        self.classifier = classifier
        self.times: list[float] = []
        self.log_prob: list[Tensor] = []

    def network(self) -> nn.Module:
        return self.classifier

    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        assert level is not None
        self.times.append(level.time)
        logits: Tensor = self.classifier(x, torch.full((len(x),), level.time))
        return logits

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        chosen = output.log_softmax(dim=1).gather(1, target[:, None])[:, 0]
        self.log_prob.append(chosen.detach())
        return -chosen


@vectors.take(is_schedule, lambda name: not name.startswith("step/"))
def test_vector_schedule_tables(case: vectors.Case) -> None:
    io64 = load_file(case.folder / "io_f64.safetensors")
    diffusion = case.config["diffusion"]
    total, exact = diffusion["diffusion_steps"], set()
    for name in diffusion["noise_schedule"]:
        betas = BETAS[name](total)
        schedule = DiscreteSchedule.from_betas(betas)
        for spacing in diffusion["timestep_respacing"]:
            label = spacing.replace(",", "-") or "full"
            case.compare(f"timesteps/{label}", torch.tensor(respace(total, spacing)))
            walk = schedule.walk(spacing)
            posteriors = [walk.posterior(i) for i in reversed(range(len(walk)))]
            upper = [p.log_upper for p in posteriors]
            fixed = [math.exp(u) for u in upper]
            fixed[0] = math.exp(posteriors[0].log_lower)
            tables = {
                f"{name}/{label}/betas": [math.exp(u) for u in upper],
                f"{name}/{label}/alphas_cumprod": [x.alpha**2 for x in walk.levels[-2::-1]],
                f"{name}/{label}/posterior_variance": [p.variance for p in posteriors],
                f"{name}/{label}/posterior_log_variance_clipped": [p.log_lower for p in posteriors],
                f"{name}/{label}/posterior_mean_coef1": [p.of_x0 for p in posteriors],
                f"{name}/{label}/posterior_mean_coef2": [p.of_xt for p in posteriors],
                f"{name}/{label}/log_betas": upper,
                f"{name}/{label}/fixed_large_variance": fixed,
                f"{name}/betas": betas.tolist(),
                f"{name}/alphas_cumprod": schedule.alphas_cumprod.tolist(),
            }
            for key, values in tables.items():
                ours = torch.tensor(values, dtype=torch.float64)
                if key in case.outputs:
                    case.compare(key, ours)
                if key in io64:
                    torch.testing.assert_close(ours, io64[key], rtol=1e-9, atol=1e-12, msg=key)
                    exact.add(key)
    for key in (k for k in case.outputs if k.startswith("rescaled_model_t/")):
        # Of longer processes, whose networks are told steps of a thousand: not loaded, but spaced.
        _, steps, spacing = key.split("/")
        case.compare(key, torch.tensor(respace(int(steps), spacing)).float() * (1000 / int(steps)))
    assert exact == {k for k in io64 if not k.startswith(("step/", "timesteps/", "rescaled"))}


@vectors.take(is_schedule, lambda name: name.startswith("step/"))
def test_vector_single_steps(case: vectors.Case) -> None:
    io, diffusion = case.recorded, case.config["diffusion"]
    names = {key.rsplit("/", 1)[0] for key in case.content["inputs"]}
    for part in sorted(names):
        _, schedule_name, spacing = part.split("/")
        spacing = "" if spacing == "full" else spacing.replace("-", ",")
        schedule = DiscreteSchedule.from_betas(BETAS[schedule_name](diffusion["diffusion_steps"]))
        rows: dict[str, list[Tensor]] = {k: [] for k in case.outputs if k.startswith(f"{part}/")}
        for row, index in enumerate(io[f"{part}/t"].tolist()):
            given = {
                k: io[f"{part}/{k}"][row : row + 1] for k in ("x", "eps", "v", "gradient", "noise")
            }
            for key, value in one_step(schedule, spacing, index, given).items():
                rows[f"{part}/{key}"].append(value)
        for key, values in rows.items():
            case.compare(key, torch.cat(values))


def one_step(
    schedule: DiscreteSchedule, spacing: str, index: int, given: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Every output of a recorded step, made by the host's solvers."""
    walk = schedule.walk(spacing)
    i = len(walk) - 1 - index
    out = {}

    def step(solver: Solver, guided: bool, clip: bool = True) -> tuple[Tensor, Any]:
        backbone = StubBackbone(schedule, clip)
        backbone.answer = Prediction(given["eps"], given["v"])
        guidance = [Guidance(GradientGuide(), given["gradient"], PUBLISHED, 1.0)] if guided else []
        evaluator = Evaluator(
            backbone,
            ClassifierFree(backbone, {}, {}),
            guidance,
            ancestral=solver.ancestral,
            health=Health(),
        )
        x, estimate, _ = solver.step(
            given["x"],
            i,
            walk,
            evaluator,
            lambda: given["noise"],
            None,
        )
        return x, estimate

    posterior = walk.posterior(i)
    for clip, label in ((True, "clip"), (False, "noclip")):
        _, estimate = step(DDPM(), guided=False, clip=clip)
        out[f"{label}/pred_xstart"] = estimate.x0
        out[f"{label}/mean"] = posterior.of_x0 * estimate.x0 + posterior.of_xt * given["x"]
    fraction = (given["v"] + 1) / 2
    out["log_variance"] = fraction * posterior.log_upper + (1 - fraction) * posterior.log_lower
    out["variance"] = out["log_variance"].exp()
    out["p_sample"] = step(DDPM(), guided=False)[0]
    out["p_sample_guided"] = step(DDPM(), guided=True)[0]
    for eta in (0.0, 0.5, 1.0):
        out[f"ddim_eta{eta}"] = step(DDIM(eta), guided=False)[0]
        x, estimate = step(DDIM(eta), guided=True)
        out[f"ddim_guided_eta{eta}"] = x
        out["ddim_guided_pred_xstart"] = estimate.x0
    return out


@vectors.take(
    lambda case: case.system == "adm" and "sampling" in case.config, lambda name: name != "gradient"
)
def test_vector_sampling_trajectory(case: vectors.Case) -> None:
    io, config, sampling = case.recorded, case.config["model"], case.config["sampling"]
    unet = load_adm(case.folder / "checkpoint.pt", ADMConfig.from_flags(config))
    backbone = ADMBackbone(unet, config["noise_schedule"], config["diffusion_steps"])
    backbone.clip = (-1.0, 1.0) if sampling["clip_denoised"] else None
    solver: Solver = DDIM(sampling.get("eta", 0.0)) if sampling["use_ddim"] else DDPM()
    guides, classifier = [], None
    if "classifier" in case.config:
        flags = ADMClassifierConfig.from_flags(case.config["classifier"])
        classifier = NoiseAwareClassifier(load_adm_classifier(case.folder / "classifier.pt", flags))
        guides = [Guidance(classifier, io["y"], PUBLISHED, sampling["classifier_scale"])]
    condition = backbone.encode_classes(io["y"].tolist()) if config["class_cond"] else {}
    # The reference draws at every step even where eta = 0 multiplies the draw by nothing.
    draws = iter(io["noise"]) if "noise" in io else iter(())
    events: list[Event] = []
    sample(
        backbone,
        lambda x, level: backbone.predict(x, level, condition),
        backbone.walk(config["timestep_respacing"]),
        solver,
        lambda: next(draws),
        guides,
        start=io["x_T"],
        watch=events.append,
    )
    case.compare("sample", torch.stack([e.x_next for e in events]))
    case.compare("pred_xstart", torch.stack([e.estimate.x0 for e in events]))
    case.compare("model_t", torch.tensor([int(e.estimate.level.time) for e in events]))
    if classifier is not None:
        case.compare("classifier_t", torch.tensor([int(t) for t in classifier.times]))
        case.compare("selected_log_prob", torch.stack(classifier.log_prob))
    # The reference truncates where the host rounds: one step of 255 apart at most.
    pixels = torch.stack([to_pixels(p) for p in from_tensor(events[-1].x_next)])
    apart = (pixels - io["image_uint8"]).abs().max()
    assert apart <= 1
    case.met("image_uint8", float(apart))


def to_pixels(image: Image.Image) -> Tensor:
    """[h, w, 3] int64."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, 3).long()
