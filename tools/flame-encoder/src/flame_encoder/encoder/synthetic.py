"""Synthetic training samples: a random person under a random light, with hair, glasses, hands and a bad camera.

Each sample is what an encoder gets at inference (a crop around the face) together with the truth: the vector and the
68 landmarks; and what a landmarker finds. Sample i of a seed is the same wherever and whenever it is made.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from recon4d import cameras, landmarker, mesh
from recon4d.color import linear_from_srgb, srgb_from_linear
from recon4d.head import HeadModel
from scipy.spatial.transform import Rotation
from torch import Tensor

from flame_encoder.encoder import rendering, vector, wardrobe
from flame_encoder.encoder.crop import CROP_SCALE, FACING, CropView, transl_of
from flame_encoder.encoder.rendering import TEXELS, reduced
from flame_encoder.encoder.vector import LIGHT, NEUTRAL_LIGHT, Layout
from flame_encoder.encoder.wardrobe import Parts

FINE = 1.5  # supersampling of pictures as small as the view
LOOK = 2  # pictures are so many times as large as the view

# Actions that the vector holds in other parts (jaw, eyelids), and one that only looks right with jawOpen.
LEFT_OUT = ("jawOpen", "jawForward", "jawLeft", "jawRight", "mouthClose", "eyeBlinkLeft", "eyeBlinkRight", "tongueOut")


@dataclass(frozen=True, eq=False)
class Sample:
    """image: (S, S, 3) uint8 RGB. vector: (layout.size,) float32. landmarks: (68, 2) float32, pixels of the image.
    points: (478, 2) float32, what MediaPipe's landmarker finds, pixels of the image; NaN where it finds no face.
    picture: (look S, look S, 3) uint8, what the landmarker looked at, of which `image` is the smaller version.
    """

    image: np.ndarray
    vector: np.ndarray
    landmarks: np.ndarray
    points: np.ndarray
    picture: np.ndarray


@dataclass(frozen=True, eq=False)
class Scene:
    """What every sample needs of a head model, prepared once by `scene`."""

    head: HeadModel
    layout: Layout
    view: CropView
    texels: Tensor  # (TEXELS, TEXELS, 3, 1 + C) sRGB mean and components
    hairy: np.ndarray  # (F,) bool, faces of the scalp
    face: np.ndarray  # (F,) bool
    ears: np.ndarray  # (F,) bool
    inside: np.ndarray  # (F,) bool, faces in the mouth
    look: int = LOOK


def scene(head: HeadModel, layout: Layout, view: CropView, look: int = LOOK) -> Scene:
    """Prepare a head model (with texture coordinates) for sampling.

    Args:
        look: pictures are so many times as large as the view; the landmarker looks at them, the encoder at the view.
    """
    small = reduced(head)
    if small.albedo_mean is None:
        texels = torch.tensor([0.75, 0.58, 0.48]).expand(TEXELS, TEXELS, 3)[..., None]
    else:
        texels = small.albedo_mean[..., None]
        if small.albedo_components is not None:
            room = max(layout.detail - LIGHT, 0)
            texels = torch.cat([texels, small.albedo_components[..., :room]], -1)
    regions = head.regions or {}

    def of_faces(name: str) -> np.ndarray:
        mask = regions.get(name)
        return np.zeros(len(head.faces), bool) if mask is None else mask[head.faces].all(1).numpy()

    hairy, face, ears, inside = (of_faces(name) for name in ("scalp", "face", "ears", "mouth_interior"))
    return Scene(head, layout, view, texels.contiguous(), hairy, face, ears, inside, look)


def sample(scene: Scene, seed: int, index: int, who: int | None = None) -> Sample:
    """Sample number `index` of a seed: of the person `who`, by default the same in samples 2k and 2k + 1.

    Nothing else is the same in two samples.
    """
    parts = person(scene, seed, index, index // 2 if who is None else who)
    rng = np.random.default_rng((seed, index, 5))
    turned = rendering.turned(scene.head, {name: part[None] for name, part in parts.items()})[0]
    place, focal = random_place(scene, turned, rng)
    view = scene.view
    camera_focal = view.K[0, 0].item()
    # The encoder's camera stands at a fixed focal length: it sees a head of the same size in another distance.
    seen_from = place * torch.tensor([1.0, 1.0, camera_focal / focal])
    parts["transl"] = transl_of(view, seen_from)
    image, landmarks = picture(scene, parts, turned, place, focal, rng)
    points = found_points(image) / scene.look
    small = cv2.resize(image, (view.size, view.size), interpolation=cv2.INTER_AREA)
    numbers = scene.layout.join({name: part[None] for name, part in parts.items()})[0].numpy()
    return Sample(small, numbers, landmarks.numpy().astype(np.float32), points, image)


def person(scene: Scene, seed: int, index: int, number: int) -> dict[str, Tensor]:
    """The parts of sample `index` but for `transl`: identity and skin of a person by number, all else its own."""
    parts = random_parts(scene, np.random.default_rng((seed, index, 4)))
    who = random_parts(scene, np.random.default_rng((seed, number, 6)))
    detail = torch.cat([parts["detail"][:LIGHT], who["detail"][LIGHT:]])
    return parts | {"shape": who["shape"], "detail": detail}


def found_points(image: np.ndarray) -> np.ndarray:
    """(478, 2) float32 pixels of the face that the landmarker finds in (H, W, 3) uint8; NaN where there is none."""
    faces = landmarker.find(image, parts=())
    if not faces:
        return np.full((landmarker.N_POINTS, 2), np.nan, np.float32)
    return faces[0].points[:, :2].astype(np.float32)


def random_parts(scene: Scene, rng: np.random.Generator) -> dict[str, Tensor]:
    """A random person: the parts of the vector but for `transl`."""
    head, layout = scene.head, scene.layout
    yaw = rng.normal(0, 20) if rng.random() < 0.6 else rng.uniform(-60, 60)
    angles = np.clip([rng.normal(0, 9), rng.normal(0, 12), yaw], [-30, -30, -60], [30, 30, 60])
    jaw = np.zeros(3)
    if rng.random() < 0.5:
        jaw[0] = min(abs(rng.normal(0, 0.13)), 0.42)
    if rng.random() < 0.2:
        jaw[1] = rng.normal(0, 0.03)
    gaze = Rotation.from_euler("YX", rng.normal(0, [13, 7]), degrees=True).as_rotvec()
    parts = {
        "shape": 0.9 * rng.standard_normal(min(layout.shape, head.n_shape)),
        "expression": random_expression(head, layout, rng),
        "global_rot": Rotation.from_euler("ZXY", angles, degrees=True).as_matrix()[:2].ravel(),
        "jaw": jaw,
        "eyes": np.concatenate([gaze, gaze]) + rng.normal(0, 0.02, 6),
        "neck": rng.normal(0, 0.05, 3),
        "detail": random_detail(scene, rng),
    }
    return {name: torch.from_numpy(np.asarray(part, np.float32)) for name, part in parts.items()}


def random_expression(head: HeadModel, layout: Layout, rng: np.random.Generator) -> np.ndarray:
    """Activations of some actions, mostly the same on both sides; and the eyelids. Normal for unnamed expressions."""
    n = min(layout.expression, head.n_expression)
    values = np.zeros(layout.expression)
    if not head.expression_names:
        values[:n] = 0.7 * rng.standard_normal(n)
    else:
        names = head.expression_names[:n]
        free = [i for i, name in enumerate(names) if name not in LEFT_OUT]
        chosen = list(rng.choice(free, min(int(rng.integers(0, 7)), len(free)), replace=False))
        if rng.random() < 0.3:
            chosen += [i for i, name in enumerate(names) if name.startswith("mouthSmile")][:1]
        for i in chosen:
            values[i] = rng.beta(1, 1.5)
            for side, other in (("Left", "Right"), ("Right", "Left")):
                twin = names[i].removesuffix(side) + other
                if names[i].endswith(side) and twin in names and rng.random() < 0.8:
                    values[names.index(twin)] = np.clip(values[i] + rng.normal(0, 0.08), 0, 1)
    if vector.has_eyelids(head, layout.expression):
        kind = rng.random()
        closed = rng.uniform(0.7, 1) if kind < 0.15 else rng.uniform(0, 0.5) if kind < 0.5 else 0.0
        lids = np.clip(closed + rng.normal(0, 0.03, 2), 0, 1)
        if rng.random() < 0.05:
            lids[rng.integers(2)] = rng.uniform(0.6, 1)
        values[head.n_expression : head.n_expression + 2] = lids
    return values


def random_detail(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Light of a room and up to three lamps, and albedo coefficients."""
    n = scene.texels.shape[-1] - 1
    if scene.layout.detail < LIGHT:
        return np.zeros(0)
    light = np.zeros((9, 3))
    light[0] = rng.uniform(0.2, 0.8) * (4 * np.pi) ** 0.5 * (1 + rng.normal(0, 0.05, 3))
    for _ in range(rng.integers(0, 4)):
        towards = rng.normal([0, 0.4, 0.5], 0.8)
        basis = mesh.sh_basis(torch.from_numpy(towards / np.linalg.norm(towards))).numpy()
        # A distant light that gives a surface facing it `colour` has the radiance pi * colour * delta(towards).
        light += np.pi * basis[:, None] * rng.uniform(0, 0.6) * (1 + rng.normal(0, 0.1, 3))
    light[0] -= NEUTRAL_LIGHT
    return np.concatenate([light.ravel(), 0.9 * rng.standard_normal(n)])


