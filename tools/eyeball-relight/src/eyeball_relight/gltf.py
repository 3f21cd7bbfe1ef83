"""glTF 2.0 binaries of an asset: one mesh per surface, PBR materials that any viewer reads."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from recon4d import InputError
from recon4d.color import srgb_from_linear
from recon4d.files import parse_json, write_bytes
from recon4d.images import encode

from eyeball_relight.assets import Asset, Surface

FLOAT, UNSIGNED = 5126, 5125  # component types
VERTICES, INDICES = 34962, 34963  # targets of buffer views
MAGIC, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942


def split_vertices(surface: Surface) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Positions, normals, texture coordinates (v down) and triangles with one index for all, as glTF wants."""
    pairs = np.stack([surface.faces.numpy().ravel(), surface.ft.numpy().ravel()], 1)
    unique, index = np.unique(pairs, axis=0, return_inverse=True)
    uv = surface.vt.numpy()[unique[:, 1]] * np.array([1, -1], np.float32) + np.array([0, 1], np.float32)
    normals = surface.normals.numpy()[unique[:, 0]]
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return surface.vertices.numpy()[unique[:, 0]], normals, uv, index.reshape(-1, 3).astype(np.uint32)


def write(path: Path, asset: Asset) -> None:
    """Write an asset as GLB.

    Base colours are sRGB, roughness is the green channel of the metallic-roughness texture, and the specular map,
    whose F0 is 0.08 times its value, goes into KHR_materials_specular, whose F0 is 0.04 times its texture's alpha
    times a colour factor of 2.
    """
    binary = bytearray()
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "eyeball-relight"},
        "extensionsUsed": ["KHR_materials_specular"],
        "scene": 0,
        "scenes": [{"nodes": list(range(len(asset)))}],
        "nodes": [{"name": part, "mesh": i} for i, part in enumerate(asset)],
        "meshes": [],
        "materials": [],
        "samplers": [{"magFilter": 9729, "minFilter": 9987, "wrapS": 10497, "wrapT": 33071}],
        "textures": [],
        "images": [],
    }

    def view(data: bytes, **more: int) -> int:
        binary.extend(b"\0" * (-len(binary) % 4))
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(data), **more})
        binary.extend(data)
        return len(views) - 1

    def accessor(array: np.ndarray, kind: str, target: int) -> int:
        array = np.ascontiguousarray(array)
        component = FLOAT if array.dtype == np.float32 else UNSIGNED
        entry = {"bufferView": view(array.tobytes(), target=target), "componentType": component, "type": kind}
        entry["count"] = array.size if kind == "SCALAR" else len(array)
        if target == VERTICES and kind == "VEC3":
            entry |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        accessors.append(entry)
        return len(accessors) - 1

    def texture(pixels: np.ndarray, name: str) -> dict[str, Any]:
        png = encode(".png", (pixels * 255 + 0.5).astype(np.uint8))
        document["images"].append({"name": name, "bufferView": view(png), "mimeType": "image/png"})
        document["textures"].append({"sampler": 0, "source": len(document["images"]) - 1})
        return {"index": len(document["textures"]) - 1}

    for part, surface in asset.items():
        position, normal, uv, triangles = split_vertices(surface)
        attributes = {
            "POSITION": accessor(position, "VEC3", VERTICES),
            "NORMAL": accessor(normal, "VEC3", VERTICES),
            "TEXCOORD_0": accessor(uv, "VEC2", VERTICES),
        }
        document["meshes"].append(
            {
                "name": part,
                "primitives": [
                    {
                        "attributes": attributes,
                        "indices": accessor(triangles.ravel(), "SCALAR", INDICES),
                        "material": len(document["materials"]),
                    }
                ],
            }
        )
        rough = surface.roughness.numpy()
        zero, one = np.zeros_like(rough), np.ones_like(rough)
        colour = srgb_from_linear(surface.diffuse).numpy()
        sheen = np.concatenate([one, one, one, surface.specular.numpy()], -1)
        document["materials"].append(
            {
                "name": part,
                "pbrMetallicRoughness": {
                    "baseColorTexture": texture(colour, f"{part} base colour"),
                    "metallicRoughnessTexture": texture(np.concatenate([zero, rough, zero], -1), f"{part} roughness"),
                    "metallicFactor": 0.0,
                },
                "extensions": {
                    "KHR_materials_specular": {
                        "specularTexture": texture(sheen, f"{part} specular"),
                        "specularColorFactor": [2.0, 2.0, 2.0],
                    }
                },
            }
        )
    binary.extend(b"\0" * (-len(binary) % 4))
    document |= {"bufferViews": views, "accessors": accessors, "buffers": [{"byteLength": len(binary)}]}
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    total = 12 + 8 + len(text) + 8 + len(binary)
    header = struct.pack("<III", MAGIC, 2, total) + struct.pack("<II", len(text), JSON_CHUNK)
    write_bytes(path, header + text + struct.pack("<II", len(binary), BINARY_CHUNK) + bytes(binary))


def read_document(path: Path) -> dict[str, Any]:
    """The JSON of a GLB. Raises InputError for a file that is not one, or is cut off."""
    data = path.read_bytes() if path.is_file() else b""
    try:
        magic, version, total = struct.unpack_from("<III", data)
        length, kind = struct.unpack_from("<II", data, 12)
        if (magic, version, kind) != (MAGIC, 2, JSON_CHUNK) or total != len(data):
            raise ValueError("wrong header or length")
        return dict(parse_json(data[20 : 20 + length], path))
    except (struct.error, ValueError, TypeError) as error:
        raise InputError(f"{path} is not a whole GLB file ({error}); export again") from error
