"""EMP-SSL (Tong et al. 2023, arXiv 2304.03977): patches of one image agree, those of many images spread out.

    zbar_b = mean over patches of z_b;   D = mean over images of |zbar_b|;   R(Z) = 1/2 logdet(I + D/(B eps2) Z^T Z)
    loss   = -weight D - mean over patches of R(Z_patch)

The embeddings are unit vectors, so |zbar| is their mean cosine with zbar. By Sylvester's identity the determinant may
be taken of the smaller of Z^T Z and Z Z^T; a batched Cholesky decomposition in float32 or better computes it. R grows
with the number of images, so it is computed over groups of a fixed size, the same at every world size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_ssl.losses.job import full_precision


@dataclass(frozen=True)
class EMP:
    """Mean cosine of patches with their image's mean, mean coding rate, and loss; [] each."""

    invariance: Tensor
    coding_rate: Tensor
    loss: Tensor


def coding_rate(z: Tensor, count: Tensor, eps2: float = 0.2) -> Tensor:
    """Return R(Z) = 1/2 logdet(I + width / (count eps2) Z^T Z) of z [..., B, width], [...] in nats.

    `count`: [...] number of valid rows; the others are zeros, which add nothing.
    """
    rows, width = z.shape[-2:]
    with torch.autocast(z.device.type, enabled=False):
        z = full_precision(z) * (width / (count.clamp_min(1) * eps2)).sqrt()[..., None, None]
        gram = z @ z.mT if rows <= width else z.mT @ z
        factor = torch.linalg.cholesky(gram + torch.eye(gram.shape[-1], dtype=z.dtype, device=z.device))
    rate: Tensor = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return rate


def emp_ssl(z: Tensor, valid: Tensor, group: int, *, eps2: float = 0.2, weight: float = 200.0) -> EMP:
    """Return the mean of the loss over groups of `group` consecutive images.

    `z`: [P, N, width], embeddings of P patches per image; `valid`: [N] bool; N a multiple of `group`, else
    ValueError is raised. A rank that holds whole groups passes its own images, any other rank those of the whole job,
    gathered with gradients: the mean over ranks is the same. `eps2`: the paper's epsilon squared; `weight`: its lambda.
    """
    if z.shape[1] % group:
        raise ValueError(f"{z.shape[1]} images are no multiple of groups of {group}")
    keep = valid.view(-1, group)
    grouped = full_precision(z).reshape(len(z), -1, group, z.shape[2])
    unit = F.normalize(grouped, dim=-1) * keep[..., None]
    count = keep.sum(1).to(unit.dtype)
    alike = (torch.linalg.vector_norm(unit.mean(0), dim=-1).sum(1) / count.clamp_min(1)).mean()
    rate = coding_rate(unit, count, eps2).mean()
    return EMP(alike, rate, -weight * alike - rate)
