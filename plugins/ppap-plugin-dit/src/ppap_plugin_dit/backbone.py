"""DiT as a backbone: class-conditional latent diffusion on the host's noise levels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppap_host.backbones.backbone import Backbone, Condition, Prediction
from ppap_host.backbones.noise import DiscreteSchedule, NoiseLevel, Walk, cosine_betas, linear_betas
from ppap_host.files.errors import CheckpointError, OptionError
from ppap_host.files.models import own_path
from ppap_host.pipelines.autoencoder import Autoencoder
from ppap_plugin_dit.dit import PUBLISHED, PUBLISHED_URL, DiTConfig, load_dit

NoiseSchedule = Literal["linear", "squaredcos_cap_v2"]

DEFAULT_VAE: Final = "stabilityai/sd-vae-ft-ema"
"""The autoencoder that the paper's evaluation decodes with."""

LATENT_SCALE: Final = 0.18215
"""Factor on the autoencoder's latents in DiT's training, whatever the autoencoder says."""

_BETAS: Final = {"linear": linear_betas, "squaredcos_cap_v2": cosine_betas}


class DiTBackbone(Backbone):
    """A DiT (Peebles and Xie, 2023) on the latents of Stable Diffusion's autoencoder.

    Classifier-free guidance changes the first three of the four latent channels only: the
    published sampling code does so for exact reproduction, and its scales are made for it. Set
    ``cfg_channels`` to None for all four.

    Args:
        transformer: from :func:`ppap_plugin_dit.dit.load_dit`.
        autoencoder: decodes; by default :data:`DEFAULT_VAE`, fetched when it is first needed.
        null_class: whether the last row of the class table stands for no class.
        noise_schedule, diffusion_steps: of its training, by their names in the published code.
        predict_xstart: whether it predicts x_0 instead of the noise.
        files: that it was read from.
        remarks: what had to be chosen in the checkpoint, a sentence each.
    """

    name = "dit"
    clip = None
    default_cfg = 4.0
    cfg_channels = 3

    def __init__(
        self,
        transformer: Any,
        autoencoder: Autoencoder | None = None,
        *,
        name: str = "dit",
        null_class: bool = True,
        noise_schedule: NoiseSchedule = "linear",
        diffusion_steps: int = 1000,
        predict_xstart: bool = False,
        files: Sequence[Path] = (),
        remarks: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.transformer = transformer
        self.autoencoder = autoencoder or Autoencoder(DEFAULT_VAE, scaling=LATENT_SCALE)
        config = transformer.config
        size = int(config.sample_size)
        self.state_shape = (int(config.in_channels), size, size)
        rows = transformer.transformer_blocks[0].norm1.emb.class_embedder.embedding_table
        self.class_count = classes = int(rows.num_embeddings) - null_class
        self._null = classes if null_class else None
        self._schedule = DiscreteSchedule.from_betas(_BETAS[noise_schedule](diffusion_steps))
        self._predicts_x0 = predict_xstart
        self._files, self._remarks = tuple(files), tuple(remarks)
        parameter = next(transformer.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    def walk(self, steps: int | str) -> Walk:
        """The respaced process; "250", "ddim25" and "10,10,10" as the published code has them."""
        return self._schedule.walk(steps)

    def levels(self) -> tuple[NoiseLevel, ...]:
        """All steps of its training."""
        return self._schedule.levels()

    def encode_classes(self, labels: Sequence[int | None]) -> Condition:
        """ImageNet indices 0..999 for the published networks; None is the null class.

        Raises:
            OptionError: a label is out of range, or None for a network without a null class.
        """
        known = range(int(self.class_count or 0))
        for label in labels:
            if label is None and self._null is None:
                raise OptionError(
                    f"The backbone {self.name!r} was trained without a null class: it needs a "
                    "class for every image.",
                    remedy="Give one with --class, and leave out --cfg.",
                )
            if label is not None and label not in known:
                raise OptionError(
                    f"The backbone {self.name!r} knows no class {label}.",
                    remedy=f"Give a number from 0 to {known[-1]}.",
                )
        rows = [self._null if label is None else label for label in labels]
        return {"labels": torch.tensor(rows, dtype=torch.int64, device=self.device)}

    def predict(
        self, x: Float[Tensor, "b c h w"], level: NoiseLevel, condition: Condition
    ) -> Prediction:
        """Noise, and the variance coefficient of networks that learned it.

        Without labels in ``condition``, that of the null class.
        """
        if "labels" not in condition:
            condition = self.encode_classes([None] * len(x))
        time = torch.full((len(x),), level.time, device=x.device)
        out = self.transformer(
            x.to(self.dtype), timestep=time, class_labels=condition["labels"]
        ).sample.to(x.dtype)
        eps, v = (out, None) if out.shape[1] == x.shape[1] else out.chunk(2, dim=1)
        if self._predicts_x0:
            eps = (x - level.alpha * eps) / level.sigma
        return Prediction(eps, v)

    def decode(self, x0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """RGB in about [-1, 1] by the autoencoder, differentiable."""
        return self.autoencoder.decode(x0)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels after decoding."""
        _, h, w = self.state_shape
        return h * self.autoencoder.factor, w * self.autoencoder.factor

    def to(self, device: torch.device, dtype: torch.dtype) -> DiTBackbone:
        """Moves transformer and autoencoder, which is fetched now if it was not."""
        # nn.Module's own `to`: diffusers' override warns about changes of precision.
        nn.Module.to(self.transformer, device=device, dtype=dtype)
        self.autoencoder.to(device, dtype)
        self.device, self.dtype = device, dtype
        return self

    def files(self) -> Sequence[Path]:
        """The checkpoint, and the autoencoder's files where they are there."""
        return (*self._files, *self.autoencoder.files())

    def remarks(self) -> Sequence[str]:
        """What had to be chosen in the checkpoint."""
        return self._remarks


def dit_xl_2_256(checkpoint: str | None = None, vae: str | None = None) -> DiTBackbone:
    """DiT-XL/2 for 256 x 256 pixels.

    Args:
        checkpoint: ``DiT-XL-2-256x256.pt``, the folder that holds it, or a training of the same
            network.
        vae: hub name or folder of the autoencoder, by default :data:`DEFAULT_VAE`.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    return _published("dit-xl-2-256", "DiT-XL-2-256x256.pt", checkpoint, vae)


def dit_xl_2_512(checkpoint: str | None = None, vae: str | None = None) -> DiTBackbone:
    """DiT-XL/2 for 512 x 512 pixels.

    Args:
        checkpoint: ``DiT-XL-2-512x512.pt``, the folder that holds it, or a training of the same
            network.
        vae: hub name or folder of the autoencoder, by default :data:`DEFAULT_VAE`.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    return _published("dit-xl-2-512", "DiT-XL-2-512x512.pt", checkpoint, vae)


def dit(checkpoint: str | None = None, vae: str | None = None) -> DiTBackbone:
    """Any DiT: its configuration is told from the tensors.

    A network whose width and depth are none of the paper's needs a JSON file beside the checkpoint,
    ``name.pt.json`` for ``name.pt``, with its ``num_heads``. The file may hold any argument of the
    published constructor; ``"class_dropout_prob": 0`` says that there is no null class.

    Args:
        checkpoint: plain or training checkpoint.
        vae: hub name or folder of the autoencoder, by default :data:`DEFAULT_VAE`.

    Raises:
        CheckpointError: there is no such file, or it holds no DiT.
    """
    return _loaded("dit", _needed("dit", "DiT-XL-2-256x256.pt", checkpoint), vae)


def _published(name: str, file: str, checkpoint: str | None, vae: str | None) -> DiTBackbone:
    path = _needed(name, file, checkpoint)
    if os.path.isdir(path):  # Path.is_dir raises for names that are too long
        path = path / file
    return _loaded(name, path, vae, PUBLISHED[file])


def _needed(name: str, file: str, checkpoint: str | None) -> Path:
    if checkpoint is None:
        raise CheckpointError(
            f"The backbone {name!r} comes without weights.",
            remedy=f"Download {PUBLISHED_URL}{file} (licence CC BY-NC 4.0) and give it with "
            "--checkpoint.",
        )
    return own_path(checkpoint)


def _loaded(name: str, path: Path, vae: str | None, config: DiTConfig | None = None) -> DiTBackbone:
    remarks: list[str] = []
    transformer, found = load_dit(path, config, remarks)
    return DiTBackbone(
        transformer,
        Autoencoder(vae or DEFAULT_VAE, scaling=LATENT_SCALE),
        name=name,
        null_class=found.null_class,
        # What lies beside a checkpoint of one's own says how it was made.
        files=(path, *(p for p in (Path(f"{path}.json"),) if config is None and p.is_file())),
        remarks=remarks,
    )
