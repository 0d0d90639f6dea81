"""Frames of an episode with the current plan: its predicted states and predicted return.

Drawing does not affect the episode: simulations and plans are only read.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..configuration import PlannerConfig
from ..environments.batch import EnvironmentBatch
from ..environments.mujoco_state import hidden_positions, states_of
from ..planning.agent import Agent
from ..planning.plan import Plan
from .ghosts import Color, GhostScene, find_renderer
from .maze_plot import read_walls
from .records import ActingAgent

GHOSTS = 4  # number of predicted states drawn as bodies, including the last one
BEAMS = 16  # number of sequences of the search that are drawn: their final states, or lines in a maze
BLUE_BODY: Color = (0.0, 0.45, 0.70, 0.35)  # of the plan
BLUE_LINE: Color = (0.0, 0.45, 0.70, 0.9)
GREY_BODY: Color = (0.35, 0.35, 0.35, 0.1)  # of other sequences
GREY_LINE: Color = (0.35, 0.35, 0.35, 0.4)
_LINE = 0.004  # radius, as a share of the model's extent
_WIDE = 400  # minimum width in pixels for a caption in one line
_LETTERS, _MARGIN = 13, 5  # pixels


@dataclass(frozen=True)
class Foresight:
    """A plan to be drawn, as observations; the first is that of the state in which it was made."""

    chosen: np.ndarray  # (states, observation_dim)
    beams: np.ndarray  # (beams, states, observation_dim) of other sequences that the search kept


class BodyView:
    """View that draws predicted states as ghosts of an environment's bodies; needs observations of the whole state."""

    def __init__(self, scene: GhostScene, simulation: Any, hidden: int) -> None:
        self._scene, self._simulation, self._hidden = scene, simulation, hidden
        self._radius = _LINE * float(simulation.model.stat.extent)

    def origin(self) -> np.ndarray:
        """Return the current position's coordinates that observations lack, for a later :meth:`add`."""
        return self._simulation.data.qpos[: self._hidden].copy()

    def add(self, plan: Foresight, origin: np.ndarray, age: int) -> None:
        """Add a plan made ``age`` steps ago, at ``origin``, to the next picture."""
        positions = self.positions(plan.chosen, origin)[age:]
        ahead = positions[1:]
        for beam in plan.beams if ahead else ():
            self._scene.add_body(self.positions(beam, origin)[-1], GREY_BODY)
        self._scene.add_line(np.array([self._scene.torso(position) for position in positions]), self._radius, BLUE_LINE)
        shown = sorted({round(place) for place in np.linspace(len(ahead) - 1, 0, GHOSTS + 1)[:-1]})
        for index in shown if ahead else ():
            self._scene.add_body(ahead[index], BLUE_BODY)

    def positions(self, observations: np.ndarray, origin: np.ndarray) -> list[np.ndarray]:
        """Return the (nq,) positions of observations (states, observation_dim), the first of which is at ``origin``."""
        moved = np.zeros(self._simulation.model.nq)
        moved[: self._hidden] = origin
        return [position + moved for position, _ in states_of(observations, self._hidden, self._simulation)]


class MazeView:
    """View that draws predicted positions in a maze as a path on its floor, with a dot for each state."""

    def __init__(self, scene: GhostScene, columns: slice, side: float) -> None:
        self._scene, self._columns, self._side = scene, columns, side

    def origin(self) -> np.ndarray:
        """Return an empty array, because observations contain the position in the maze."""
        return np.zeros(0)

    def add(self, plan: Foresight, origin: np.ndarray, age: int) -> None:
        """Add a plan to the next picture, as :meth:`BodyView.add`."""
        for beam in plan.beams:
            self._scene.add_line(self._places(beam[age:]), 0.015 * self._side, GREY_LINE)
        places = self._places(plan.chosen[age:])
        self._scene.add_line(places, 0.03 * self._side, BLUE_LINE)
        for place in places[1:]:
            self._scene.add_dot(place, 0.06 * self._side, BLUE_LINE)

    def _places(self, observations: np.ndarray) -> np.ndarray:
        seen = observations[:, self._columns]
        return np.column_stack([seen, np.full(len(seen), 0.1 * self._side)]).astype(np.float64)


