"""The backbone ``diffusers``: a pipeline of diffusers on the host's noise levels."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import is_transformers_available
from jaxtyping import Float
from torch import Tensor, nn

from ppap_host.backbones.backbone import Backbone, Condition, Prediction
from ppap_host.backbones.noise import NoiseLevel, Walk
from ppap_host.files.errors import CheckpointError
from ppap_host.files.models import from_pretrained, local_folder, no_larger_than, read_json
from ppap_host.pipelines.families import Family, family_named, supported
from ppap_host.pipelines.schedules import as_rows, fixed_variance_of, learned_variance

_REMEDY = (
    "Give --checkpoint the hub name or the folder of a pipeline with safetensors weights, such as "
    "stable-diffusion-v1-5/stable-diffusion-v1-5."
)


class PipelineBackbone(Backbone):
    """A diffusers pipeline whose networks, conditioning and decoder the host uses.

    The noise levels are those of the pipeline's scheduler, the steps the host's own. Its safety
    checker, if it has one, has no part in this.

    Args:
        pipe: a pipeline in memory; its networks are frozen.
        files: that it was read from.
        remarks: what had to be chosen among them, a sentence each.

    Raises:
        CheckpointError: pipelines of this kind, or with such a scheduler, are not known.
    """

    name = "diffusers"

    def __init__(self, pipe: Any, files: Sequence[Path] = (), remarks: Sequence[str] = ()) -> None:
        made = family_named(type(pipe).__name__)
        if made is None:
            raise _unknown(type(pipe).__name__)
        for module in _networks(pipe):
            module.requires_grad_(False).eval()
        self.family: Family = made(pipe)
        self.state_shape = self.family.state_shape
        self.default_cfg = self.family.default_cfg
        self.clip = None if self.family.latent else _bounds(pipe.scheduler)
        self.fixed_variance = fixed_variance_of(pipe.scheduler)
        self._learned = learned_variance(pipe.scheduler)
        self._files, self._remarks = tuple(files), tuple(remarks)
        self.dtype: torch.dtype = self.family.net.dtype

    def walk(self, steps: int | str) -> Walk:
        """The levels that the pipeline's scheduler visits in so many steps, then the clean image.

        Networks with discrete steps also take a spacing such as "ddim25" or "10,10,10".
        """
        return self.family.schedule.walk(steps)

    def levels(self) -> tuple[NoiseLevel, ...]:
        """The levels of its training; a grid of a thousand for continuous schedules."""
        return self.family.schedule.levels()

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """By the pipeline's own text encoders."""
        if not self.family.reads_text:
            return super().encode_prompts(prompts)
        with torch.no_grad():
            condition = self.family.encode(prompts)
        return {key: rows.to(self.family.net.device) for key, rows in condition.items()}

    def predict(
        self, x: Float[Tensor, "b ..."], level: NoiseLevel, condition: Condition
    ) -> Prediction:
        """Noise, and the variance coefficient where the scheduler says that it was learned."""
        if self.family.reads_text and not condition:
            condition = self.encode_prompts([""] * len(x))
        schedule = self.family.schedule
        shown = schedule.network_input(x, level).to(self.dtype)
        out = self.family.network(shown, as_rows(level, x), condition).to(x.dtype)
        channels = x.shape[1]
        eps = schedule.eps(x, out[:, :channels], level)
        return Prediction(eps, out[:, channels:] if self._learned else None, out)

    def decode(self, x0: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """RGB in about [-1, 1] by the pipeline's autoencoder; the identity for pixels."""
        if self.family.autoencoder is None:
            return x0
        return self.family.autoencoder.decode(x0)

    @property
    def decoded_shape(self) -> tuple[int, ...]:
        """Of the pixels, or of the autoencoder's RGB."""
        return tuple(self.state_shape) if self.family.autoencoder is None else (3, *self.image_size)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images it makes."""
        return self.family.image_size

    def to(self, device: torch.device, dtype: torch.dtype) -> PipelineBackbone:
        """Moves all networks; the autoencoder computes in float32 where float16 is asked for."""
        for module in _networks(self.family.pipe):
            if self.family.latent and module is self.family.pipe.vae:
                continue  # it has a number format of its own
            # nn.Module's own `to`: diffusers' override warns about changes of precision.
            nn.Module.to(module, device=device, dtype=dtype)
        if self.family.autoencoder is not None:
            self.family.autoencoder.to(device, dtype)
        self.device, self.dtype = device, dtype
        return self

    def files(self) -> Sequence[Path]:
        """Configurations and weights; none for a pipeline in memory."""
        return self._files

    def remarks(self) -> Sequence[str]:
        """What had to be chosen among them."""
        return self._remarks


def load(checkpoint: Any = None) -> PipelineBackbone:
    """The backbone of a pipeline on the hub, in a folder, or in memory.

    Only safetensors are read, and no code that comes with a pipeline is run.

    Args:
        checkpoint: hub name, folder with a ``model_index.json``, or the pipeline itself.

    Raises:
        CheckpointError: it cannot be found or downloaded, is no pipeline of a known kind, or has
            no safetensors weights.
    """
    if checkpoint is None:
        raise CheckpointError("The backbone 'diffusers' comes without weights.", remedy=_REMEDY)
    if not isinstance(checkpoint, str):
        return PipelineBackbone(checkpoint)
    folder = local_folder(checkpoint, _REMEDY)
    if folder is None:
        folder = _downloaded(checkpoint)
    described = folder / "model_index.json"
    index = read_json(described, remedy=_REMEDY) if described.is_file() else None
    if not isinstance(index, dict):
        raise CheckpointError(
            f"{checkpoint!r} gives no pipeline: it has no {described.name}.", remedy=_REMEDY
        )
    name = str(index.get("_class_name"))
    family = family_named(name)
    if family is None:
        raise _unknown(name, f"{checkpoint!r} is a ")
    if family.reads_text and not is_transformers_available():
        raise CheckpointError(
            f"{checkpoint!r} has text encoders, which need transformers.",
            remedy="Install it with `pip install transformers`.",
        )
    left_out = {part: None for part in family.left_out if part in index}
    if "requires_safety_checker" in index:
        left_out["requires_safety_checker"] = False  # type: ignore[assignment]
    parts = _parts(checkpoint, folder, index, left_out)
    remarks: list[str] = []
    variant = _variant(checkpoint, parts, remarks)
    read = [path for part in parts for path in _read_of(part, variant)]
    size = sum(path.stat().st_size for path in read if path.suffix == ".safetensors")
    try:
        with no_larger_than(checkpoint, size // 2):
            pipe = from_pretrained(
                getattr(diffusers, name), folder, use_safetensors=True, variant=variant, **left_out
            )
    except CheckpointError:
        raise
    # diffusers, transformers and safetensors raise anything for files that do not fit.
    except Exception as error:
        raise CheckpointError(
            f"The {name} of {checkpoint!r} cannot be loaded "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}).",
            remedy="Each of its networks needs safetensors weights that fit its configuration; "
            "pickles (.bin, .ckpt) are not read.",
        ) from error
    for module in _networks(pipe):
        nn.Module.to(module, dtype=torch.float32)
    return PipelineBackbone(pipe, [folder / "model_index.json", *read], remarks)


def _downloaded(name: str) -> Path:
    """A pipeline of the hub, in its cache."""
    problem: Exception | None = None
    for variant in (None, "fp16"):
        try:
            index = DiffusionPipeline.load_config(name)
            family = family_named(str(index.get("_class_name")))
            left_out = {p: None for p in (family.left_out if family else ()) if p in index}
            found = DiffusionPipeline.download(
                name, use_safetensors=True, trust_remote_code=False, variant=variant, **left_out
            )
            return Path(found)
        # diffusers and the hub's client each have exceptions of their own; whichever it was, there
        # is no pipeline of this name, or none in this precision.
        except Exception as error:
            problem = problem or error
    raise CheckpointError(
        f"{name!r} gives no pipeline ({type(problem).__name__}).", remedy=_REMEDY
    ) from problem


def _parts(
    name: str, folder: Path, index: Mapping[str, Any], left_out: Collection[str]
) -> list[Path]:
    """The folders of what a pipeline is made of, checked for code of their own."""
    parts = []
    for part, kind in index.items():
        if part.startswith("_") or part in left_out or not isinstance(kind, list):
            continue
        library, of = [str(word) for word in (*kind, "", "")][:2]
        if kind == [None, None]:
            continue
        path = folder / part
        if library not in ("diffusers", "transformers") or Path(part).name != part:
            raise _with_code(name, f"{library}.{of}")
        for file in sorted(path.glob("*config.json")):
            described = read_json(file)
            own = isinstance(described, dict) and described.get("auto_map")
            if own and of.startswith("Auto") and library == "transformers":
                raise _with_code(name, f"the {of} in {part}")
        parts.append(path)
    return parts


def _with_code(name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"The pipeline {name!r} needs code of its own ({what[:200]}), which is never run.",
        remedy="Give a pipeline that diffusers has all the parts of.",
    )


_WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|model)(\.fp16)?(-\d+-of-\d+)?(\.fp16)?\.safetensors"
)
_SETTINGS = (".json", ".txt", ".model")


def _read_of(part: Path, variant: str | None) -> list[Path]:
    """The files of a part that are read: its settings, its words, and one set of weights."""
    found = sorted(path for path in part.glob("*") if path.is_file())
    weights = [path for path in found if _WEIGHTS.fullmatch(path.name)]
    half = [path for path in weights if ".fp16" in path.name]
    chosen = half if half and variant else [path for path in weights if path not in half]
    return sorted([path for path in found if path.suffix in _SETTINGS] + chosen)


def _variant(name: str, parts: Sequence[Path], remarks: list[str]) -> str | None:
    """The word fp16 where weights are there in half precision alone."""
    for part in parts:
        there = [path.name for path in part.glob("*.safetensors") if _WEIGHTS.fullmatch(path.name)]
        if there and all(".fp16" in file for file in there):
            remarks.append(f"{name!r} has half-precision weights only (*.fp16.safetensors).")
            return "fp16"
    return None


def _unknown(name: str, where: str = "") -> CheckpointError:
    return CheckpointError(
        f"{where}{name}, and pipelines of this kind are not known here.",
        remedy=f"Known: {supported()}.",
    )


def _networks(pipe: Any) -> list[nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def _bounds(scheduler: Any) -> tuple[float, float] | None:
    """What a pixel model's x_0 is clipped to: as the scheduler does, static where it is dynamic."""
    config = scheduler.config
    if config.get("thresholding"):
        return (-1.0, 1.0)
    if not config.get("clip_sample", False):
        return None
    largest = float(config.get("clip_sample_range", 1.0))
    return (-largest, largest)
