"""Synthetic training samples: a random person under a random light, with hair, glasses, hands and a bad camera.

Each sample is what an encoder gets at inference (a crop around the face) together with the truth: the vector and the
68 landmarks. Sample i of a seed is the same wherever and whenever it is made.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from recon4d import cameras, mesh
from recon4d.color import linear_from_srgb, srgb_from_linear
from recon4d.head import HeadModel
from scipy.spatial.transform import Rotation
from torch import Tensor

from flame_encoder.encoder import rendering, vector
from flame_encoder.encoder.crop import CROP_SCALE, FACING, CropView, transl_of
from flame_encoder.encoder.rendering import TEXELS, reduced
from flame_encoder.encoder.vector import LIGHT, NEUTRAL_LIGHT, Layout

FINE = 1.5  # supersampling

# Actions that the vector holds in other parts (jaw, eyelids), and one that only looks right with jawOpen.
LEFT_OUT = ("jawOpen", "jawForward", "jawLeft", "jawRight", "mouthClose", "eyeBlinkLeft", "eyeBlinkRight", "tongueOut")
HAIR = np.array(
    [[18, 14, 12], [45, 30, 22], [92, 62, 40], [150, 115, 72], [200, 175, 130], [130, 60, 30], [165, 162, 158]]
)


@dataclass(frozen=True, eq=False)
class Sample:
    """image: (S, S, 3) uint8 RGB. vector: (layout.size,) float32. landmarks: (68, 2) float32, pixels of the image."""

    image: np.ndarray
    vector: np.ndarray
    landmarks: np.ndarray


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


def scene(head: HeadModel, layout: Layout, view: CropView) -> Scene:
    """Prepare a head model (with texture coordinates) for sampling."""
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

    named = [of_faces(name) for name in ("scalp", "face", "ears", "mouth_interior")]
    return Scene(head, layout, view, texels.contiguous(), *named)


def sample(scene: Scene, seed: int, index: int) -> Sample:
    """Sample number `index` of a seed."""
    rng = np.random.default_rng((seed, index, 4))
    parts = random_parts(scene, rng)
    turned = rendering.turned(scene.head, {name: part[None] for name, part in parts.items()})[0]
    place, focal = random_place(scene, turned, rng)
    view = scene.view
    camera_focal = view.K[0, 0].item()
    # The encoder's camera stands at a fixed focal length: it sees a head of the same size in another distance.
    seen_from = place * torch.tensor([1.0, 1.0, camera_focal / focal])
    parts["transl"] = transl_of(view, seen_from)
    image, landmarks = picture(scene, parts, turned, place, focal, rng)
    numbers = scene.layout.join({name: part[None] for name, part in parts.items()})[0].numpy()
    return Sample(image, numbers, landmarks.numpy().astype(np.float32))


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
    """The photo (S, S, 3) uint8 and the landmarks (68, 2) in its pixels."""
    head, size = scene.head, scene.view.size
    fine = round(size * FINE)
    vertices = turned * torch.tensor(FACING) + place
    K = torch.tensor([[focal * fine / size, 0, fine / 2], [0, focal * fine / size, fine / 2], [0, 0, 1]])
    camera = cameras.Camera(K, torch.eye(4), fine, fine)
    points, _ = camera.project(head.landmarks(vertices[None])[0])
    rast = mesh.rasterize(camera.clip(vertices[None]), head.faces, (fine, fine))
    colour = shaded(scene, parts, turned, rast, rng)
    tri = rast.tri_id[0].numpy()
    marks = points.numpy()
    canvas = background(fine, rng)
    image = dressed(scene, canvas, colour, tri, marks, rng)
    small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return photographed(small, rng), points * (size / fine)


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


def noise(size: int, cells: int, rng: np.random.Generator, channels: int = 1) -> np.ndarray:
    """Smooth noise (size, size, channels) of about unit variance."""
    grid = rng.standard_normal((cells, cells, channels)).astype(np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC).reshape(size, size, channels)


def random_colour(rng: np.random.Generator) -> np.ndarray:
    return rng.random(3).astype(np.float32)


def background(size: int, rng: np.random.Generator) -> np.ndarray:
    """Something behind the head (size, size, 3) in [0, 1]: colours, blobs, boxes and lines, more or less sharp."""
    out: np.ndarray = random_colour(rng) + rng.uniform(0, 0.25) * noise(size, int(rng.integers(2, 5)), rng, 3)
    out = np.ascontiguousarray(out, np.float32)
    for _ in range(rng.integers(0, 10)):
        a, b = rng.integers(-size // 4, size * 5 // 4, (2, 2))
        colour = tuple(random_colour(rng).tolist())
        kind = rng.random()
        if kind < 0.4:
            cv2.rectangle(out, a.tolist(), b.tolist(), colour, -1)
        elif kind < 0.7:
            axes = rng.integers(size // 20, size // 2, 2).tolist()
            cv2.ellipse(out, a.tolist(), axes, float(rng.uniform(0, 180)), 0, 360, colour, -1)
        else:
            cv2.line(out, a.tolist(), b.tolist(), colour, int(rng.integers(1, size // 12)))
    if rng.random() < 0.7:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.5, size / 20))
    return np.clip(out + rng.uniform(0, 0.06) * noise(size, int(rng.integers(16, 64)), rng), 0, 1)


def strands(size: int, rng: np.random.Generator) -> np.ndarray:
    """A texture of hair (size, size, 3): a colour, streaked."""
    colour = HAIR[rng.integers(len(HAIR))] / 255 * rng.uniform(0.6, 1.3)
    if rng.random() < 0.1:  # hats and scarves
        colour = random_colour(rng)
    grid = rng.standard_normal((int(rng.integers(4, 12)), int(rng.integers(30, 90)))).astype(np.float32)
    streaks = cv2.resize(grid, (size, size), interpolation=cv2.INTER_LINEAR)
    slope = np.linspace(rng.uniform(0.6, 1.4), rng.uniform(0.5, 1.1), size, dtype=np.float32)[:, None]
    shade = slope * (1 + rng.uniform(0.05, 0.4) * streaks)
    answer: np.ndarray = np.clip(shade[..., None] * colour, 0, 1).astype(np.float32)
    return answer


def dressed(
    scene: Scene, canvas: np.ndarray, colour: np.ndarray, tri: np.ndarray, marks: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The head on the canvas, with clothes, hair, beard, glasses and things in front: (H, W, 3) in [0, 1].

    Args:
        tri: (H, W) triangle of each pixel, -1 where there is no head. marks: (68, 2) landmarks, pixels.
    """
    size = len(canvas)
    seen = tri >= 0
    width = float(np.linalg.norm(marks[0] - marks[16]) + np.linalg.norm(marks[27] - marks[8])) / 2
    down = marks[8] - marks[27]
    down = down / max(np.linalg.norm(down), 1e-6)
    crown, chin = marks[27] - 0.25 * width * down, marks[8]
    hair = strands(size, rng)
    bald = rng.random() < 0.15
    out = canvas

    def ellipse(centre: np.ndarray, axes: np.ndarray) -> np.ndarray:
        mask = np.zeros((size, size), np.uint8)
        cv2.ellipse(mask, [int(x) for x in centre], [max(int(x), 1) for x in axes], 0, 0, 360, 1, -1)
        return mask.astype(bool)

    if not bald and rng.random() < 0.5:  # hair behind the head, short to long
        centre = crown + down * width * rng.uniform(-0.1, 0.8)
        behind = ellipse(centre, width * rng.uniform([0.6, 0.6], [1.0, 1.5]))
        out = np.where(behind[..., None], hair, out)
    clothes = ellipse(
        chin + down * width * rng.uniform(0.75, 1.3) + [rng.normal(0, 0.1) * width, 0],
        width * rng.uniform([0.9, 0.4], [1.8, 0.8]),
    )
    out = np.where(clothes[..., None], random_colour(rng) * (1 + 0.15 * noise(size, 6, rng)), out)
    out = np.where(seen[..., None], colour, out)

    if rng.random() < 0.8:  # teeth, which the open head has not
        polygon = marks[60:68]
        share = rng.uniform(0.3, 1.0)
        lower = polygon[[7, 6, 5]] * share + polygon[[1, 2, 3]] * (1 - share)
        mask: np.ndarray = np.zeros((size, size), np.uint8)
        cv2.fillPoly(mask, [np.round(np.concatenate([polygon[:5], lower[::-1]])).astype(np.int32)], 1)
        mask = mask.astype(bool) & seen & scene.inside[tri]
        out[mask] = np.array([0.9, 0.86, 0.78]) * rng.uniform(0.4, 1.05)
    if rng.random() < 0.2:  # a beard
        mask = np.zeros((size, size), np.float32)
        outline = np.concatenate([marks[2:15], marks[[35, 33, 31]] + 0.3 * (marks[[54, 51, 48]] - marks[[35, 33, 31]])])
        cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1.0)
        cv2.fillPoly(mask, [np.round(marks[48:60]).astype(np.int32)], 0.0)
        mask = cv2.GaussianBlur(mask, (0, 0), width / 30) * rng.uniform(0.2, 0.9)
        mask = mask * (seen & ~scene.inside[tri]) * np.clip(1 + 0.4 * noise(size, 40, rng)[..., 0], 0, 1)
        out = out * (1 - mask[..., None]) + hair * mask[..., None]
    if not bald:
        source = seen & scene.hairy[tri]
        if rng.random() < 0.4:
            source |= seen & scene.ears[tri]
        field = cv2.GaussianBlur(source.astype(np.float32), (0, 0), width * rng.uniform(0.02, 0.12))
        field += 0.12 * noise(size, int(rng.integers(5, 20)), rng)[..., 0] * (field > 0.02)
        on_skin = seen & ~source
        limit = np.where(on_skin, rng.uniform(0.35, 0.9), rng.uniform(0.1, 0.5))
        mask = cv2.GaussianBlur((field > limit).astype(np.float32), (0, 0), 1.0)[..., None]
        out = out * (1 - mask) + hair * mask
    if rng.random() < 0.22:
        out = glasses(np.ascontiguousarray(out), marks, rng)
    if rng.random() < 0.25:
        out = occluded(np.ascontiguousarray(out), marks, width, rng)
    return out


