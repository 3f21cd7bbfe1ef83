"""USDZ of an asset, which phones open: one mesh per surface with a UsdPreviewSurface of colour and roughness."""

import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from recon4d import InputError
from recon4d.color import srgb_from_linear
from recon4d.files import atomic_path
from recon4d.images import write_png
from torch import Tensor

from eyeball_relight.assets import Asset, Surface
from eyeball_relight.gltf import split_vertices


def modules() -> tuple[Any, ...]:
    """The parts of OpenUSD that are needed, an optional extra. Raises InputError where it is not installed."""
    try:
        return tuple(
            importlib.import_module(f"pxr.{name}") for name in ("Gf", "Sdf", "Usd", "UsdGeom", "UsdShade", "Vt")
        )
    except ImportError as error:
        raise InputError("--usdz needs usd-core; install eyeball-relight[usdz], or leave --usdz away") from error


def write(path: Path, asset: Asset) -> None:
    """Write an asset, whose unit is the metre and whose y axis is up, as USDZ.

    The specular map becomes one index of refraction per surface, that of its mean: UsdPreviewSurface has a map for it
    only in a workflow that phones do not draw. F0 = 0.08 specular = ((n - 1) / (n + 1))^2.

    Raises InputError where usd-core is not installed.
    """
    _, Sdf, Usd, UsdGeom, _, _ = modules()
    utilities = importlib.import_module("pxr.UsdUtils")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        stage = Usd.Stage.CreateNew(str(folder / "asset.usdc"))
        UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
        UsdGeom.SetStageMetersPerUnit(stage, 1.0)
        root = UsdGeom.Xform.Define(stage, "/asset")
        stage.SetDefaultPrim(root.GetPrim())
        for part, surface in asset.items():
            _mesh(stage, folder, part, surface)
        stage.GetRootLayer().Save()
        with atomic_path(path) as out:
            packed = folder / "asset.usdz"
            if not utilities.CreateNewUsdzPackage(Sdf.AssetPath(str(folder / "asset.usdc")), str(packed)):
                raise RuntimeError("OpenUSD could not pack the asset")
            out.write_bytes(packed.read_bytes())


def _mesh(stage: Any, folder: Path, part: str, surface: Surface) -> None:
    Gf, Sdf, _, UsdGeom, UsdShade, Vt = modules()
    position, normal, uv, triangles = split_vertices(surface)
    mesh = UsdGeom.Mesh.Define(stage, f"/asset/{part}")
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    mesh.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(position, np.float32)))
    mesh.CreateExtentAttr([Gf.Vec3f(*map(float, edge)) for edge in (position.min(0), position.max(0))])
    mesh.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(normal, np.float32)))
    mesh.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    mesh.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(triangles), 3, np.int32)))
    mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(triangles.ravel().astype(np.int32)))
    up = (uv * [1, -1] + [0, 1]).astype(np.float32)  # v is up here
    st = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.vertex)
    st.Set(Vt.Vec2fArray.FromNumpy(np.ascontiguousarray(up)))

    place = f"/asset/materials/{part}"
    material = UsdShade.Material.Define(stage, place)
    shader = UsdShade.Shader.Define(stage, f"{place}/surface")
    shader.CreateIdAttr("UsdPreviewSurface")
    shader.CreateInput("metallic", Sdf.ValueTypeNames.Float).Set(0.0)
    root = float((0.08 * surface.specular.mean()).clamp(0, 0.99).sqrt())
    shader.CreateInput("ior", Sdf.ValueTypeNames.Float).Set((1 + root) / (1 - root))
    reader = UsdShade.Shader.Define(stage, f"{place}/st")
    reader.CreateIdAttr("UsdPrimvarReader_float2")
    reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("st")
    coordinates = reader.CreateOutput("result", Sdf.ValueTypeNames.Float2)

    def texture(name: str, values: Tensor, space: str, channel: str, kind: Any) -> Any:
        file = f"{part}_{name}.png"
        pixels = (values.clamp(0, 1).numpy() * 255 + 0.5).astype(np.uint8)
        write_png(folder / file, pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        sampler = UsdShade.Shader.Define(stage, f"{place}/{name}")
        sampler.CreateIdAttr("UsdUVTexture")
        sampler.CreateInput("file", Sdf.ValueTypeNames.Asset).Set(Sdf.AssetPath(f"./{file}"))
        sampler.CreateInput("sourceColorSpace", Sdf.ValueTypeNames.Token).Set(space)
        sampler.CreateInput("wrapS", Sdf.ValueTypeNames.Token).Set("repeat")
        sampler.CreateInput("wrapT", Sdf.ValueTypeNames.Token).Set("clamp")
        sampler.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(coordinates)
        return sampler.CreateOutput(channel, kind)

    colour = texture("colour", srgb_from_linear(surface.diffuse), "sRGB", "rgb", Sdf.ValueTypeNames.Float3)
    shader.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f).ConnectToSource(colour)
    rough = texture("roughness", surface.roughness, "raw", "r", Sdf.ValueTypeNames.Float)
    shader.CreateInput("roughness", Sdf.ValueTypeNames.Float).ConnectToSource(rough)
    material.CreateSurfaceOutput().ConnectToSource(shader.ConnectableAPI(), "surface")
    UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)
