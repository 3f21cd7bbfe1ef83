"""Gaussians that no training frame has shown: the looks of their neighbours on the head, instead of holes."""

import torch
from recon4d.head import HeadModel
from scipy.spatial import cKDTree
from torch import Tensor

from gaussian_avatar.avatars import Avatar

NEIGHBOURS = 8
SWEEPS = 300


@torch.no_grad()
def fill(avatar: Avatar, head: HeadModel, init_log_scale: Tensor, init_opacity: float) -> int:
    """Give colour, opacity and relative size to the Gaussians that are not `seen`, in place; how many there were.

    The values are harmonic: each is the mean of its neighbours on the mean head, those of seen Gaussians are kept.
    So they go over smoothly from one side of a hole to the other. Nothing happens to an avatar of which nothing or
    everything was seen. Where training has halved the opacity, frames do show the place, and nothing of the head
    there: such Gaussians stay unseen.

    Args:
        init_log_scale: (N, 1) log scale before training, which a Gaussian's size is relative to.
        init_opacity: opacity before training.
    """
    hidden = (~avatar.seen).nonzero()[:, 0].cpu()
    if len(hidden) in (0, len(avatar)):
        return 0
    face_id, bary = avatar.face_id.cpu(), avatar.bary.cpu()
    points = (bary[..., None] * head.v_template.cpu()[head.faces.cpu()[face_id]]).sum(1).numpy()
    _, around = cKDTree(points).query(points[hidden.numpy()], NEIGHBOURS + 1)
    around = torch.from_numpy(around[:, 1:])  # the first is the Gaussian itself
    _, nearest = cKDTree(points[avatar.seen.cpu().numpy()]).query(points[hidden.numpy()])
    values = torch.cat([avatar.sh0, avatar.opacity_logits[:, None], avatar.log_scales - init_log_scale], 1).cpu()
    values[hidden] = values[avatar.seen.cpu()][nearest]
    for _ in range(SWEEPS):  # Jacobi's method, from the nearest seen Gaussian's values
        values[hidden] = values[around].mean(1)
    hidden = hidden[avatar.opacity_logits.sigmoid().cpu()[hidden] > init_opacity / 2]
    values = values[hidden].to(avatar.sh0.device)
    avatar.sh0[hidden] = values[:, :3]
    avatar.opacity_logits[hidden] = values[:, 3]
    avatar.log_scales[hidden] = values[:, 4:] + init_log_scale[hidden]
    avatar.means[hidden] = 0
    for basis in (avatar.mean_basis, avatar.quat_basis, avatar.sh0_basis):
        basis[:, hidden] = 0
    avatar.seen[hidden] = True
    return len(hidden)