def random_place(scene: Scene, turned: Tensor, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Where the middle of the head stands before the camera (3,), metres, OpenCV axes; focal length in pixels.

    The face fills the picture as it does in the crop of an image, with the errors of a face detector.
    """
    distance = math.exp(rng.uniform(math.log(0.45), math.log(2.5)))
    points = scene.head.landmarks(turned[None])[0] * torch.tensor(FACING)
    flat = points[:, :2] / (points[:, 2:] + distance)
    low, high = flat.amin(0), flat.amax(0)
    side = CROP_SCALE * (high - low).max().item() * math.exp(rng.normal(0, 0.1))
    shift = torch.from_numpy(rng.normal(0, 0.045, 2).astype(np.float32)) * side
    across = (shift - (low + high) / 2) * distance
    return torch.tensor([across[0], across[1], distance]), scene.view.size / side


def picture(
    scene: Scene, parts: dict[str, Tensor], turned: Tensor, place: Tensor, focal: float, rng: np.random.Generator
) -> tuple[np.ndarray, Tensor]:
    """The photo (look S, look S, 3) uint8, and the landmarks (68, 2) in pixels of the view."""
    head, size = scene.head, scene.view.size
    shown = size * scene.look
    fine = round(shown * FINE) if scene.look == 1 else shown
    vertices = turned * torch.tensor(FACING) + place
    K = torch.tensor([[focal * fine / size, 0, fine / 2], [0, focal * fine / size, fine / 2], [0, 0, 1]])
    camera = cameras.Camera(K, torch.eye(4), fine, fine)
    points, _ = camera.project(head.landmarks(vertices[None])[0])
    rast = mesh.rasterize(camera.clip(vertices[None]), head.faces, (fine, fine))
    colour = shaded(scene, parts, turned, rast, rng)
    tri = rast.tri_id[0].numpy()
    marks = points.numpy()
    canvas = wardrobe.background(fine, rng)
    seen = tri >= 0
    regions = Parts(seen, seen & scene.hairy[tri], seen & scene.ears[tri], seen & scene.inside[tri])
    image = wardrobe.dressed(canvas, colour, regions, marks, rng)
    if fine == shown:  # the encoder sees it smaller, but the landmarker sees its jagged edges
        image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 0.6)
    else:
        image = cv2.resize(image, (shown, shown), interpolation=cv2.INTER_AREA)
    return wardrobe.photographed(image, rng), points * (size / fine)


def shaded(
    scene: Scene, parts: dict[str, Tensor], turned: Tensor, rast: mesh.Rasterization, rng: np.random.Generator
) -> np.ndarray:
    """sRGB of the head's pixels (H, W, 3) in [0, 1]."""
    head = scene.head
    assert head.vt is not None and head.ft is not None
    seen = rast.mask
    normals = mesh.interpolate(mesh.vertex_normals(turned[None], head.faces), rast, head.faces)[seen]
    normals = torch.nn.functional.normalize(normals, dim=-1)
    uv = mesh.interpolate(head.vt[None], rast, head.ft)[seen]
    detail = parts["detail"]
    n = scene.texels.shape[-1] - 1
    coefficients = torch.cat([torch.ones(1), detail[LIGHT : LIGHT + n], torch.zeros(n)])[: n + 1]
    skin = mesh.texture((scene.texels @ coefficients)[None], uv[None, None])[0, 0].clamp(0.01, 1)
    light = vector.light({"detail": detail[None]})[0]
    lit = mesh.shade(linear_from_srgb(skin), normals, sh=light)
    # A sheen that the vector does not hold: half-way vectors of one lamp.
    half = torch.from_numpy(rng.normal([0, 0.4, 1.5], 0.5).astype(np.float32))
    shine = (normals @ (half / half.norm())).clamp(0, 1) ** float(rng.uniform(8, 40))
    lit = lit + float(rng.uniform(0, 0.12)) * shine[:, None]
    out = np.zeros((*seen.shape[1:], 3), np.float32)
    out[seen[0].numpy()] = srgb_from_linear(lit).numpy()
    return out
