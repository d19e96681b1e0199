"""Draws posed bodies with OpenGL, off screen, through EGL: a GPU where there is one, else Mesa's software.

Every image is drawn at twice its size and averaged down: that costs less than multisampling in software and
gives exact coverage for blending.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deformer_core.data.synthetic.appearance import Appearance
from deformer_core.data.synthetic.clothes import Garment
from deformer_core.data.synthetic.garments import DressedBody
from deformer_core.data.synthetic.shaders import FRAGMENT, VERTEX
from deformer_core.data.synthetic.wardrobe import Worn
from deformer_core.errors import InputError

FloatArray = NDArray[np.float32]

_PIECES = {"body": 0, "skirt": 1, "hair": 2}
_GARMENTS = {"suit": 3, "shoes": 4, "hair": 5, "hat": 6}


@dataclass(frozen=True)
class Figure:
    """A body to draw. vertices: (V, 3) of the "dressed" level in the full camera's axes, metres."""

    vertices: FloatArray
    appearance: Appearance
    is_subject: bool
    worn: list[Worn] = field(default_factory=list)
    """Garments, their vertices in the full camera's axes."""


@dataclass(frozen=True)
class Layers:
    """What was drawn, row 0 at the top."""

    color: NDArray[np.uint8]
    """(S, S, 3) RGB, multiplied by `alpha`."""
    alpha: NDArray[np.uint8]
    """(S, S) share of the pixel that any body covers."""
    subject: NDArray[np.uint8]
    """(S, S) share that the subject covers, what stands in front of it taken away."""


class NormalField:
    """Vertex normals of a posed mesh: the sum of the area-weighted normals of its faces."""

    def __init__(self, faces: NDArray[np.int32], n_vertices: int) -> None:
        from scipy.sparse import csr_matrix

        columns = np.repeat(np.arange(len(faces)), 3)
        ones = np.ones(faces.size, np.float32)
        self._faces = faces.T.copy()
        self._gather = csr_matrix((ones, (faces.ravel(), columns)), shape=(n_vertices, len(faces)))

    def __call__(self, vertices: FloatArray) -> FloatArray:
        """(V, 3) to unit (V, 3)."""
        a, b, c = (vertices[index] for index in self._faces)
        normals = self._gather @ np.cross(b - a, c - a)
        return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


