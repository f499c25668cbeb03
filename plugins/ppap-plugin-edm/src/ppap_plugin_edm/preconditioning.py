"""Denoisers D(x; sigma) around a U-Net: the four columns of Karras et al. (2022), table 1.

D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), eq. 7, for x = x_0 + sigma eps. What the four
share is :class:`Denoiser`; each adds its coefficients and the noise levels it knows. Files called
"vp" and "ve" by NVIDIA hold one of the U-Nets of that name, mostly within :class:`EDMPrecond`.

The constructors take what the files record, in its order. ``use_fp16`` is part of that and has no
effect: the precision is the host's choice.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppap_plugin_edm.networks import DhariwalUNet, Number, SongUNet, UNet

ModelType = Literal["SongUNet", "DhariwalUNet"]
UNETS: dict[str, type[SongUNet] | type[DhariwalUNet]] = {
    "SongUNet": SongUNet,
    "DhariwalUNet": DhariwalUNet,
}


class Coefficients(NamedTuple):
    """c_skip, c_out, c_in and c_noise of eq. 7, each of the shape of the noise levels."""

    skip: Tensor
    out: Tensor
    inward: Tensor
    noise: Tensor


class Denoiser(nn.Module, ABC):
    """A U-Net with its preconditioning: predicts the clean image.

    Args:
        img_resolution: height and width of the images, in pixels.
        img_channels: of the images.
        label_dim: number of classes, 0 for none.
        model_type: which U-Net.
        out_channels: of the U-Net; those after the first ``img_channels`` are dropped.
        model_kwargs: for the U-Net.

    Attributes:
        model: the U-Net.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        model_type: ModelType,
        out_channels: int,
        model_kwargs: dict[str, Any],
    ) -> None:
        super().__init__()
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.label_dim = label_dim
        self.model: UNet = UNETS[model_type](
            img_resolution=img_resolution,
            in_channels=img_channels,
            out_channels=out_channels,
            label_dim=label_dim,
            **model_kwargs,
        )

    @property
    @abstractmethod
    def sigma_min(self) -> float:
        """The lowest noise level it knows."""

    @property
    @abstractmethod
    def sigma_max(self) -> float:
        """The highest noise level it knows."""

    @abstractmethod
    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Table 1, "Network and preconditioning", in the precision of ``sigma``."""

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise level it knows, of the shape and dtype of ``sigma``."""
        return sigma

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        sigma: Tensor,
        class_labels: Float[Tensor, "#b k"] | None = None,
        augment_labels: Float[Tensor, "#b a"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """The predicted clean image, float32, nominally in [-1, 1].

        Args:
            x: noisy images; computed with in float32.
            sigma: noise level, one number or one an image.
            class_labels: rows of weights of the classes, one-hot for one class; zeros, or None,
                for none. Without effect on an unconditional network.
            augment_labels: see :meth:`UNet.forward`.
        """
        x, sigma = x.to(torch.float32), sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        if not self.label_dim:
            class_labels = None
        elif class_labels is None:
            class_labels = x.new_zeros(1, self.label_dim)
        c = self.coefficients(sigma)
        raw: Tensor = self.model(
            (c.inward * x).to(self.model.dtype), c.noise.flatten(), class_labels, augment_labels
        )
        return c.skip * x + c.out * raw[:, : self.img_channels].to(torch.float32)


class VPPrecond(Denoiser):
    """Variance preserving (Song et al., 2021), table 1, column "VP".

    Args:
        beta_d, beta_min: slope and start of beta(t).
        M: number of noise levels of the original training, 1000.
        epsilon_t: the smallest t in (0, 1] that it was trained on.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        beta_d: Number = 19.9,
        beta_min: Number = 0.1,
        M: int = 1000,
        epsilon_t: Number = 1e-5,
        model_type: ModelType = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(
            img_resolution, img_channels, label_dim, model_type, img_channels, model_kwargs
        )
        self.beta_d, self.beta_min, self.M, self.epsilon_t = beta_d, beta_min, M, epsilon_t

    def _sigma(self, t: Number) -> float:
        # In float32, as published: at epsilon_t the subtraction leaves three digits, and the
        # published limit has the error in it.
        time = torch.tensor(t, dtype=torch.float32, device="cpu")
        log_scale = 0.5 * self.beta_d * time**2 + self.beta_min * time
        return float((log_scale.exp() - 1).sqrt())

    @property
    def sigma_min(self) -> float:
        """sigma(epsilon_t)."""
        return self._sigma(self.epsilon_t)

    @property
    def sigma_max(self) -> float:
        """sigma(1)."""
        return self._sigma(1.0)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """c_noise is (M - 1) t, t being the inverse of sigma(t)."""
        log_scale = (1 + sigma**2).log()
        t = ((self.beta_min**2 + 2 * self.beta_d * log_scale).sqrt() - self.beta_min) / self.beta_d
        inward = 1 / (sigma**2 + 1).sqrt()
        return Coefficients(torch.ones_like(sigma), -sigma, inward, (self.M - 1) * t)


class VEPrecond(Denoiser):
    """Variance exploding (Song et al., 2021), table 1, column "VE".

    Args:
        sigma_min, sigma_max: the noise levels it was trained on.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: Number = 0.02,
        sigma_max: Number = 100,
        model_type: ModelType = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(
            img_resolution, img_channels, label_dim, model_type, img_channels, model_kwargs
        )
        self._limits = float(sigma_min), float(sigma_max)

    @property
    def sigma_min(self) -> float:
        """As given."""
        return self._limits[0]

    @property
    def sigma_max(self) -> float:
        """As given."""
        return self._limits[1]

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """c_noise is ln(sigma / 2)."""
        one = torch.ones_like(sigma)
        return Coefficients(one, sigma, one, (0.5 * sigma).log())


class iDDPMPrecond(Denoiser):
    """Improved DDPM (Nichol and Dhariwal, 2021) and ADM, table 1, column "iDDPM".

    Its noise levels are the entries u_0 > ... > u_{M-1} of a table, the cosine schedule. The
    U-Net's second half of channels, a learned variance, is dropped.

    Args:
        C_1: lower bound of the ratios between neighbours in the schedule.
        C_2: shift of the schedule.
        M: number of noise levels.
    """

    u: Tensor

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        C_1: Number = 0.001,
        C_2: Number = 0.008,
        M: int = 1000,
        model_type: ModelType = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(
            img_resolution, img_channels, label_dim, model_type, 2 * img_channels, model_kwargs
        )
        self.M = M

        def alpha_bar(j: int) -> float:
            return math.sin(math.pi / 2 * j / (M * (C_2 + 1))) ** 2

        table = [0.0]
        for j in range(M, 0, -1):
            ratio = max(alpha_bar(j - 1) / alpha_bar(j), C_1)
            table.append(math.sqrt((table[-1] ** 2 + 1) / ratio - 1))
        self.register_buffer("u", torch.tensor(table[::-1], dtype=torch.float32))

    @property
    def sigma_min(self) -> float:
        """The table's last entry before 0."""
        return float(self.u[self.M - 1])

    @property
    def sigma_max(self) -> float:
        """The table's first entry."""
        return float(self.u[0])

    def nearest(self, sigma: Tensor) -> Tensor:
        """The index of the table's entry nearest to each of ``sigma``, int64 of its shape."""
        distance = sigma.flatten()[:, None] - self.u.to(sigma)
        return distance.abs().argmin(dim=1).view(sigma.shape)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest entry of the table."""
        return self.u[self.nearest(sigma)].to(sigma)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """c_noise is M - 1 - j for the nearest u_j; the others take ``sigma`` as it is."""
        inward = 1 / (sigma**2 + 1).sqrt()
        step = (self.M - 1 - self.nearest(sigma)).to(sigma)
        return Coefficients(torch.ones_like(sigma), -sigma, inward, step)


class EDMPrecond(Denoiser):
    """The paper's own preconditioning, table 1, column "Ours".

    Args:
        sigma_min, sigma_max: the noise levels it may be asked for.
        sigma_data: standard deviation of the images it was trained on.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: Number = 0,
        sigma_max: Number = math.inf,
        sigma_data: Number = 0.5,
        model_type: ModelType = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(
            img_resolution, img_channels, label_dim, model_type, img_channels, model_kwargs
        )
        self._limits = float(sigma_min), float(sigma_max)
        self.sigma_data = sigma_data

    @property
    def sigma_min(self) -> float:
        """As given."""
        return self._limits[0]

    @property
    def sigma_max(self) -> float:
        """As given."""
        return self._limits[1]

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """c_noise is ln(sigma) / 4; the others keep input and target of F at unit variance."""
        data = self.sigma_data
        total = sigma**2 + data**2
        inward = 1 / total.sqrt()
        return Coefficients(data**2 / total, sigma * data * inward, inward, sigma.log() / 4)


PRECONDITIONINGS: dict[str, type[Denoiser]] = {
    "VPPrecond": VPPrecond,
    "VEPrecond": VEPrecond,
    "iDDPMPrecond": iDDPMPrecond,
    "EDMPrecond": EDMPrecond,
}
"""The preconditionings by their names in the files."""
