"""Semantic segmentation from networks that classify masks: MaskFormer and Mask2Former."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, einsum
from torch.nn import functional as F

# Below any score that means something, and far enough above the least float32 that a quotient by
# it is finite.
_LEAST = 1e-30


def log_scores(
    class_logits: Float[Tensor, "b q c_and_null"], mask_logits: Float[Tensor, "b q h w"]
) -> Float[Tensor, "b c h w"]:
    """Log of the normalised per-class scores of each pixel, to be used as logits.

    Each of q queries names a class, or none, and a mask. Cheng et al. ("Per-pixel classification is
    not all you need for semantic segmentation", 2021, section 3.4, semantic inference; unchanged in
    "Masked-attention mask transformer for universal image segmentation", 2022) sum over the queries

        s_c(x) = sum_i p_i(c) m_i(x)

    with p_i the softmax of its class logits, of which the last, the null class, is left out, and
    m_i the sigmoid of its mask logits. Here the sum is divided by that over the classes, so that
    the softmax of what is returned is s_c / sum_c s_c: the class of a pixel, given that it has one.
    The order of the classes is that of s_c.

    The logarithm is taken without leaving the range of float32: of each class the largest p_i and
    of each pixel the largest m_i is factored out first, the former being added again and the latter
    cancelling in the quotient. So a class that nowhere has a score to speak of still has a gradient
    towards it, as from a softmax. Computed in single precision, returned in the precision given.
    """
    named = F.log_softmax(class_logits.float(), dim=-1)[..., :-1]
    there = F.logsigmoid(mask_logits.float())
    best = named.amax(dim=1, keepdim=True).detach()
    factors = (named - best).exp(), (there - there.amax(dim=1, keepdim=True).detach()).exp()
    scores = einsum("bqc,bqhw->bchw", *factors)
    logs = (scores + _LEAST).log() + best.transpose(1, 2)[..., None]
    return F.log_softmax(logs, dim=1).to(class_logits.dtype)
