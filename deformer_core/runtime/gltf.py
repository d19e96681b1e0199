"""Bodies as binary glTF 2.0 (Khronos Group, 2017), which viewers and 3D programs open."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deformer_core.view.overlay import PALETTE, Body
from deformer_core.view.raster import vertex_normals

COMPONENTS = {"float32": 5126, "uint16": 5123, "uint32": 5125}
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
TO_GLTF = np.array([1, -1, -1], np.float32)
"""Camera axes (x right, y down, z forward) to glTF's (x right, y up, z backward): a half turn about x."""


def encode_glb(people: Sequence[Body], faces: NDArray[np.int32]) -> bytes:
    """The people as the content of one .glb file: a node and a mesh each, metres, y up, the camera at the origin.

    people: at least one. faces: (F, 3) counter-clockwise seen from outside.
    """
    binary = _Binary()
    index = np.uint16 if faces.max() < 65535 else np.uint32
    indices = binary.add(faces.astype(index).reshape(-1), "SCALAR", ELEMENT_ARRAY_BUFFER)
    meshes: list[dict[str, Any]] = []
    nodes: list[dict[str, Any]] = []
    materials: list[dict[str, Any]] = []
    for person in people:
        position = (person.vertices * TO_GLTF).astype(np.float32)
        normal = vertex_normals(person.vertices, faces) * TO_GLTF
        normal[~normal.any(1)] = (0, 0, 1)  # unused vertices: the format wants unit length
        attributes = {
            "POSITION": binary.add(position, "VEC3", ARRAY_BUFFER),
            "NORMAL": binary.add(normal, "VEC3", ARRAY_BUFFER),
        }
        primitive = {"attributes": attributes, "indices": indices, "material": len(materials)}
        translation = (person.translation * TO_GLTF).tolist()
        nodes.append({"name": f"person {person.id}", "mesh": len(meshes), "translation": translation})
        meshes.append({"primitives": [primitive]})
        materials.append(_material(person.id))
    document = {
        "asset": {"version": "2.0", "generator": "DeFormer"},
        "scene": 0,
        "scenes": [{"nodes": list(range(len(nodes)))}],
        "nodes": nodes,
        "meshes": meshes,
        "materials": materials,
        "accessors": binary.accessors,
        "bufferViews": binary.views,
        "buffers": [{"byteLength": len(binary.data)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary.data), b"BIN\0")
    total = 12 + len(chunks) + len(binary.data)
    return struct.pack("<4sII", b"glTF", 2, total) + chunks + bytes(binary.data)


class _Binary:
    """The file's binary part with the views and accessors into it; every entry starts at a multiple of 4 bytes."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, values: NDArray, kind: str, target: int) -> int:
        """Append an array (N,) or (N, C) and return its accessor."""
        flat = np.ascontiguousarray(values).tobytes()
        component = COMPONENTS[values.dtype.name]
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(flat), "target": target}
        columns = values.reshape(len(values), -1)
        accessor = {
            "bufferView": len(self.views),
            "componentType": component,
            "count": len(values),
            "type": kind,
        }
        accessor |= {"min": columns.min(0).tolist(), "max": columns.max(0).tolist()}
        self.data += flat + bytes(-len(flat) % 4)
        self.views.append(view)
        self.accessors.append(accessor)
        return len(self.accessors) - 1


def _material(person: int) -> dict[str, Any]:
    linear = (PALETTE[person % len(PALETTE)] / 255) ** 2.2  # glTF's factors are linear, the palette is sRGB
    surface = {"baseColorFactor": [*linear.tolist(), 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.6}
    return {"pbrMetallicRoughness": surface, "doubleSided": True}