def glasses(image: np.ndarray, marks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Frames around the eyes, with dark or clear lenses."""
    thick = int(rng.integers(1, 6))
    colour = tuple((random_colour(rng) * rng.uniform(0, 0.6)).tolist())
    height = rng.uniform(0.7, 1.1)
    lens = image.copy()
    for eye in (marks[36:42], marks[42:48]):
        middle = eye.mean(0) + 0.15 * (marks[30] - marks[27]) * rng.uniform(0, 1)
        across = eye[3] - eye[0]
        angle = math.degrees(math.atan2(across[1], across[0]))
        reach = 0.95 * np.linalg.norm(across)
        axes = [max(int(reach), 2), max(int(0.55 * height * np.linalg.norm(marks[36] - marks[39]) + 0.3 * reach), 2)]
        cv2.ellipse(lens, [int(x) for x in middle], axes, angle, 0, 360, colour, -1)
        cv2.ellipse(image, [int(x) for x in middle], axes, angle, 0, 360, colour, thick, cv2.LINE_AA)
    cv2.line(image, marks[39].astype(int).tolist(), marks[42].astype(int).tolist(), colour, thick, cv2.LINE_AA)
    dark = rng.uniform(0.6, 0.97) if rng.random() < 0.25 else rng.uniform(0, 0.12)
    return image * (1 - dark) + lens * dark


def occluded(image: np.ndarray, marks: np.ndarray, width: float, rng: np.random.Generator) -> np.ndarray:
    """A hand, a microphone, the edge of something: shapes over a part of the face."""
    size = len(image)
    mask = np.zeros((size, size), np.uint8)
    start = marks[rng.integers(68)] + rng.normal(0, 0.1 * width, 2)
    kind = rng.random()
    if kind < 0.5:  # fingers: thick lines from below or the side
        away = np.array([rng.uniform(-0.3, 1.3), rng.choice([1.1, rng.uniform(0.4, 1.1)])]) * size
        for i in range(rng.integers(1, 5)):
            tip = start + np.array([i * 0.11, rng.normal(0, 0.05)]) * width
            end = away + np.array([i * 0.1 * width, 0])
            cv2.line(mask, tip.astype(int).tolist(), end.astype(int).tolist(), 1, max(int(0.1 * width), 2))
        colour = image[int(np.clip(marks[30, 1], 0, size - 1)), int(np.clip(marks[30, 0], 0, size - 1))]
        colour = colour * rng.uniform(0.7, 1.2)
    elif kind < 0.8:
        axes = [max(int(x), 1) for x in width * rng.uniform(0.08, 0.3, 2)]
        cv2.ellipse(mask, start.astype(int).tolist(), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        colour = random_colour(rng)
    else:  # a plane that cuts a side off
        edge = int(rng.uniform(0.02, 0.25) * size)
        side = rng.integers(4)
        mask[:edge] = 1
        mask = np.ascontiguousarray(np.rot90(mask, int(side)))
        colour = random_colour(rng)
    textured = colour * (1 + 0.12 * noise(size, 12, rng))
    return np.where(mask[..., None] > 0, np.clip(textured, 0, 1), image)


def photographed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a camera and a file do to a picture (S, S, 3) in [0, 1]: uint8."""
    size = len(image)
    image = np.clip(image, 0, 1).astype(np.float32) ** math.exp(rng.normal(0, 0.15))
    image = (image - 0.5) * rng.uniform(0.75, 1.25) + 0.5 + rng.normal(0, 0.06)
    image = image * (1 + rng.normal(0, 0.05, 3))
    if rng.random() < 0.06:
        image = np.repeat(image.mean(-1, keepdims=True), 3, -1)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), rng.uniform(0.4, 0.016 * size))
    if rng.random() < 0.2:
        low = int(size * rng.uniform(0.3, 0.9))
        image = cv2.resize(cv2.resize(image, (low, low), interpolation=cv2.INTER_AREA), (size, size))
    if rng.random() < 0.6:
        image = image + rng.uniform(0, 0.05) * rng.standard_normal(image.shape, np.float32)
    out = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    if rng.random() < 0.5:
        _, data = cv2.imencode(".jpg", out[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 95))])
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None
        out = decoded[..., ::-1]
    return np.ascontiguousarray(out)
