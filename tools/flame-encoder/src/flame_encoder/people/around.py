"""The window around a head in a picture, more or less blurred, and the head drawn into it as it is believed to look."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from recon4d import mesh
from recon4d.cameras import Camera
from recon4d.color import linear_from_srgb
from recon4d.formats.track import Track
from torch import Tensor

from flame_encoder.encoder.crop import turn_of
from flame_encoder.people import colours
from flame_encoder.people.colours import Coloured, Window, looks_of

SIDE = 256  # pixels of the window around a head at most
MOST = 1250  # points that one picture is asked about
GREY = 0.02  # how far apart the channels of a picture without colours are at most
STEEP = 0.25  # cosine under which a surface is seen too much from the side


def around(surface: Coloured, picture: np.ndarray, crop: Tensor, track: Track) -> Window:
    """The window around the head in a picture (H, W, 3) uint8, not yet blurred; small heads are not enlarged."""
    pixels = track.vertices(surface.head)[0] @ torch.from_numpy(track.K).T
    pixels = pixels[:, :2] / pixels[:, 2:]
    low, high = pixels.amin(0).numpy(), pixels.amax(0).numpy()
    extent = 1.1 * float((high - low).max())
    scale = min(1.0, SIDE / extent)
    side = int(np.ceil(scale * extent))
    offset = side / 2 - scale * (low + high) / 2
    image = cv2.GaussianBlur(picture, (0, 0), 0.4 / scale) if scale < 1 else picture
    shift = offset + 0.5 * scale - 0.5  # OpenCV's pixel centres are whole numbers, ours at +0.5
    warp = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    cut = cv2.warpAffine(image, warp, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    sharp = cut.astype(np.float32) / 255
    grey = bool(np.quantile(np.ptp(sharp, axis=2), 0.95) < GREY)
    nothing = torch.zeros(0)
    turn = turn_of(crop, torch.from_numpy(track.K))
    height, width = picture.shape[:2]
    return Window(sharp, nothing, nothing, nothing, 0.0, scale, offset, turn, (width, height), grey)


def blurred(window: Window, blur: float) -> Window:
    """The window with its blurred version and the slopes of that."""
    if window.blur == blur:
        return window
    soft = cv2.GaussianBlur(window.sharp, (0, 0), blur)
    dy, dx = np.gradient(soft, axis=(0, 1))
    image, dx, dy = (torch.from_numpy(a.transpose(2, 0, 1).astype(np.float64)) for a in (soft, dx, dy))
    return replace(window, image=image, dx=dx, dy=dy, blur=blur)


@dataclass(frozen=True, eq=False)
class Drawing:
    """image: (S, S, 3) float32, the drawn head over the picture. chosen: points that are in sight, no edge near."""

    image: np.ndarray
    chosen: Tensor


def drawn(surface: Coloured, track: Track, tints: Tensor, mine: Tensor, window: Window) -> Drawing:
    """The head of a track of one frame over a blurred window, with albedo `tints` (C,) and the looks of `mine`."""
    head = surface.head
    assert head.vt is not None and head.ft is not None and head.albedo_mean is not None
    _, light, sheen, tone = looks_of(mine)
    vertices = track.vertices(head)
    side, K = window.sharp.shape[0], window.K(track.K)
    rast = mesh.rasterize(Camera(K, torch.eye(4), side, side).clip(vertices), head.faces, (side, side))
    seen = rast.mask[0]
    normals = mesh.interpolate(mesh.vertex_normals(vertices, head.faces), rast, head.faces)[0][seen]
    normals = torch.nn.functional.normalize(normals, dim=-1).double() @ window.to_light().T
    uv = mesh.interpolate(head.vt[None], rast, head.ft)[0][seen]
    texture = head.albedo_mean
    if head.albedo_components is not None:
        texture = texture + head.albedo_components[..., : surface.skins] @ tints.float()
    tinted = linear_from_srgb(mesh.texture(texture[None], uv[None, None])[0, 0].double().clamp(0.02, 1))
    gloss = colours.sheen_basis(normals) @ sheen
    image = window.sharp.copy()
    value = colours.shown(tinted, colours.shine_of(normals, light), gloss, tone).value.float().numpy()
    image[seen.numpy()] = value.mean(1, keepdims=True) if window.grey else value

    depth = mesh.interpolate(vertices[..., 2:].contiguous(), rast, head.faces)[0, ..., 0]
    depth[~seen] = 0
    kernel, reach = np.ones((3, 3), np.uint8), 2 * int(np.ceil(2 * window.blur)) + 1
    jumps = cv2.dilate(depth.numpy(), kernel) - cv2.erode(depth.numpy(), kernel) > 0.012
    edge = torch.from_numpy(cv2.dilate(jumps.astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0)
    at = (vertices[0][head.faces[surface.faces]] * surface.bary[..., None]).sum(1)
    pixels = at @ K.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    column, row = pixels.floor().long().clamp(0, side - 1).unbind(1)
    whole = (pixels - torch.from_numpy(window.offset).float()) / window.scale
    inside = ((pixels >= 1) & (pixels < side - 1) & (whole >= 1) & (whole < torch.tensor(window.size) - 1)).all(1)
    normal = colours.normals_at(vertices[0], head.faces, surface.faces, surface.bary)
    facing = -(normal * torch.nn.functional.normalize(at, dim=1)).sum(1) > STEEP
    inside &= facing & ~edge[row, column] & (at[:, 2] < depth[row, column] + 0.004)
    chosen = inside.nonzero()[:, 0]
    if len(chosen) > MOST:
        chosen = chosen[torch.from_numpy(np.random.default_rng(0).permutation(len(chosen))[:MOST]).sort().values]
    return Drawing(image, chosen)
