"""Stage 3: what the images say. The head is drawn as it looks in the clip, and the drawing is found in each frame.

Looks are an albedo texture (the median over frames of the colour without the light) and spherical-harmonics light of
each frame. The textured, lit head is drawn over each frame at its current pose; patches of the drawing are then looked
for in the frame (Lucas and Kanade 1981), which gives surface points with the pixels they should be at, and how well the
patch tells each direction. The tracker takes them like landmarks. Texture, drawing and poses are refined in turn.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import recon4d.images
import torch
from recon4d import mesh, threads
from recon4d.cameras import Camera
from recon4d.color import linear_from_srgb, srgb_from_linear
from recon4d.formats.track import Track
from recon4d.head import HeadModel, with_uv
from torch import Tensor

WINDOW = 256  # pixels per side at most, of the part of a frame that holds the head
TEXELS = 256  # per side of the albedo
SAMPLED_FRAMES = 48  # frames that the albedo is the median of
CANDIDATES = 900  # surface points that patches are drawn around
POINTS = 300  # of them per frame at most
PATCH = 15  # pixels per side
NOISE = 0.25  # of normalised brightness, and how many of a patch's pixels count as independent
INDEPENDENT_PIXELS = 12
FLOOR = 0.004  # standard deviation of a perfect match, share of the inter-ocular distance
RETURN = 0.01  # how far a match may miss its start when it is looked up backwards, likewise


@dataclass(frozen=True, eq=False)
class Windows:
    """The head's part of N frames.

    images: (N, S, S, 3) uint8 RGB. scale: window pixels per pixel. offset: (N, 2); window = scale * pixel + offset.
    """

    images: np.ndarray
    scale: float
    offset: np.ndarray

    def some(self, rows: np.ndarray) -> "Windows":
        """Only some frames."""
        return Windows(self.images[rows], self.scale, self.offset[rows])

    def K(self, K: np.ndarray, i: int) -> Tensor:
        """(3, 3) intrinsics of window i."""
        to_window = np.array([[self.scale, 0, self.offset[i, 0]], [0, self.scale, self.offset[i, 1]], [0, 0, 1]])
        return torch.from_numpy((to_window @ K).astype(np.float32))

    def in_frame(self, pixels: Tensor, i: int, frame_size: np.ndarray) -> Tensor:
        """Whether window pixels (n, 2) lie on the frame: beyond its border a window repeats it."""
        at = (pixels - torch.from_numpy(self.offset[i]).to(pixels)) / self.scale
        return ((at >= 0) & (at < torch.from_numpy(frame_size))).all(1)


@dataclass(frozen=True, eq=False)
class Looks:
    """albedo: (T, T, 3) linear, of the head's texture layout. light: (N, 9, 3) radiance in camera axes."""

    albedo: Tensor
    light: Tensor


@dataclass(frozen=True, eq=False)
class Matches:
    """Surface points found in N frames: at most P in each.

    rows: (N, P) which surface points. pixels: (N, P, 2) where they are. whiten: (N, P, 2, 2), times an error in pixels
    gives standard deviations; zero where nothing was found. error: mean absolute difference of drawing and frame on the
    face, of 1. found: (N,) share of the points in sight that were found.
    """

    rows: Tensor
    pixels: Tensor
    whiten: Tensor
    error: float
    found: np.ndarray

    def some(self, rows: np.ndarray) -> "Matches":
        """Only some frames."""
        return Matches(self.rows[rows], self.pixels[rows], self.whiten[rows], self.error, self.found[rows])


class Surface:
    """What of a head model is drawn and looked for: texels, and the points patches are drawn around."""

    def __init__(self, head: HeadModel):
        self.head = head if head.vt is not None else with_uv(head)
        assert self.head.vt is not None and self.head.ft is not None
        self.vt, self.ft = self.head.vt, self.head.ft
        texels = mesh.bake_uv(self.vt, self.ft, (TEXELS, TEXELS))
        self.mask = texels.mask
        self.texel_faces = texels.tri_id[self.mask].long()
        self.texel_bary = texels.bary[self.mask]
        skin = self._skin()[self.head.faces[self.texel_faces]].all(1).nonzero()[:, 0]
        # Texels are dealt out evenly over the layout, which gives the face more room than the scalp.
        chosen = skin[torch.from_numpy(np.random.default_rng(0).permutation(len(skin))[:CANDIDATES]).sort().values]
        self.faces, self.bary = self.texel_faces[chosen], self.texel_bary[chosen]

    def _skin(self) -> Tensor:
        """(V,) vertices that move with the head and the face: no eyeballs, no inside of the mouth, no neck."""
        head = self.head
        if head.regions and {"face", "ears", "scalp"} <= set(head.regions):
            return head.regions["face"] | head.regions["ears"] | head.regions["scalp"]
        return (head.weights[:, 3:].sum(1) < 0.5) & (head.weights[:, 0] < 0.1)

    def at(self, vertices: Tensor, faces: Tensor, bary: Tensor) -> Tensor:
        """Vertex attributes (V, C) at points."""
        return (vertices[self.head.faces[faces]] * bary[..., None]).sum(1)