class Renderer:
    """Holds an OpenGL context: make one a process, use it in the thread that made it."""

    def __init__(self, body: DressedBody, size: int = 256, supersample: int = 2) -> None:
        self.body = body
        self.size = size
        self._context = _create_context()
        self._program = self._context.program(vertex_shader=VERTEX, fragment_shader=FRAGMENT)
        self._normals = NormalField(np.concatenate(list(body.faces.values())), len(body.level.vertices))
        self._make_buffers()
        self._make_target(size * supersample)
        self._set_landmarks()

    def draw(self, figures: list[Figure], box: FloatArray, light: dict[str, Any], flat: bool = False) -> Layers:
        """Draw bodies into the window of a crop.

        box: (3,) the crop's, see `geometry.camera`; light: uniforms; flat: plain white, to check labels with.
        """
        program = self._program
        self._target.use()
        self._target.clear(0.0, 0.0, 0.0, 0.0)
        self._context.enable_only(self._moderngl.DEPTH_TEST)
        program["crop_box"].value = tuple(float(value) for value in box)
        program["flat_color"].value = float(flat)
        self._set(light)
        for figure in figures:
            self._draw_figure(figure)
        return self._read()

    def _draw_figure(self, figure: Figure) -> None:
        look = figure.appearance
        _write(self._points, self._normals, figure.vertices, look.offsets[:, None])
        self._set(look.uniforms)
        self._program["is_subject"].value = float(figure.is_subject)
        for piece in look.pieces:
            # The body is closed, its inside is never seen; the loose pieces are seen from both sides.
            flags = self._moderngl.DEPTH_TEST | (self._moderngl.CULL_FACE if piece == "body" else 0)
            self._context.enable_only(flags)
            self._program["piece"].value = _PIECES[piece]
            if piece == "body" and figure.worn:
                self._draw_uncovered(figure.worn)
            else:
                self._arrays[piece].render()
        for worn in figure.worn:
            self._draw_garment(worn)

    def _draw_uncovered(self, worn: list[Worn]) -> None:
        """The body without the faces that garments hide."""
        hidden = np.logical_or.reduce([one.garment.hides for one in worn])
        faces = self.body.faces["body"]
        faces = faces[~hidden[faces].all(1)]
        self._body_faces.write(faces.tobytes())
        self._uncovered.render(vertices=faces.size)

    def _draw_garment(self, worn: Worn) -> None:
        garment = worn.garment
        if garment.name not in self._garments:
            self._garments[garment.name] = self._make_garment(garment)
        normals, points, array = self._garments[garment.name]
        _write(points, normals, worn.vertices, worn.lift)
        self._context.enable_only(self._moderngl.DEPTH_TEST)
        self._program["piece"].value = _GARMENTS[garment.kind]
        array.render()

    def _make_garment(self, garment: Garment) -> tuple[NormalField, Any, Any]:
        level = garment.level
        points, content = self._content(np.concatenate([level.vertices, garment.side[:, None]], 1))
        array = self._context.vertex_array(self._program, content, self._context.buffer(level.faces.tobytes()))
        return NormalField(level.faces, len(level.vertices)), points, array

    def _set(self, uniforms: dict[str, Any]) -> None:
        for name, value in uniforms.items():
            self._program[name].value = value

    def _make_buffers(self) -> None:
        self._points, content = self._content(np.concatenate([self.body.level.vertices, self.body.arm[:, None]], 1))
        self._arrays = {
            piece: self._context.vertex_array(self._program, content, self._context.buffer(faces.tobytes()))
            for piece, faces in self.body.faces.items()
        }
        self._garments: dict[str, tuple[NormalField, Any, Any]] = {}
        self._body_faces = self._context.buffer(reserve=self.body.faces["body"].nbytes, dynamic=True)
        self._uncovered = self._context.vertex_array(self._program, content, self._body_faces)

    def _content(self, rest: FloatArray) -> tuple[Any, Any]:
        """A buffer for posed places and normals, and what a vertex array is made of. rest: (V, 4) place, "arm"."""
        points = self._context.buffer(reserve=len(rest) * 24, dynamic=True)
        static = self._context.buffer(rest.astype(np.float32).tobytes())
        return points, [(points, "3f 3f", "in_position", "in_normal"), (static, "3f 1f", "in_rest", "in_arm")]

    def _make_target(self, side: int) -> None:
        color = self._context.renderbuffer((side, side), 4)
        subject = self._context.renderbuffer((side, side), 1)
        depth = self._context.depth_renderbuffer((side, side))
        self._target = self._context.framebuffer([color, subject], depth)
        # Our y points down where OpenGL's points up: the first row read is the top one, and faces that are
        # counter-clockwise from outside turn clockwise for OpenGL.
        self._context.front_face = "cw"

    def _set_landmarks(self) -> None:
        at = self.body.landmarks
        sole_y = float(self.body.level.vertices[: self.body.n_body, 1].max()) - 0.02
        places = {"eye_at": at.eye, "ear_at": at.ear, "nose_at": at.nose, "neck_at": at.neck}
        self._set({name: tuple(float(c) for c in place) for name, place in places.items()} | {"sole_y": sole_y})

    def _read(self) -> Layers:
        import cv2

        side = self._target.size[0]
        color: Any = np.frombuffer(self._target.read(components=4, attachment=0), np.uint8).reshape(side, side, 4)
        subject: Any = np.frombuffer(self._target.read(components=1, attachment=1), np.uint8).reshape(side, side)
        if side != self.size:
            color = cv2.resize(color, (self.size, self.size), interpolation=cv2.INTER_AREA)
            subject = cv2.resize(subject, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return Layers(color[..., :3], color[..., 3], subject)

    @property
    def _moderngl(self) -> Any:
        import moderngl

        return moderngl


def _write(points: Any, normals: NormalField, vertices: FloatArray, offsets: FloatArray | float) -> None:
    """Vertices moved along their normals, and the normals they then have. offsets: metres, (V, 1) or one for all."""
    vertices = vertices + offsets * normals(vertices)
    points.write(np.concatenate([vertices, normals(vertices)], 1).astype(np.float32).tobytes())


def _create_context() -> Any:
    # Mesa's software rasteriser would start a thread a core in each of our processes; it needs none.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    try:
        import moderngl
    except ImportError as error:
        raise InputError("Rendering needs moderngl: pip install 'deformer[train]'.") from error
    try:
        options: dict[str, Any] = {"standalone": True, "backend": "egl", "require": 330}
        return moderngl.create_context(**options)
    except Exception as error:  # moderngl raises bare Exceptions here
        raise InputError(
            f"No off-screen OpenGL 3.3 ({error}): apt install libegl1 libegl-mesa0 libgl1-mesa-dri."
        ) from error
