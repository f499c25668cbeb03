"""Whether a network has ever seen anything like a picture.

A network answers whatever it is shown, and nothing in its answer says that it was trained on
something else. Its features do: those of what it knows fill a small ellipsoid, and a picture that
falls far outside is none of them (the Mahalanobis distance of Lee et al., 2018, "A simple unified
framework for detecting out-of-distribution samples", without classes). Mean and standard deviation
over the positions of a middle layer tell photographs from renders best; the last layers have
forgotten what is not their business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ppap_host.files.errors import CheckpointError
from ppap_host.files.reading import Document
from ppap_host.files.writing import json_text, write_file

FILE = "familiarity.safetensors"
"""The name of the file, which lies beside a model's weights."""

_FILE = Document(
    "account of what a network was trained on",
    CheckpointError,
    "Delete it: then nothing is said of unfamiliar targets.",
)


class _Told(BaseModel):
    """What the file says in its header."""

    model_config = ConfigDict(strict=True, extra="forbid")

    layer: str
    limit: Annotated[FiniteFloat, Field(gt=0)]
    knows: str
    measured: dict[str, Any] = {}


@dataclass(frozen=True)
class Familiarity:
    """Statistics of a layer's features over what a network was trained on.

    Attributes:
        layer: name of the module whose output is looked at: [b, c, h, w], or tokens [b, n, c].
        mean: of the pooled features, [d].
        whitening: makes their covariance the identity, [d, d].
        limit: the distance from which on a picture is like nothing the network was trained on.
        knows: what it was trained on, in words that go on from "knows only".
        measured: how the limit was found, for people.
    """

    layer: str
    mean: Float[Tensor, " d"]
    whitening: Float[Tensor, "d d"]
    limit: float
    knows: str
    measured: Mapping[str, Any] = field(default_factory=dict)

    def distance(
        self, network: nn.Module, prepared: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """How far pictures are from what the network knows; about 1 for what it does.

        The Mahalanobis distance over the root of the number of features.

        Args:
            prepared: as the network takes them.

        Raises:
            CheckpointError: as :func:`pooled`; or the layer has more or fewer features.
        """
        found = pooled(network, self.layer, prepared)
        if found.shape[1] != len(self.mean):
            raise _other_network(f"The layer {self.layer!r} has another width")
        centred = found - self.mean.to(found)
        distance: Tensor = (centred @ self.whitening.to(found).T).square().mean(dim=1).sqrt()
        return distance

    def save(self, path: Path) -> None:
        """Writes it as safetensors.

        Raises:
            OutputError: it cannot be written.
        """
        tensors = {name: getattr(self, name).float().contiguous() for name in ("mean", "whitening")}
        values = {name: getattr(self, name) for name in ("layer", "limit", "knows", "measured")}
        write_file(path, save(tensors, {"familiarity": json_text(values, None)}))


def load_familiarity(path: Path) -> Familiarity:
    """Reads what :meth:`Familiarity.save` wrote.

    Raises:
        CheckpointError: the file is damaged or something else.
    """
    told = _FILE.check(_FILE.header(path, "familiarity"), _Told, str(path))
    try:
        with safe_open(path, "pt") as file:
            mean, whitening = (file.get_tensor(name).float() for name in ("mean", "whitening"))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _FILE.fail(str(path), str(error)) from None
    if mean.ndim != 1 or whitening.shape != (len(mean), len(mean)):
        raise _FILE.fail(str(path), "its shapes do not fit each other")
    if not (mean.isfinite().all() and whitening.isfinite().all()):
        raise _FILE.fail(str(path), "its numbers are not finite")
    return Familiarity(told.layer, mean, whitening, told.limit, told.knows, told.measured)


def pooled(
    network: nn.Module, layer: str, prepared: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b d"]:
    """Mean and standard deviation over positions of a layer's features, in float64.

    Raises:
        CheckpointError: the network has no such layer, or it gives no maps and no tokens.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    try:
        hook = network.get_submodule(layer).register_forward_hook(keep)
    except AttributeError:
        raise _other_network(
            f"The network has no layer {layer!r} to know its pictures by"
        ) from None
    try:
        with torch.no_grad():
            network(prepared)
    finally:
        hook.remove()
    found = kept[0] if kept else None
    if not isinstance(found, Tensor) or found.ndim not in (3, 4):
        raise _other_network(f"The layer {layer!r} gives no maps or tokens")
    maps = found.double()
    if maps.ndim == 4:
        maps = maps.flatten(2).transpose(1, 2)
    return torch.cat([maps.mean(dim=1), maps.std(dim=1, correction=0)], dim=1)


def _other_network(what: str) -> CheckpointError:
    return CheckpointError(
        f"{what}.", remedy=f"Delete {FILE} beside its weights: it belongs to another network."
    )


def learn(
    see: Callable[[Tensor], Tensor], images: Float[Tensor, "n 3 h w"]
) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Mean and whitening of features over images.

    Args:
        see: images to features [b, d].
    """
    features = torch.cat([see(part) for part in images.split(64)]).double()
    mean = features.mean(dim=0)
    covariance = torch.cov(features.T)
    # So that directions in which nothing varies do not count without bound.
    covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(len(mean)).to(covariance)
    values, vectors = torch.linalg.eigh(covariance)
    return mean, (vectors / values.sqrt()).T
