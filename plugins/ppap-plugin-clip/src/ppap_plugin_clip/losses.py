"""How far embeddings are apart on the sphere, and Gram matrices of tokens from each other.

Half precision is compared in single.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Embeddings = Float[Tensor, "b d"]
Tokens = Float[Tensor, "b n c"]
Grams = Float[Tensor, "b c c"]
PerImage = Float[Tensor, " b"]

_SMALLEST = 1e-12
"""Norm below which a target's Gram matrix counts as zero."""


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def spherical_distance(embeddings: Embeddings, target: Float[Tensor, "one d"]) -> PerImage:
    """2 arcsin(|u - v| / 2)^2 for the directions u, v of two embeddings.

    The loss of Crowson's CLIP-guided diffusion ("CLIP Guided Diffusion HQ 256x256", 2021): half the
    squared angle between them, in [0, pi^2 / 2], which for small angles is 1 - cosine. Where 1 -
    cosine flattens out towards opposite directions, this keeps its slope.

    The angle is computed as 2 atan2(|u - v|, |u + v|) (Kahan, 2006, "How futile are mindless
    assessments of roundoff", section 12). That is the same number, but its gradient is finite
    everywhere: the arcsine's is infinite for opposite directions. It is zero where u = v.

    Args:
        embeddings: of any length above zero.
        target: a row, or a row an image.
    """
    u, v = F.normalize(_exact(embeddings), dim=1), F.normalize(_exact(target), dim=1)
    apart, together = (torch.linalg.vector_norm(w, dim=1) for w in (u - v, u + v))
    return 2 * torch.atan2(apart, together).square()


def cosine(embeddings: Embeddings, target: Float[Tensor, "one d"]) -> PerImage:
    """The cosine similarity of embeddings, in [-1, 1]; CLIP's own measure (Radford et al., 2021).

    Args:
        target: a row, or a row an image.
    """
    u, v = F.normalize(_exact(embeddings), dim=1), F.normalize(_exact(target), dim=1)
    return (u * v).sum(dim=1).clamp(-1, 1)


def gram(tokens: Tokens) -> Grams:
    """F^T F / n of each image's n tokens F: which features come together, wherever they are.

    Gatys et al. (2016, "Image style transfer using convolutional neural networks", eq. 3), of
    tokens in place of a convolution's pixels, and as a mean over them.
    """
    exact = _exact(tokens)
    return exact.mT @ exact / tokens.shape[1]


def gram_distance(grams: Grams, target: Float[Tensor, "one c c"]) -> PerImage:
    """|G - T|_F / |T|_F, the Frobenius norm of the difference as a part of the target's.

    The style loss of FreeDoM (Yu et al., 2023, section 4.2) but for the division, which makes it a
    number of order one for every network and every target. 0 for the same Gram matrix; the gradient
    there is zero, and elsewhere does not fade on the way to it.

    Args:
        grams, target: as :func:`gram` makes them; of the target a matrix, or one an image.
    """
    exact, wanted = _exact(grams), _exact(target)
    length, apart = (torch.linalg.vector_norm(m, dim=(1, 2)) for m in (wanted, exact - wanted))
    part: Tensor = apart / length.clamp_min(_SMALLEST)
    return part