def cut(frames: list[Path], track: Track, vertices: Tensor) -> Windows:
    """The windows of all frames around the head, scaled down to WINDOW where they are larger."""
    pixels = vertices @ torch.from_numpy(track.K).T
    pixels = pixels[..., :2] / pixels[..., 2:]
    low, high = pixels.min(1).values.numpy(), pixels.max(1).values.numpy()
    extent = 1.1 * float(np.median((high - low).max(1)))
    scale = min(1.0, WINDOW / extent)
    size = int(np.ceil(scale * extent))
    offset = size / 2 - scale * (low + high) / 2
    images = np.empty((len(frames), size, size, 3), np.uint8)

    def fill(i: int) -> None:
        image = recon4d.images.read(frames[i])
        if scale < 1:
            image = cv2.GaussianBlur(image, (0, 0), 0.4 / scale)
        # OpenCV's pixel centres are whole numbers, ours at +0.5.
        shift = offset[i] + 0.5 * scale - 0.5
        warp = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        images[i] = cv2.warpAffine(image, warp, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    threads.share(fill, len(frames))
    return Windows(images, scale, offset)


def looks(surface: Surface, windows: Windows, track: Track, vertices: Tensor) -> Looks:
    """Albedo and light of a clip, from vertices (N, V, 3) in camera space.

    The light is fitted to the head model's own mean albedo first, and the albedo is what remains; then the light of
    each frame follows, held near the clip's.
    """
    head = surface.head
    chosen = track.valid.nonzero()[0]
    chosen = chosen[np.unique(np.linspace(0, len(chosen) - 1, SAMPLED_FRAMES).round().astype(int))]
    found: list[Any] = [None] * len(chosen)

    def see(k: int) -> None:
        found[k] = _texel_colours(surface, windows, track, vertices, chosen[k])

    threads.share(see, len(chosen))
    colour, weight, normal = (torch.stack(part) for part in zip(*found))
    prior = torch.full((len(surface.texel_faces), 3), 0.4)
    if head.albedo_mean is not None:
        small = torch.nn.functional.interpolate(head.albedo_mean.permute(2, 0, 1)[None], (TEXELS, TEXELS), mode="area")
        prior = linear_from_srgb(small[0].permute(1, 2, 0))[surface.mask]
    basis = mesh.sh_irradiance(normal, torch.eye(9))  # (n, texels, 9): irradiance of each harmonic
    clip = _fit_light(basis.flatten(0, 1), prior.repeat(len(chosen), 1), colour.flatten(0, 1), weight.flatten())
    light = clip.expand(len(chosen), 9, 3)
    albedo = prior
    for _ in range(2):
        lit = (basis @ light).clamp_min(0.02)
        albedo = torch.where(weight[..., None] > 0.2, colour / lit, torch.nan).nanmedian(0).values
        unseen = albedo.isnan().any(1)
        albedo = torch.where(unseen[:, None], prior, albedo).clamp(0, 1.5)
        seen = weight * ~unseen
        fitted = torch.zeros(len(chosen), 9, 3)

        def fit(k: int, albedo: Tensor = albedo, seen: Tensor = seen, fitted: Tensor = fitted) -> None:
            fitted[k] = _fit_light(basis[k], albedo, colour[k], seen[k], clip)

        threads.share(fit, len(chosen))
        light = fitted
    texture = torch.zeros(TEXELS, TEXELS, 3)
    texture[surface.mask] = albedo
    every = torch.from_numpy(
        np.stack([np.interp(np.arange(len(vertices)), chosen, c) for c in light.flatten(1).T.numpy()], 1).astype(
            np.float32
        )
    )
    return Looks(mesh.fill_gutter(texture, surface.mask, 8), every.view(-1, 9, 3))


def _texel_colours(
    surface: Surface, windows: Windows, track: Track, vertices: Tensor, i: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Linear colour (n, 3), weight (n,) by sight and slant, and normal (n, 3) of every texel in frame i."""
    head, size = surface.head, windows.images.shape[1]
    points = surface.at(vertices[i], surface.texel_faces, surface.texel_bary)
    normals = mesh.vertex_normals(vertices[i : i + 1], head.faces)
    normal = torch.nn.functional.normalize(surface.at(normals[0], surface.texel_faces, surface.texel_bary), dim=-1)
    K = windows.K(track.K, i)
    pixels, visible = _in_sight(head, vertices[i], points, K, _drawn(head, vertices[i], K, size))
    visible = visible & windows.in_frame(pixels, i, track.image_size)
    slant = -(normal * torch.nn.functional.normalize(points, dim=-1)).sum(-1)
    image = linear_from_srgb(torch.from_numpy(windows.images[i]).float() / 255)
    grid = (pixels / size * 2 - 1)[None, None]
    colour = torch.nn.functional.grid_sample(image.permute(2, 0, 1)[None], grid, align_corners=False)[0, :, 0].T
    return colour, ((slant - 0.2) / 0.5).clamp(0, 1) * visible, normal


def _drawn(head: HeadModel, vertices: Tensor, K: Tensor, size: int) -> mesh.Rasterization:
    """What of the head is seen at each pixel of a window."""
    return mesh.rasterize(Camera(K, torch.eye(4), size, size).clip(vertices[None]), head.faces, (size, size))


def _in_sight(
    head: HeadModel, vertices: Tensor, points: Tensor, K: Tensor, rast: mesh.Rasterization
) -> tuple[Tensor, Tensor]:
    """Window pixels (n, 2) of points (n, 3) in camera space, and whether nothing hides them."""
    size = rast.mask.shape[1]
    depth = mesh.interpolate(vertices[None, :, 2:].contiguous(), rast, head.faces)[0, ..., 0]
    depth[~rast.mask[0]] = 0
    pixels = points @ K.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    column, row = pixels.floor().long().clamp(0, size - 1).unbind(1)
    inside = ((pixels >= 0) & (pixels < size)).all(1)
    return pixels, inside & (points[:, 2] < depth[row, column] + 0.004)


def _fit_light(basis: Tensor, albedo: Tensor, colour: Tensor, weight: Tensor, near: Tensor | None = None) -> Tensor:
    """Light (9, 3) that gives surfaces (n, 9) of an albedo (n, 3) their colours, by weighted ridge regression."""
    light = []
    step = max(1, len(weight) // 20000)
    basis, albedo, colour, weight = (x[::step] for x in (basis, albedo, colour, weight))
    strength = (1e-4 if near is None else 2e-3) * weight.sum()
    for c in range(3):
        A = basis * albedo[:, c : c + 1]
        middle = torch.zeros(9) if near is None else near[:, c]
        b = colour[:, c] - A @ middle
        light.append(
            middle + torch.linalg.solve((A.T * weight) @ A + strength * 0.1 * torch.eye(9), (A.T * weight) @ b)
        )
    return torch.stack(light, 1)


def draw(
    surface: Surface, looks: Looks, windows: Windows, track: Track, vertices: Tensor, i: int
) -> tuple[np.ndarray, mesh.Rasterization]:
    """Frame i's window with the textured head over it (S, S, 3) float in [0, 1], and where the head is seen."""
    head, size = surface.head, windows.images.shape[1]
    rast = _drawn(head, vertices[i], windows.K(track.K, i), size)
    normals = mesh.interpolate(mesh.vertex_normals(vertices[i : i + 1], head.faces), rast, head.faces)
    uv = mesh.interpolate(surface.vt[None], rast, surface.ft)
    seen = rast.mask[0]
    albedo = mesh.texture(looks.albedo[None], uv[0][seen][None, None])
    lit = mesh.shade(albedo, normals[0][seen][None, None], sh=looks.light[i])[0, 0].clamp(0, 1)
    image = torch.from_numpy(windows.images[i]).float() / 255
    image[seen] = srgb_from_linear(lit)
    return image.numpy(), rast


def match(
    surface: Surface, looks: Looks, windows: Windows, track: Track, vertices: Tensor, iod: float, levels: int
) -> Matches:
    """Find the drawn head's surface points in every frame.

    Args:
        iod: typical distance between the outer eye corners, pixels.
        levels: of the image pyramid above the first; coarse to fine.
    """
    n, size = len(vertices), windows.images.shape[1]
    rows = torch.zeros(n, POINTS, dtype=torch.long)
    target, whiten = torch.zeros(n, POINTS, 2), torch.zeros(n, POINTS, 2, 2)
    found_share, errors = np.zeros(n), np.zeros(n)
    unit = iod * windows.scale
    lk: dict[str, Any] = {"winSize": (PATCH, PATCH), "maxLevel": levels, "criteria": (3, 20, 0.01)}

    def find(i: int) -> None:
        drawing, rast = draw(surface, looks, windows, track, vertices, i)
        mask = rast.mask[0].numpy()
        frame = windows.images[i].astype(np.float32) / 255
        errors[i] = np.abs(drawing - frame)[mask].mean()
        a, b = _normalised(drawing, unit), _normalised(frame, unit)
        points = surface.at(vertices[i], surface.faces, surface.bary)
        pixels, visible = _in_sight(surface.head, vertices[i], points, windows.K(track.K, i), rast)
        # A patch that holds background would be held by it: the background is the frame's own.
        inner = cv2.erode(mask.astype(np.uint8), np.ones((PATCH, PATCH), np.uint8), borderValue=0)
        column, row = pixels.floor().long().clamp(0, size - 1).unbind(1)
        visible &= torch.from_numpy(inner[row, column] > 0) & windows.in_frame(pixels, i, track.image_size)
        chosen = visible.nonzero()[:, 0].numpy()
        if len(chosen) > POINTS:
            chosen = np.sort(np.random.default_rng(i).choice(chosen, POINTS, replace=False))
        if not len(chosen):
            return
        start = pixels[chosen].numpy().astype(np.float32) - 0.5
        there, ok, _ = cv2.calcOpticalFlowPyrLK(a, b, start[:, None], np.empty_like(start[:, None]), **lk)
        back, ok_back, _ = cv2.calcOpticalFlowPyrLK(b, a, there, np.empty_like(there), **lk)
        missed = np.linalg.norm(back[:, 0] - start, axis=1)
        good = (ok[:, 0] > 0) & (ok_back[:, 0] > 0) & (missed < RETURN * unit)
        found_share[i] = good.mean()
        step = there[:, 0] - start
        root = _certainty(a, start, unit) * good[:, None, None]
        k = len(chosen)
        rows[i, :k] = torch.from_numpy(chosen)
        target[i, :k] = (pixels[chosen] + torch.from_numpy(step) - torch.from_numpy(windows.offset[i])) / windows.scale
        whiten[i, :k] = torch.from_numpy((root * windows.scale).astype(np.float32))

    threads.share(find, n)
    return Matches(rows, target, whiten, float(errors.mean()), found_share)


def _certainty(image: np.ndarray, points: np.ndarray, unit: float) -> np.ndarray:
    """(n, 2, 2) square roots of the inverse covariances of matches, window pixels, by their patches' slopes."""
    brightness = (image.astype(np.float32) - 128) / 40
    dx, dy = cv2.Sobel(brightness, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(brightness, cv2.CV_32F, 0, 1, scale=1 / 8)
    products = [cv2.boxFilter(p, -1, (PATCH, PATCH)) for p in (dx * dx, dx * dy, dy * dy)]
    column, row = points.round().astype(int).T
    xx, xy, yy = (p[row, column] for p in products)
    S = np.stack([np.stack([xx, xy], -1), np.stack([xy, yy], -1)], -2)
    value, vector = np.linalg.eigh(S)
    variance = NOISE**2 / (INDEPENDENT_PIXELS * np.maximum(value, 1e-9)) + (FLOOR * unit) ** 2
    answer: np.ndarray = (vector * variance[:, None, :] ** -0.5) @ vector.transpose(0, 2, 1)
    return answer


def _normalised(image: np.ndarray, unit: float) -> np.ndarray:
    """Brightness (S, S, 3) freed of slow changes of light: 128 + 40 (I - mean) / deviation."""
    grey = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY)
    wide = 0.15 * unit
    grey = grey - _blurred(grey, wide)
    deviation = _blurred(np.abs(grey), 2 * wide)
    answer: np.ndarray = np.clip(128 + 40 * grey / (deviation + 0.008), 0, 255).astype(np.uint8)
    return answer


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """A picture (S, S) under a Gaussian of that many pixels; a wide one is taken at a smaller size, which is faster."""
    size = image.shape[::-1]
    factor = max(1, int(sigma // 3))
    if factor > 1:
        image = cv2.resize(image, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    blurred: np.ndarray = cv2.GaussianBlur(image, (0, 0), sigma / factor)
    return cv2.resize(blurred, size, interpolation=cv2.INTER_LINEAR) if factor > 1 else blurred
