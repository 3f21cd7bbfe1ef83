"""The USDZ as OpenUSD's own validators read it."""

import zipfile

import numpy as np
import pytest
import torch
from eyeball_relight import assets, usdz
from recon4d import InputError


def test_openusd_finds_nothing_wrong(tmp_path):
    from pxr import Usd, UsdGeom, UsdShade, UsdValidation

    asset = {}
    for part, centre, radius in (("face", [0.0, 0.0, 0.0], 0.1), ("left", [0.03, 0.02, 0.09], 0.02)):
        vertices, normals, faces, vt = assets.sphere(torch.tensor(centre), radius, 16)
        maps = [torch.full((8, 8, c), value) for c, value in ((3, 0.4), (1, 0.5), (1, 0.6))]
        asset[part] = assets.Surface(vertices, normals, faces, vt, faces, *maps)
    path = tmp_path / "asset é.usdz"
    usdz.write(path, asset)
    stage = Usd.Stage.Open(str(path))
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    found = UsdValidation.ValidationContext(validators).Validate(stage)
    assert len(validators) > 10 and not [error.GetMessage() for error in found]
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/asset/left"))
    points = np.array(mesh.GetPointsAttr().Get())
    np.testing.assert_allclose((points.min(0) + points.max(0)) / 2, [0.03, 0.02, 0.09], atol=1e-4)
    assert len(mesh.GetFaceVertexCountsAttr().Get()) == len(asset["left"].faces)
    shader = UsdShade.Shader(stage.GetPrimAtPath("/asset/materials/face/surface"))
    assert shader.GetInput("ior").Get() == pytest.approx(1.5, abs=1e-4)  # F0 = 0.04
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert sum(name.endswith(".png") for name in names) == 4 and names[0].endswith(".usdc")
        assert all(item.compress_type == zipfile.ZIP_STORED for item in archive.infolist())


def test_without_openusd(tmp_path, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(usdz.importlib, "import_module", absent)
    with pytest.raises(InputError, match=r"install eyeball-relight\[usdz\]"):
        usdz.write(tmp_path / "asset.usdz", {})
    assert not list(tmp_path.iterdir())
