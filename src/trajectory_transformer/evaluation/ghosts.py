"""Shapes added to MuJoCo's pictures before they are rendered: translucent bodies, lines and dots."""

import itertools
from typing import Any

import mujoco
import numpy as np

Color = tuple[float, float, float, float]
"""Red, green, blue and opacity, from 0 to 1."""

_mujoco: Any = mujoco  # its stubs lack the parts written in C
_SPHERE, _CAPSULE = int(_mujoco.mjtGeom.mjGEOM_SPHERE), int(_mujoco.mjtGeom.mjGEOM_CAPSULE)
_SOLIDS = range(_SPHERE, int(_mujoco.mjtGeom.mjGEOM_BOX) + 1)  # spheres, capsules, ellipsoids, cylinders and boxes
_VISIBLE_GROUPS = 3  # MuJoCo draws the geoms of the first three groups
_MOST_SHAPES = 10_000


def find_renderer(simulation: Any) -> Any | None:
    """Return the ``MujocoRenderer`` of an environment without wrappers, or of a body within it; None if absent."""
    bodies = (getattr(simulation, name, None) for name in ("point_env", "ant_env", "robot_env"))
    for owner in (simulation, *bodies):
        renderer = getattr(owner, "mujoco_renderer", None)
        if hasattr(renderer, "viewer") and hasattr(renderer, "max_geom"):
            return renderer
    return None


class GhostScene:
    """Additional shapes for the next picture of a ``MujocoRenderer``; the simulation is only read."""

    def __init__(self, renderer: Any) -> None:
        self._renderer: Any = renderer
        self._model = renderer.model
        self._data = _mujoco.MjData(self._model)  # a copy, so that ghosts do not move the simulation's bodies
        self._geoms = [
            geom
            for geom in range(self._model.ngeom)
            if self._model.geom_bodyid[geom] > 0
            and int(self._model.geom_type[geom]) in _SOLIDS
            and self._model.geom_group[geom] < _VISIBLE_GROUPS
        ]
        if renderer.viewer is None:
            renderer.max_geom = max(renderer.max_geom, _MOST_SHAPES)  # limit of the viewer that is made below
            renderer.render("rgb_array")
        # Reflections of ghosts are confusing, and take as long to render as the rest of the picture.
        self._renderer.viewer.scn.flags[_mujoco.mjtRndFlag.mjRND_REFLECTION] = 0

    def add_body(self, position: np.ndarray, color: Color) -> None:
        """Add all moving bodies at the (nq,) position, in one colour."""
        self._move(position)
        for geom in self._geoms:
            size, place, turned = self._model.geom_size[geom], self._data.geom_xpos[geom], self._data.geom_xmat[geom]
            self._add(int(self._model.geom_type[geom]), size, place, turned, color)

    def torso(self, position: np.ndarray) -> np.ndarray:
        """Return the (3,) place of the root body at the (nq,) position."""
        self._move(position)
        return self._data.xpos[1].copy()

    def add_line(self, points: np.ndarray, radius: float, color: Color) -> None:
        """Add a line through (points, 3)."""
        for start, end in itertools.pairwise(points):
            length = float(np.linalg.norm(end - start))
            if length > 1e-6:
                quaternion, turned = np.zeros(4), np.zeros(9)
                _mujoco.mju_quatZ2Vec(quaternion, (end - start) / length)
                _mujoco.mju_quat2Mat(turned, quaternion)
                size = np.array([radius, length / 2, 0.0])
                self._add(_CAPSULE, size, (start + end) / 2, turned, color)

    def add_dot(self, place: np.ndarray, radius: float, color: Color) -> None:
        """Add a ball at a (3,) place."""
        self._add(_SPHERE, np.full(3, radius), place, np.eye(3).ravel(), color)

    def _move(self, position: np.ndarray) -> None:
        self._data.qpos[:] = position
        _mujoco.mj_kinematics(self._model, self._data)

    def _add(self, kind: int, size: np.ndarray, place: np.ndarray, turned: np.ndarray, color: Color) -> None:
        viewer = self._renderer.viewer  # it drops its markers after each picture
        shape = {"size": size.copy(), "pos": place.copy(), "mat": turned.copy(), "rgba": np.array(color, np.float32)}
        viewer.add_marker(type=kind, **shape)