class PlanFilm:
    """Renders rows of a batch with their current plans, if the plan's states can be drawn from observations.

    Args:
        agent: agent that acts in ``batch``, whose plans are shown.
        batch: environments made with ``render=True``.
    """

    def __init__(self, agent: ActingAgent, batch: EnvironmentBatch) -> None:
        self._agent, self._batch = agent, batch
        self._views: dict[int, BodyView | MazeView | None] = {}
        self._made: dict[int, tuple[int, np.ndarray]] = {}  # step and origin of each row's plan

    def begin(self, row: int) -> None:
        """Prepare for a new episode in a row that has just been reset."""
        self._made.pop(row, None)
        self._views.setdefault(row, None)
        if self._views[row] is None:
            self._views[row] = self._view(row)

    def planned(self, row: int, step: int) -> None:
        """Record that a plan has just been made for the row's current state, at ``step``."""
        view = self._views[row]
        self._made[row] = step, np.zeros(0) if view is None else view.origin()

    def frame(self, row: int, step: int, episode_return: float, ended: bool) -> np.ndarray:
        """Return a (height, width, 3) uint8 picture of the row, with its plan unless the episode has ``ended``.

        Raises:
            EnvironmentFailure: the environment cannot render.
        """
        words = [f"step {step}", f"return so far {episode_return:.1f}", ""]
        if row in self._made and not ended:
            (made, origin), view = self._made[row], self._views[row]
            words[2] = self._worth(row, step - made)
            if view is not None and (plan := self._foresight(row)) is not None:
                view.add(plan, origin, step - made)
        return captioned(np.asarray(self._batch.render(row)), words)

    def _view(self, row: int) -> BodyView | MazeView | None:
        environment = self._batch.environments[row]
        simulation, observation = environment.unwrapped, self._batch.observations[row]
        renderer = find_renderer(simulation)
        if renderer is None:
            return None
        hidden = hidden_positions(simulation, observation, self._batch.spec)
        if hidden is not None:
            return BodyView(GhostScene(renderer), simulation, hidden)
        walls, achieved = read_walls(environment), self._batch.achieved_goals
        if walls is None or achieved is None:
            return None
        place = achieved[row]
        for first in range(len(observation) - len(place) + 1):
            columns = slice(first, first + len(place))
            if np.allclose(observation[columns], place, atol=1e-5):
                return MazeView(GhostScene(renderer), columns, walls.side)
        return None

    def _foresight(self, row: int) -> Foresight | None:
        """Return the row's plan, or None if it does not look ahead."""
        chosen = self._agent.last_plan.observations[row]
        chosen = chosen[np.isfinite(chosen).all(axis=1)]
        if len(chosen) < 2:
            return None
        beams = self._agent.beams(row, BEAMS)[1:] if isinstance(self._agent, Agent) else chosen[None, :0]
        if len(beams) == 0:
            return Foresight(chosen, chosen[None][:0])
        return Foresight(chosen, np.stack([np.concatenate([chosen[:1], beam]) for beam in beams]))

    def _worth(self, row: int, age: int) -> str:
        """Return a caption with the return that the row's plan predicts; empty if it predicts none."""
        plan, settings = self._agent.last_plan, self._agent.settings
        if not (isinstance(plan, Plan) and isinstance(settings, PlannerConfig) and settings.discount is not None):
            return ""
        value = float(plan.predicted_return(settings.discount)[row])
        if not np.isfinite(value):
            return ""
        since = f" {age} steps old" if age > 1 else " 1 step old" if age else ""
        return f"plan{since}: {value:.1f} to come"


def captioned(picture: np.ndarray, words: list[str]) -> np.ndarray:
    """Return a (height, width, 3) uint8 picture with a caption below, in one line if the picture is wide."""
    height, width, _ = picture.shape
    wide = width >= _WIDE
    line = _LETTERS + _MARGIN
    strip = _MARGIN + line * (1 if wide else len(words))
    image = Image.new("RGB", (width, height + strip), "white")
    image.paste(Image.fromarray(picture.astype(np.uint8)[..., :3]))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(_LETTERS)
    for index, text in enumerate(words):
        x, y = ((_MARGIN, 0.17 * width, 0.5 * width)[index], 0) if wide else (_MARGIN, index * line)
        draw.text((x, height + _MARGIN // 2 + y), text, fill="black", font=font)
    return np.asarray(image)
