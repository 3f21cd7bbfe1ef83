"""The avatar's colours as a texture of its head mesh: what it shows from all around, baked into the UV layout."""

from dataclasses import replace

import numpy as np
import roma
import torch
from recon4d import mesh
from recon4d.cameras import Camera
from recon4d.head import HeadModel
from torch import Tensor, nn

from gaussian_avatar import avatars, driving, motions, rendering
from gaussian_avatar.motions import Motion
from gaussian_avatar.runs import Run

# Degrees to the person's left and up from which it is seen, and how far each is to be trusted: clips show the front.
VIEWS = ((0, 0, 1.0), (35, 0, 0.7), (-35, 0, 0.7), (0, 35, 0.4), (0, -30, 0.4), (75, 0, 0.2), (-75, 0, 0.2),
         (120, 20, 0.1), (-120, 20, 0.1), (180, 20, 0.1), (0, 85, 0.1))  # fmt: skip
SIDE = 512  # pixels of those pictures
NEAR = 2e-3  # metres: what is no farther behind the nearest surface is seen


def at_rest(run: Run) -> Motion:
    """One frame: the avatar's neutral face, looking straight ahead from where its clip has it."""
    rest = driving.neutral(run.track, run.head)
    one = run.track.take([motions.frontal_frame(run.track)])
    still = np.eye(3, dtype=np.float32)
    one = replace(
        one,
        expression=rest.expression[None],
        eyelids=rest.eyelids[None],
        jaw=rest.jaw[None],
        eyes=np.broadcast_to(still, (1, 2, 3, 3)).copy(),
        neck=still[None],
        R=motions.AXES.astype(np.float32)[None],
    )
    return motions.from_track(one, run.head, origin=run.track.t[0])


@torch.no_grad()
def bake(run: Run, size: int = 1024) -> np.ndarray:
    """Colours of the head's texture, sRGB in [0, 1], (size, size, 3), row 0 at v = 1.

    The avatar is rendered at rest from `VIEWS`; each texel takes the mean of the pictures that see its surface,
    weighted by the cosine to the view, cubed, and by the view's trust. Texels that none sees, such as the inside of the
    mouth, take the colour of the nearest Gaussian in the layout.

    Raises InputError for a head model without texture coordinates.
    """
    head, motion = run.head, at_rest(run)
    vt, ft = avatars.texture_layout(head)
    texels = mesh.bake_uv(vt, ft, (size, size))
    vertices = motion.vertices
    points = texels.interpolate(vertices[0], head.faces)[texels.mask]
    normals = texels.interpolate(mesh.vertex_normals(vertices, head.faces)[0], head.faces)[texels.mask]
    normals = nn.functional.normalize(normals, dim=-1)
    total = torch.zeros(len(points), 3)
    weights = torch.zeros(len(points), 1)
    for yaw, pitch, trust in VIEWS:
        camera = _view(motion, vertices[0], yaw, pitch)
        colour, opacity, depth = _picture(run, motion, camera)
        pixels, far = camera.project(points)
        at = pixels / SIDE * 2 - 1
        found = nn.functional.grid_sample(
            torch.cat([colour, opacity, depth], -1).permute(2, 0, 1)[None], at[None, None], align_corners=False
        )[0, :, 0].T
        facing = (normals * nn.functional.normalize(camera.center - points, dim=-1)).sum(-1)
        seen = (found[:, 3] > 0.9) & (found[:, 4] > 0) & (far < found[:, 4] + NEAR) & (at.abs() < 1).all(-1)
        weight = (trust * facing.clamp_min(0) ** 3 * seen)[:, None]
        total += weight * found[:, :3] / found[:, 3:4].clamp_min(0.5)
        weights += weight
    own = _own_colours(run, motion, vt, ft, size)[texels.mask]
    shown = total / weights.clamp_min(1e-9)
    share = (weights / 0.02).clamp(0, 1)  # where it is hardly seen, both
    colours = torch.zeros(size, size, 3)
    colours[texels.mask] = (share * shown + (1 - share) * own).clamp(0, 1)
    filled: np.ndarray = mesh.fill_gutter(colours, texels.mask).numpy()
    return filled


def _view(motion: Motion, vertices: Tensor, yaw: float, pitch: float) -> Camera:
    """The clip's camera, square, moved about the head by so many degrees to the person's left and up."""
    centre = vertices.mean(0)
    angles = torch.tensor([pitch, -yaw, 0.0])
    turn = roma.euler_to_rotmat("XYZ", angles, degrees=True)
    about = torch.eye(4)
    about[:3, :3], about[:3, 3] = turn, centre - turn @ centre
    view = motion.camera.world_to_camera @ about
    # As large as the whole head fits, its middle in the picture's.
    seen = vertices @ view[:3, :3].T + view[:3, 3]
    middle = (seen[:, :2] / seen[:, 2:]).mean(0)
    reach = float((seen[:, :2] / seen[:, 2:] - middle).abs().max())
    focal = 0.48 * SIDE / reach
    K = torch.tensor([[focal, 0, SIDE / 2], [0, focal, SIDE / 2], [0, 0, 1.0]])
    K[:2, 2] -= focal * middle
    return Camera(K, view, SIDE, SIDE)


def _picture(run: Run, motion: Motion, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """The avatar's colours over black, its opacity and the mesh's depth: (S, S, 3), (S, S, 1), (S, S, 1), 0 outside."""
    rgba = next(rendering.render(run, replace(motion, camera=camera), torch.zeros(3), alpha=True))
    image = torch.from_numpy(rgba).float() / 255
    found = mesh.rasterize(camera.clip(motion.vertices), run.head.faces, (SIDE, SIDE))
    _, depth = camera.project(motion.vertices[0])
    deep = mesh.interpolate(depth[None, :, None], found, run.head.faces)[0]
    return image[..., :3] * image[..., 3:], image[..., 3:], deep


def _own_colours(run: Run, motion: Motion, vt: Tensor, ft: Tensor, size: int) -> Tensor:
    """(size, size, 3) the colour of the nearest Gaussian in the layout."""
    avatar = run.avatar.to("cpu")
    splats, _ = avatars.deform(avatar, run.head, motion.vertices, motion.inputs, motion.camera.world_to_camera)
    uv = (avatar.bary[..., None] * vt[ft[avatar.face_id]]).sum(1)
    kept = avatar.seen & (splats.opacities[0] > 0.1)
    column = (uv[:, 0] * size).long().clamp(0, size - 1)[kept]
    row = ((1 - uv[:, 1]) * size).long().clamp(0, size - 1)[kept]
    colours, mask = torch.zeros(size, size, 3), torch.zeros(size, size, dtype=torch.bool)
    colours[row, column], mask[row, column] = splats.colors[0, kept].clamp(0, 1), True
    return mesh.fill_gutter(colours, mask)


def layout(head: HeadModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mesh with one vertex for each pair of place and texture coordinate: places (U,), uv (U, 2), faces (F, 3)."""
    vt, ft = avatars.texture_layout(head)
    pairs = torch.stack([head.faces.flatten(), ft.flatten()], 1).numpy()
    found, inverse = np.unique(pairs, axis=0, return_inverse=True)
    return found[:, 0], vt.numpy()[found[:, 1]], inverse.reshape(-1, 3)
