"""Metrics against scikit-image, the package lpips and by hand."""

import numpy as np
import pytest
import torch
import torchvision
from recon4d import InputError, metrics
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


@pytest.fixture
def pair():
    torch.manual_seed(0)
    target = torch.rand(2, 3, 40, 50)
    return (target + 0.1 * torch.randn(2, 3, 40, 50)).clamp(0, 1), target


def test_psnr_and_ssim_agree_with_scikit_image(pair):
    prediction, target = pair
    for i in range(2):
        a, b = (x[i].permute(1, 2, 0).double().numpy() for x in pair)
        assert metrics.psnr(prediction, target)[i].item() == pytest.approx(
            peak_signal_noise_ratio(b, a, data_range=1), abs=1e-4
        )
        _, full = structural_similarity(
            b, a, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )
        mask = torch.zeros(2, 1, 40, 50)
        mask[:, :, 8:-8, 8:-8] = 1  # away from the border, where the two pad differently
        want = full[8:-8, 8:-8].mean()
        assert metrics.ssim(prediction, target, mask)[i].item() == pytest.approx(want, abs=1e-4)


def test_mask_counts_only_what_is_inside(pair):
    prediction, target = pair
    mask = torch.zeros(2, 1, 40, 50)
    mask[:, :, :20] = 1
    changed = prediction.clone()
    changed[:, :, 20:] = 0.5
    torch.testing.assert_close(metrics.psnr(prediction, target, mask), metrics.psnr(changed, target, mask))
    torch.testing.assert_close(
        metrics.psnr(prediction, target, mask), metrics.psnr(prediction[:, :, :20], target[:, :, :20])
    )
    assert metrics.psnr(prediction, target, mask * 0).isnan().all()
    assert (metrics.ssim(target, target, mask) == 1).all()


def test_small_images(pair):
    with pytest.raises(InputError, match="11 by 11"):
        metrics.ssim(*(x[..., :10] for x in pair))


def test_lpips_is_that_of_its_package(pair):
    import lpips

    network = metrics.lpips_network()
    theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()  # their channels' weights, our convolutions
    for k, place in enumerate((0, 3, 6, 8, 10)):
        layer = theirs.net.get_submodule(f"slice{k + 1}.{place}")
        layer.load_state_dict({"weight": network.get_buffer(f"weight{k}"), "bias": network.get_buffer(f"bias{k}")})
        assert (theirs.lins[k].model[1].weight.ravel() - network.get_buffer(f"channels{k}")).abs().max() < 1e-3
    prediction, target = (torch.nn.functional.interpolate(x, (70, 64)) for x in pair)
    expected = theirs(prediction, target, normalize=True).ravel()
    torch.testing.assert_close(metrics.lpips(prediction, target), expected, rtol=1e-3, atol=1e-5)
    assert (metrics.lpips(target, target) == 0).all()
    with pytest.raises(InputError, match="at least 31 by 31"):
        metrics.lpips(*(x[..., :30] for x in pair))


def test_lpips_names_the_file_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    metrics.lpips_network.cache_clear()
    with pytest.raises(InputError, match=r"vgg16-397923af\.pth.*no network.*checkpoints"):
        metrics.lpips_network("vgg")


def test_lpips_with_local_weights(tmp_path, monkeypatch, pair):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    torch.manual_seed(1)
    (tmp_path / "checkpoints").mkdir()
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    metrics.lpips_network.cache_clear()
    prediction, target = (torch.nn.functional.interpolate(x, (64, 64)) for x in pair)
    near, far = (
        metrics.lpips(target + 0.01, target, backbone="squeeze"),
        metrics.lpips(prediction, target, backbone="squeeze"),
    )
    assert (near < far).all() and (metrics.lpips(target, target, backbone="squeeze").abs() < 1e-6).all()
    mask = torch.zeros(2, 1, 64, 64)
    assert (metrics.lpips(prediction, target, mask, backbone="squeeze").abs() < 1e-6).all()
    moved = prediction.clone().requires_grad_()
    metrics.lpips(moved, target, backbone="squeeze").sum().backward()
    assert np.isfinite(moved.grad).all() and moved.grad.abs().max() > 0
    metrics.lpips_network.cache_clear()
