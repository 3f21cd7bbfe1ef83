"""Where MediaPipe's 468 points lie on a head model: learned from drawn people.

Many people, expressions, poses and lights are drawn with the head model, and the landmarker looks at each picture. Each
point that it finds is carried back through the drawn pixel onto the unposed surface. The robust centre of a point's
places is its place. Beside it the points lie by an amount that depends on the view (a landmarker that knows few faces
from the side puts their points too far towards the front): that is regressed on the direction to the camera, and what
is left is a point's deviation.

From the same drawings a regression is learned of jaw, eyelids and expression on the 52 blendshapes that the landmarker
gives out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import roma
import torch
import trimesh
from recon4d import cameras, landmarker, mesh
from recon4d.files import InputError
from recon4d.formats.landmarks import IRISES
from recon4d.head import HeadModel, with_uv
from recon4d.head.dense import Activations, DensePoints, upright, view_terms
from recon4d.head.model import outer_eyes
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from torch import Tensor

from flame_encoder.encoder import rendering, synthetic, wardrobe
from flame_encoder.encoder.crop import FACING, CropView
from flame_encoder.encoder.synthetic import Scene
from flame_encoder.encoder.vector import Layout, head_arguments
from flame_encoder.tracker.points import eye_radius

N_SURFACE = 468
SIZE = 320  # pixels of a picture
STEEP = 0.35  # cosine under which a surface is seen too much from the side to say where a point is
FEWEST = 4  # times that a point must be seen
SHARPEST = 0.0007  # metres: no point is surer
RIDGE = 0.5  # drawings' worth of prior on no bias
SHRINKAGE = 3.0  # the same on no effect of a blendshape
TOLD = 0.1  # share of a coefficient's variance that blendshapes must explain to be asked about it


def embed(
    head: HeadModel, people: int = 400, seed: int = 0, progress: Callable[[int], None] = lambda done: None
) -> DensePoints:
    """Draw `people` and learn the points' places.

    Raises:
        InputError: the landmarker sees faces in too few of the drawn pictures.
    """
    head = head if head.vt is not None else with_uv(head)
    scene = synthetic.scene(head, Layout(), CropView(size=SIZE))
    drawings = []
    for index in range(people):
        found = _drawn(scene, np.random.default_rng((seed, index, 7)), turned=index % 2 == 1)
        if found is not None:
            drawings.append(found)
        progress(index + 1)
    if len(drawings) < FEWEST:
        raise InputError(f"{head.name}: a face is seen in {len(drawings)} of {people} drawings; is it a head?")
    faces, bary = _places(scene, np.stack([drawing.places for drawing in drawings]))
    sigma, bias = _biases(head, drawings, faces, bary)
    return DensePoints(torch.arange(N_SURFACE), faces, bary, sigma, bias, _activations(drawings))


@dataclass(frozen=True, eq=False)
class Drawing:
    """A drawn person.

    vertices: (V, 3) in the camera. irises: (2, 3) likewise, left first. rotation: (3, 3) head to camera. pixels:
    (470, 2) the points and irises found. places: (468, 3) the points are carried back to, on the mean head, NaN where
    unknown. blendshapes: (52,) found. face: (5 + E,) drawn: jaw, eyelids, expression.
    """

    vertices: Tensor
    irises: Tensor
    rotation: Tensor
    K: Tensor
    pixels: np.ndarray
    places: np.ndarray
    blendshapes: np.ndarray
    face: np.ndarray


def _drawn(scene: Scene, rng: np.random.Generator, turned: bool) -> Drawing | None:
    """Draw one person and look at them; None where no face is found.

    Args:
        turned: by up to 65 degrees; by about 10 otherwise.
    """
    head = scene.head
    parts = synthetic.random_parts(scene, rng)
    yaw = rng.uniform(-65, 65) if turned else rng.normal(0, 10)
    turn = Rotation.from_euler("ZXY", [rng.normal(0, 5), rng.normal(0, 12), yaw], degrees=True).as_matrix()
    parts["global_rot"] = torch.from_numpy(turn[:2].ravel().astype(np.float32))
    vertices = rendering.turned(head, {name: part[None] for name, part in parts.items()})[0]
    place, focal = synthetic.random_place(scene, vertices, rng)
    stands = vertices * torch.tensor(FACING) + place
    K = torch.tensor([[focal, 0, SIZE / 2], [0, focal, SIZE / 2], [0, 0, 1]])
    rast = mesh.rasterize(cameras.Camera(K, torch.eye(4), SIZE, SIZE).clip(stands[None]), head.faces, (SIZE, SIZE))
    colour = synthetic.shaded(scene, parts, vertices, rast, rng)
    seen = rast.tri_id[0].numpy() >= 0
    image = np.where(seen[..., None], colour, wardrobe.background(SIZE, rng))
    image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 0.6)
    faces = landmarker.find((np.clip(image, 0, 1) * 255).astype(np.uint8))
    if not faces or faces[0].presence < 0.9:
        return None
    found = faces[0].points[:, :2]
    pixels = found[:N_SURFACE]
    column, row = (pixels - 0.5).round().astype(int).clip(0, SIZE - 1).T
    triangle = rast.tri_id[0, row, column].long()
    corners, weights = head.faces[triangle.clamp_min(0)], rast.bary[0, row, column][..., None]
    normals = mesh.vertex_normals(stands[None], head.faces)[0]
    normals = torch.nn.functional.normalize((normals[corners] * weights).sum(1), dim=1)
    sight = torch.nn.functional.normalize((stands[corners] * weights).sum(1), dim=1)
    known = (triangle >= 0) & (-(normals * sight).sum(1) > STEEP)
    places = torch.where(known[:, None], (head.v_template[corners] * weights).sum(1), torch.nan)
    to_camera = torch.diag(torch.tensor(FACING)) @ torch.from_numpy(turn).float()
    found = np.concatenate([pixels, found[list(IRISES)]])
    said = faces[0].blendshapes
    return Drawing(stands, _irises(head, stands), to_camera, K, found, places.numpy(), said, _face(scene, parts))


def _face(scene: Scene, parts: dict[str, Tensor]) -> np.ndarray:
    """(5 + E,) jaw, eyelids and expression of a drawn person; zeros for what the head does not have."""
    arguments = head_arguments(scene.head, {name: part[None] for name, part in parts.items()})
    lids = arguments.get("eyelids", torch.zeros(1, 2))
    expression = torch.zeros(1, scene.head.n_expression)
    given = arguments["expression"]
    expression[:, : given.shape[1]] = given
    return torch.cat([parts["jaw"], lids[0], expression[0]]).numpy()


def _activations(drawings: list[Drawing]) -> Activations:
    """Ridge regression; deviations of drawings that it was not fitted to (leave one out)."""
    said = np.stack([np.r_[1.0, drawing.blendshapes] for drawing in drawings])
    drawn = np.stack([drawing.face for drawing in drawings]).astype(float)
    shrinkage = np.diag(np.r_[1e-6, np.full(said.shape[1] - 1, SHRINKAGE)])
    hat = np.linalg.solve(said.T @ said + shrinkage, said.T)
    weights = hat @ drawn
    left = (drawn - said @ weights) / (1 - np.einsum("bk,kb->b", said, hat))[:, None]
    sigma, spread = left.std(0), drawn.std(0)
    sigma = np.where(sigma**2 < (1 - TOLD) * spread**2, sigma, np.inf)
    return Activations(torch.from_numpy(weights).float(), torch.from_numpy(sigma).float())


def _places(scene: Scene, places: np.ndarray) -> tuple[Tensor, Tensor]:
    """Faces (468,) and barycentrics (468, 3) of the skin nearest to the centres of places (B, 468, 3)."""
    head = scene.head
    skin = np.flatnonzero(~scene.inside & ~_eyeballs(head))
    surface = trimesh.Trimesh(head.v_template.numpy(), head.faces[torch.from_numpy(skin)].numpy(), process=False)
    known = [places[np.isfinite(places[:, i, 0]), i] for i in range(N_SURFACE)]
    if min(map(len, known)) < FEWEST:
        raise InputError(f"{head.name}: some points of the face are never seen in its drawings; draw more people")
    faces, bary = _nearest(surface, np.stack([_geometric_median(points) for points in known]))
    return torch.from_numpy(skin[faces]), torch.from_numpy(bary.astype(np.float32))


def _biases(head: HeadModel, drawings: list[Drawing], faces: Tensor, bary: Tensor) -> tuple[Tensor, Tensor]:
    """Deviations (468,), metres, that the view does not explain; how far beside their places points and irises are."""
    skin = torch.stack([drawing.vertices[head.faces[faces]].mul(bary[..., None]).sum(1) for drawing in drawings])
    stand = torch.cat([skin, torch.stack([drawing.irises for drawing in drawings])], 1)
    K = torch.stack([drawing.K for drawing in drawings])
    points = stand @ K.mT
    off = torch.from_numpy(np.stack([drawing.pixels for drawing in drawings])) - points[..., :2] / points[..., 2:]
    centres, rotations = skin.mean(1), torch.stack([drawing.rotation for drawing in drawings])
    unit = outer_eyes(head) * K[:, 0, 0] / centres[:, 2]
    error = (off @ upright(rotations).mT / unit[:, None, None]).double().numpy()  # (B, 470, 2) right and down
    terms = view_terms(rotations, centres).double().numpy()
    weight = np.ones(error.shape[:2])
    bias = np.zeros((error.shape[1], 2, terms.shape[1]))
    for _ in range(5):  # Huber's weights: few drawings are wild
        for i in range(len(bias)):
            weighed = terms * weight[:, i, None]
            normal = weighed.T @ terms + RIDGE * np.eye(terms.shape[1])
            bias[i] = np.linalg.solve(normal, weighed.T @ error[:, i]).T
        left = np.linalg.norm(error - np.einsum("bk,ick->bic", terms, bias), axis=2)
        spread = np.median(left, axis=0) / 1.18  # of a normal distribution in the plane
        weight = np.minimum(1, 2 * spread / np.maximum(left, 1e-9))
    sigma = np.maximum(spread[:N_SURFACE] * outer_eyes(head), SHARPEST)
    return torch.from_numpy(sigma).float(), torch.from_numpy(bias).float()


def _irises(head: HeadModel, vertices: Tensor) -> Tensor:
    """(2, 3) where the irises of a posed head are: before the eyeballs, as far as in the mean head."""
    places = []
    for joint in (3, 4):
        ball = head.weights[:, joint] > 0.99
        still = head.v_template[ball]
        R, t = roma.rigid_points_registration(still, vertices[ball])
        places.append(R @ (head.joint_basis[0][joint] + torch.tensor([0.0, 0.0, eye_radius(head)])) + t)
    return torch.stack(places)


def _eyeballs(head: HeadModel) -> np.ndarray:
    """(F,) faces of the eyeballs."""
    answer: np.ndarray = (head.weights[:, 3:].sum(1) > 0.5)[head.faces].all(1).numpy()
    return answer


def _geometric_median(points: np.ndarray) -> np.ndarray:
    """Weiszfeld's iteration."""
    centre = np.median(points, axis=0)
    for _ in range(50):
        weight = 1 / np.maximum(np.linalg.norm(points - centre, axis=1), 1e-5)
        centre = (points * weight[:, None]).sum(0) / weight.sum()
    return centre


def _nearest(surface: trimesh.Trimesh, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Faces (n,) and barycentrics (n, 3) of the surface's places nearest to points (n, 3)."""
    tree = cKDTree(surface.triangles_center)
    _, near = tree.query(points, k=24)
    flat = surface.triangles[near].reshape(-1, 3, 3)
    closest = trimesh.triangles.closest_point(flat, np.repeat(points, 24, 0))  # type: ignore[no-untyped-call]
    closest = closest.reshape(-1, 24, 3)
    best = np.linalg.norm(closest - points[:, None], axis=2).argmin(1)
    rows = np.arange(len(points))
    faces = near[rows, best]
    corners = surface.triangles[faces]
    bary = trimesh.triangles.points_to_barycentric(corners, closest[rows, best])  # type: ignore[no-untyped-call]
    return faces, np.clip(bary, 0, 1) / np.clip(bary, 0, 1).sum(1, keepdims=True)
