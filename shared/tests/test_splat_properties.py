"""What must hold for any scene, and scenes that go wrong: behind, enormous, tiny, not finite, empty."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recon4d import splat

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)


def random_scene(seed, N=60, batch=(), C=1, width=50, height=40):
    random = torch.Generator().manual_seed(seed)

    def uniform(*shape, low=0.0, high=1.0):
        return torch.rand(*shape, generator=random) * (high - low) + low

    means = torch.cat([uniform(*batch, N, 2, low=-1.5, high=1.5), uniform(*batch, N, 1, low=0.5, high=4)], -1)
    scales = torch.exp(uniform(*batch, N, 3, low=-4.5, high=-1.0))
    quats = torch.randn(*batch, N, 4, generator=random)
    Ks = torch.tensor([[40.0, 0, width / 2], [0, 44.0, height / 2], [0, 0, 1]]).repeat(*batch, C, 1, 1)
    viewmats = torch.eye(4).repeat(*batch, C, 1, 1)
    viewmats[..., :3, 3] = uniform(*batch, C, 3, low=-0.2, high=0.2)
    opacities, colors = uniform(*batch, N, low=0.05), uniform(*batch, N, 3)
    return dict(
        means=means, quats=quats, scales=scales, opacities=opacities, colors=colors, viewmats=viewmats, Ks=Ks,
        width=width, height=height,
    )  # fmt: skip


def render_with_gradients(scene, seed=0):
    """Image, alphas, meta, and gradients of a random loss."""
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats")
    scene = {k: v.clone().requires_grad_() if k in names else v for k, v in scene.items()}
    image, alphas, meta = splat.rasterize(**scene)
    weights = torch.randn(image.shape[-3:], generator=torch.Generator().manual_seed(seed)).expand_as(image)
    gradients = torch.autograd.grad((image * weights).sum() + alphas.sum(), [scene[n] for n in names])
    return image.detach(), alphas.detach(), meta, dict(zip(names, gradients))


def close(a, b, tolerance=1e-5):
    scale = b.abs().amax().clamp_min(1e-3) if b.numel() else 1.0
    return bool(((a - b).abs() <= tolerance * scale).all())


@SETTINGS
@given(seeds)
def test_order_of_gaussians_does_not_matter(seed):
    scene = random_scene(seed)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    image, alphas, _, gradients = render_with_gradients(scene)
    per_gaussian = ("means", "quats", "scales", "opacities", "colors")
    shuffled = scene | {name: scene[name][order] for name in per_gaussian}
    other, other_alphas, _, other_gradients = render_with_gradients(shuffled)
    torch.testing.assert_close(image, other, rtol=0, atol=0)
    torch.testing.assert_close(alphas, other_alphas, rtol=0, atol=0)
    for name in per_gaussian:
        assert close(other_gradients[name], gradients[name][order])


@SETTINGS
@given(seeds, st.integers(-20, 20), st.integers(-20, 20))
def test_moving_the_principal_point_moves_the_image(seed, right, down):
    # Well inside a wide field of view: at its border, which moves too, the slope of the projection is clamped.
    scene = random_scene(seed, width=90, height=80)
    scene["Ks"][..., :2, :2] *= 0.5
    scene["means"][..., 2] += 1.0
    moved = scene | {"Ks": scene["Ks"].clone()}
    moved["Ks"][..., 0, 2] += right
    moved["Ks"][..., 1, 2] += down
    image, _, _ = splat.rasterize(**scene)
    other, _, _ = splat.rasterize(**moved)
    overlap = image[..., max(0, -down) : 80 - max(0, down), max(0, -right) : 90 - max(0, right), :]
    seen = other[..., max(0, down) : 80 + min(0, down), max(0, right) : 90 + min(0, right), :]
    # rounding of the mean can move an alpha across 1/255 at a pixel, never more than that
    difference = (overlap - seen).abs()
    assert difference.amax() < 2 / 255 and difference.mean() < 1e-5


@SETTINGS
@given(seeds)
def test_a_batch_is_its_parts(seed):
    scene = random_scene(seed, N=30, batch=(2, 2), C=2)
    image, alphas, meta, gradients = render_with_gradients(scene)
    for i in range(2):
        for j in range(2):
            part = {k: v[i, j] if torch.is_tensor(v) else v for k, v in scene.items()}
            one, one_alphas, one_meta, one_gradients = render_with_gradients(part)
            torch.testing.assert_close(image[i, j], one, rtol=0, atol=0)
            torch.testing.assert_close(alphas[i, j], one_alphas, rtol=0, atol=0)
            assert torch.equal(meta["radii"][i, j], one_meta["radii"])
            for name, gradient in one_gradients.items():
                assert close(gradients[name][i, j], gradient, 1e-6), name


@SETTINGS
@given(seeds)
def test_doubling_the_resolution_refines_the_image(seed):
    # Without blur and with soft Gaussians, the average of 2x2 fine pixels approaches the coarse pixel.
    scene = random_scene(seed, N=8) | {"eps2d": 0.0}
    scene["scales"] = scene["scales"].clamp_min(0.2)
    scene["means"][..., 2] += 1.5
    double = scene | {"Ks": scene["Ks"] * torch.tensor([[2.0], [2.0], [1.0]]), "width": 100, "height": 80}
    image, _, meta = splat.rasterize(**scene)
    fine, _, fine_meta = splat.rasterize(**double)
    torch.testing.assert_close(fine_meta["means2d"], 2 * meta["means2d"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(fine_meta["conics"], meta["conics"] / 4, rtol=1e-4, atol=1e-7)
    pooled = torch.nn.functional.avg_pool2d(fine[0].permute(2, 0, 1)[None], 2)[0].permute(1, 2, 0)
    assert (pooled - image[0]).abs().amax() < 0.05
    assert (pooled - image[0]).abs().mean() < 0.004


@SETTINGS
@given(seeds)
def test_packed_is_the_same_picture(seed):
    scene = random_scene(seed, N=30, batch=(2,), C=2)
    scene["means"][..., ::3, 2] -= 4.0  # some behind
    image, alphas, meta, gradients = render_with_gradients(scene)
    other, other_alphas, packed, other_gradients = render_with_gradients(scene | {"packed": True})
    assert torch.equal(image, other) and torch.equal(alphas, other_alphas)
    visible = (meta["radii"] > 0).all(-1)
    ids = packed["batch_ids"], packed["camera_ids"], packed["gaussian_ids"]
    assert len(ids[0]) == visible.sum() and visible[ids].all()
    for name in ("radii", "means2d", "depths", "conics", "opacities"):
        assert torch.equal(packed[name], meta[name][ids])
    for name, gradient in gradients.items():
        assert torch.equal(other_gradients[name], gradient)


def sane(scene):
    image, alphas, meta, gradients = render_with_gradients(scene)
    assert torch.isfinite(image).all() and torch.isfinite(alphas).all()
    assert (alphas >= 0).all() and (alphas <= 1).all()
    for name, gradient in gradients.items():
        assert torch.isfinite(gradient).all(), name
    return image, alphas, meta, gradients


def with_one_wrong(name, value, seed=4):
    """The scene with Gaussian 7 broken, and without Gaussian 7."""
    scene = random_scene(seed)
    broken = scene | {name: scene[name].clone()}
    broken[name][7] = value
    keep = torch.arange(60) != 7
    per_gaussian = ("means", "quats", "scales", "opacities", "colors")
    return broken, scene | {n: scene[n][keep] for n in per_gaussian}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("means", float("nan")),
        ("means", float("inf")),
        ("means", torch.tensor([0.0, 0.0, -2.0])),  # behind
        ("means", torch.tensor([0.0, 0.0, 0.0])),  # close to the camera's centre
        ("means", torch.tensor([1e8, 0.0, 1.0])),
        ("quats", float("nan")),
        ("scales", float("nan")),
        ("scales", float("inf")),
        ("scales", 1e25),
        ("opacities", float("nan")),
        ("opacities", 0.0),
        ("opacities", -1.0),
        ("opacities", 1 / 256),
    ],
)
def test_one_wrong_gaussian_is_as_if_absent(name, value):
    broken, without = with_one_wrong(name, value)
    if name == "means" and torch.is_tensor(value) and value.abs().sum() == 0:
        broken["viewmats"] = without["viewmats"] = torch.eye(4)[None]
    image, _, meta, gradients = sane(broken)
    expected, _, _, expected_gradients = sane(without)
    assert torch.equal(image, expected)
    assert (meta["radii"][..., 7, :] == 0).all()
    keep = torch.arange(60) != 7
    for n, gradient in gradients.items():
        if n == "viewmats":
            assert close(gradient, expected_gradients[n])
        else:
            assert (gradient[7] == 0).all()
            assert close(gradient[keep], expected_gradients[n])


def test_culled_gaussian_with_nan_leaves_harmonics_alone():
    scene = random_scene(4) | {"sh_degree": 3}
    scene["colors"] = torch.randn(60, 16, 3, generator=torch.Generator().manual_seed(0)) * 0.2
    without = scene | {n: scene[n][8:] for n in ("means", "quats", "scales", "opacities", "colors")}
    scene["means"][:8] = float("nan")
    image, _, _, gradients = sane(scene)
    assert torch.equal(image, splat.rasterize(**without)[0])
    assert (gradients["colors"][:8] == 0).all() and (gradients["means"][:8] == 0).all()


def test_zero_quaternion_is_no_rotation():
    scene = random_scene(1)
    scene["quats"][7] = 0
    unrotated = scene | {"quats": scene["quats"].clone()}
    unrotated["quats"][7] = torch.tensor([3.0, 0, 0, 0])
    image, _, _, gradients = sane(scene)
    assert torch.equal(image, splat.rasterize(**unrotated)[0])
    assert (gradients["quats"][7] == 0).all()


def test_zero_scale_is_a_dot_of_the_blur():
    scene = random_scene(1, N=1)
    scene["means"][:] = torch.tensor([0.0, 0.0, 2.0])
    scene["viewmats"] = torch.eye(4)[None]
    scene["scales"][:] = 0
    scene["opacities"][:] = 1.0
    _, alphas, meta, gradients = sane(scene)
    torch.testing.assert_close(meta["conics"][0, 0], torch.tensor([1 / 0.3, 0, 1 / 0.3]))
    # the four pixels around the image's centre are half a pixel away in x and in y
    expected = torch.exp(torch.tensor(-0.25 / 0.3)).expand(2, 2)
    torch.testing.assert_close(alphas[0, 19:21, 24:26, 0], expected)
    assert (gradients["scales"] == 0).all()
    assert alphas.sum() < 8


def test_enormous_gaussian_covers_everything():
    scene = random_scene(1, N=1)
    scene["means"][:] = torch.tensor([0.0, 0.0, 2.0])
    scene["scales"][:] = 1e4
    scene["opacities"][:] = 0.5
    _, alphas, meta, _ = sane(scene)
    torch.testing.assert_close(alphas, torch.full_like(alphas, 0.5), rtol=0, atol=1e-5)
    assert meta["tiles_per_gauss"].item() == meta["tile_width"] * meta["tile_height"] == 12


def test_gaussian_that_crosses_the_near_plane():
    scene = random_scene(1, N=1)
    scene["viewmats"] = torch.eye(4)[None]
    scene["scales"][:] = 0.5  # reaches behind the camera
    for depth, seen in ((0.0100001, True), (0.0099999, False)):
        scene["means"][:] = torch.tensor([0.0, 0.0, depth])
        _, alphas, meta, _ = sane(scene)
        assert bool((meta["radii"] > 0).all()) == seen == bool(alphas.amax() > 0)


def test_thin_gaussian_keeps_its_shape():
    # a needle 400 pixels long and one wide: the determinant of its covariance cancels in float32 if not done with care
    scene = random_scene(1, N=1, width=300, height=300)
    scene["viewmats"], scene["opacities"][:] = torch.eye(4)[None], 1.0
    scene["means"][:] = torch.tensor([0.0, 0.0, 1.0])
    scene["quats"][:] = torch.tensor([0.9238795, 0.0, 0.0, 0.3826834])  # 45 degrees about the view axis
    scene["scales"][:] = torch.tensor([400 / 40, 0.005, 0.005])
    scene["Ks"][..., 1, 1] = 40.0
    _, alphas, meta, _ = sane(scene)
    diagonal = alphas[0, torch.arange(300), torch.arange(300), 0]
    assert diagonal[100:200].amin() > 0.9
    along, across = 1 / (400**2 + 0.3), 1 / (0.2**2 + 0.3)
    expected = torch.tensor([(along + across) / 2, (along - across) / 2, (along + across) / 2])
    torch.testing.assert_close(meta["conics"][0, 0], expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_no_gaussians(batch):
    scene = random_scene(0, N=0, batch=batch)
    backgrounds = torch.rand(*batch, 1, 3, requires_grad=True)
    image, alphas, meta = splat.rasterize(**scene, backgrounds=backgrounds)
    assert torch.equal(image, backgrounds[..., None, None, :].expand_as(image)) and (alphas == 0).all()
    assert meta["means2d"].shape == (*batch, 1, 0, 2)
    image.sum().backward()
    torch.testing.assert_close(backgrounds.grad, torch.full_like(backgrounds, 50.0 * 40.0))
    sane(scene)


def test_no_images_in_the_batch():
    scene = random_scene(0, N=5, batch=(0,))
    image, alphas, _ = splat.rasterize(**scene)
    assert image.shape == (0, 1, 40, 50, 3) and alphas.shape == (0, 1, 40, 50, 1)


def test_one_pixel_and_ragged_images():
    whole = splat.rasterize(**random_scene(5, width=33, height=17))[0]
    for width, height in ((1, 1), (16, 17), (17, 16)):
        cut, _, _, _ = sane(random_scene(5, width=33, height=17) | {"width": width, "height": height})
        # the clamp on the projection's slope looks at the image's size: compare what is well inside
        assert (cut - whole[..., :height, :width, :]).abs().mean() < 0.02


def test_meta_allows_densification():
    """What gsplat's strategies read: the gradient of means2d, and AbsGS's sums."""
    scene = random_scene(3, N=20, width=11, height=9)
    scene["means"].requires_grad_()
    image, _, meta = splat.rasterize(**scene, absgrad=True)
    meta["means2d"].retain_grad()
    weights = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    image.backward(weights, retain_graph=True)
    signed, absolute = meta["means2d"].grad, meta["means2d"].absgrad
    assert signed.shape == absolute.shape == (1, 20, 2)
    # the sums, pixel by pixel
    expected, expected_absolute = torch.zeros(1, 20, 2), torch.zeros(1, 20, 2)
    for y in range(9):
        for x in range(11):
            single = torch.zeros_like(image)
            single[0, y, x] = weights[0, y, x]
            (gradient,) = torch.autograd.grad(image, meta["means2d"], single, retain_graph=True)
            expected += gradient
            expected_absolute += gradient.abs()
    torch.testing.assert_close(signed, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(absolute, expected_absolute, rtol=1e-4, atol=1e-5)
    assert (absolute > 1.5 * signed.abs()).any()


def test_colour_average_by_one_backward():
    """sum_p w_ip target_p / sum_p w_ip, RGBAvatar's colour initialisation, as a vector-Jacobian product."""
    scene = random_scene(8, N=25)
    target = torch.rand(1, 40, 50, 3, generator=torch.Generator().manual_seed(0))
    colors = torch.zeros(25, 3, requires_grad=True)
    image, _, _ = splat.rasterize(**(scene | {"colors": colors}))
    (weighted,) = torch.autograd.grad(image, colors, target, retain_graph=True)
    (weights,) = torch.autograd.grad(image, colors, torch.ones_like(target))
    identity, _, _ = splat.rasterize(**(scene | {"colors": torch.eye(25)}))  # each Gaussian's own weights as a channel
    torch.testing.assert_close(weighted, torch.einsum("chwn,chwd->nd", identity, target), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights[:, 0], identity.sum((0, 1, 2)), rtol=1e-4, atol=1e-5)


def test_memory_grows_with_intersections_not_with_pixels_times_gaussians():
    scene = random_scene(0, N=20_000, width=640, height=480)
    scene["scales"][:] = 1e-3
    scene["Ks"] *= torch.tensor([[10.0], [10.0], [1.0]])
    scene["Ks"][..., 0, 2], scene["Ks"][..., 1, 2] = 320.0, 240.0
    _, _, meta = splat.rasterize(**scene)
    total = int(meta["tiles_per_gauss"].sum())
    assert len(meta["flatten_ids"]) == total < 2 * 20_000 < meta["tile_width"] * meta["tile_height"] * 20_000 / 100
