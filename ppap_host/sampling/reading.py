"""What a backbone says of states: asked at every step, and by parts that want to know more."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, Prediction
from ppap_host.backbones.noise import NoiseLevel
from ppap_host.recipes.estimate import Asking, Estimate, Step
from ppap_host.recipes.recipe import Recipe
from ppap_host.sampling.streams import Draw, Stream

Denoiser = Callable[[Tensor, NoiseLevel], Prediction]


class Reader(Asking):
    """Asks the backbone of one batch, and draws noise for what asks it.

    Args:
        backbone: for its clipping and its levels.
        denoise: its prediction, classifier-free guidance included.
        stream: noise for what recipes draw themselves, by name.
        process: a recipe of the process itself, that asks no guide.

    Attributes:
        denoise: as it was given.
        memory: what a blend of branches keeps from step to step.
        unsound: which images' predictions have not been finite so far, [b].
    """

    def __init__(
        self, backbone: Backbone, denoise: Denoiser, stream: Stream | None, process: Recipe | None
    ) -> None:
        self._backbone, self.denoise = backbone, denoise
        self._stream, self._streams = stream, dict[str, Draw]()
        self._leads = "guided" if process is None else process.leads
        self._blend = None if process is None else process.blend
        self.memory: dict[Hashable, Any] = {}
        self._known: tuple[Tensor, Prediction] | None = None
        self.unsound: Tensor | None = None

    def noise(self, name: str, like: Tensor) -> Tensor:
        """The next draw of a stream of its own, as ``like``."""
        if name not in self._streams:
            if self._stream is None:
                raise ValueError(f"A recipe draws noise ({name}): give a stream to draw it from.")
            self._streams[name] = self._stream(name)
        return self._streams[name]().to(like)

    def uniform(self, name: str, like: Tensor) -> Tensor:
        """The next draw in [0, 1) of a stream of its own, one for each row of ``like``, [b]."""
        normal = self.noise(name, like).flatten(1)[:, 0].double()
        shares: Tensor = torch.special.ndtr(normal)
        return shares

    def clean(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """The predicted clean state of ``x`` at ``level``, clipped as the backbone asks."""
        return self.ahead(x, level)[0].x0

    def level_at(self, s: float) -> NoiseLevel:
        """The level with relative noise s = sigma / alpha, or the nearest that is known."""
        return self._backbone.level_at(s)

    def ahead(self, x: Tensor, level: NoiseLevel) -> tuple[Estimate, Prediction]:
        """What the backbone says of another state, without guides."""
        with torch.no_grad():
            prediction = self.denoise(x, level)
            known = self._understood(x, level, None, prediction, dict(self.memory))
            return self.detached(known), prediction

    def open(self, x: Tensor, level: NoiseLevel) -> Estimate:
        """The estimate without guides, with the graph that leads back to ``x``."""
        known = self._understood(x, level, None, self.denoise(x, level), dict(self.memory))
        if self._backbone.clip is None:
            return known
        # Clipped, and the gradient passes as if it were not.
        raw = (x - level.sigma * known.eps) / level.alpha
        x0, eps = raw + (known.x0 - raw).detach(), known.eps
        if self._backbone.clip_eps:
            eps = (x - level.alpha * x0) / level.sigma
        return replace(known, x0=x0, eps=eps)

    def foresee(self, x: Tensor, prediction: Prediction) -> None:
        """Notes what the backbone says of the state that comes next, so as not to ask again."""
        self._known = x, prediction

    def read(self, x: Tensor, level: NoiseLevel, step: Step | None) -> Estimate:
        """The estimate with the network's own eps: views may differentiate through it."""
        known, self._known = self._known, None
        if known is not None and not x.requires_grad and known[0].data_ptr() == x.data_ptr():
            prediction = known[1]
        else:
            prediction = self.denoise(x, level)
        sound = prediction.eps.detach().isfinite().flatten(1).all(dim=1)
        if prediction.v is not None:
            sound &= prediction.v.detach().isfinite().flatten(1).all(dim=1)
        self.unsound = ~sound if self.unsound is None else self.unsound | ~sound
        return self._understood(x, level, step, prediction, self.memory)

    def _understood(
        self,
        x: Tensor,
        level: NoiseLevel,
        step: Step | None,
        prediction: Prediction,
        memory: dict[Hashable, Any],
    ) -> Estimate:
        """A prediction as an estimate."""
        clip = self._backbone.clip

        def clean(eps: Tensor) -> Tensor:
            x0 = (x - level.sigma * eps) / level.alpha
            return x0 if clip is None else x0.clamp(*clip)

        known = Estimate(
            level, x, clean(prediction.eps), prediction.eps, prediction.v, clip=clip, step=step,
            output=prediction.output, conditional=prediction.conditional,
            unconditional=prediction.unconditional, ask=self,
        )  # fmt: skip
        if prediction.unconditional is None:
            return known
        if self._blend is not None:
            scale = getattr(self.denoise, "scale_at", lambda _: 1.0)(level)
            eps = self._blend(replace(known, memory=memory, scale=scale))
            known = replace(known, x0=clean(eps), eps=eps, output=None)
        if self._leads == "unconditional":
            offset = (known.x0 - clean(prediction.unconditional)).detach()
            known = replace(known, offset=offset)
        return known

    def detached(self, reading: Estimate) -> Estimate:
        """The estimate without graphs, its eps that of the clipped x_0 if the backbone wants it."""
        level, x, x0 = reading.level, reading.x.detach(), reading.x0.detach()
        eps = reading.eps.detach()
        if self._backbone.clip_eps:
            eps = (x - level.alpha * x0) / level.sigma
        others: dict[str, Any] = {
            name: None if told is None else told.detach()
            for name in ("v", "output", "conditional", "unconditional")
            for told in (getattr(reading, name),)
        }
        return replace(reading, x=x, x0=x0, eps=eps, **others)
