"""Draw the README's animation as a GIF: plans being made and followed in Hopper.

    python -m tools.plan_animation RUN/checkpoints/best.ckpt docs/images/plan.gif

The simulation pauses during each search. Grey are the sequences kept after each transition, blue is the chosen plan,
which the body then follows until the next plan is made.
"""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from PIL import Image

from trajectory_transformer.environments.batch import EnvironmentBatch, make_environments
from trajectory_transformer.environments.mujoco_state import hidden_positions
from trajectory_transformer.evaluation.film import BLUE_BODY, BLUE_LINE, BodyView, captioned
from trajectory_transformer.evaluation.ghosts import Color, GhostScene, find_renderer
from trajectory_transformer.evaluation.video import mujoco_rendering_works
from trajectory_transformer.planning.agent import Agent

# Differs from the default run: a longer horizon, and more varied sequences.
PLANNER: dict[str, Any] = {
    "horizon": 15, "window": "sliding", "context": 3, "beam_width": 128, "k_obs": None, "cdf_act": 0.3,
    "plan_freq": 6, "act": "best",
}  # fmt: skip
_MUJOCO: Any = mujoco  # its stubs lack the parts written in C
WIDTH, HEIGHT, COLORS, MILLISECONDS = 600, 340, 96, 80
SKIPPED, PLANS, BEAMS = 72, 6, 24  # steps before the first plan shown, number of plans shown, and of sequences per plan
OTHERS: Color = (0.45, 0.45, 0.5, 0.07)


def main() -> None:
    """Write the animation, and print its size."""
    parser = argparse.ArgumentParser(description="Draw the README's animation.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if not mujoco_rendering_works():
        parser.error("MuJoCo cannot render here (install libegl1 or libosmesa6)")
    pictures = list(frames(Agent.from_checkpoint(asked.checkpoint, **PLANNER), asked.seed))
    asked.file.parent.mkdir(parents=True, exist_ok=True)
    asked.file.write_bytes(gif(pictures))
    print(f"{asked.file}: {len(pictures)} frames, {asked.file.stat().st_size / 1e6:.2f} MB")


def frames(agent: Agent, seed: int) -> Iterator[np.ndarray]:
    """Yield (height, width, 3) uint8 pictures of plans being made and followed."""
    with make_environments(agent.environment, 1, render=True) as batch:
        simulation: Any = batch.environments[0].unwrapped
        soften(simulation)
        batch.reset(0, seed)
        agent.reset(1, [seed])
        hidden = hidden_positions(simulation, batch.observations[0], agent.environment)
        assert hidden is not None, "an observation must contain the whole state, as Hopper's does"
        scene, renderer = GhostScene(find_renderer(simulation)), find_renderer(simulation)
        assert renderer is not None
        renderer.viewer.scn.flags[_MUJOCO.mjtRndFlag.mjRND_SHADOW] = 0  # shadows would leave artefacts on the horizon
        view, seen, shown, earned, step = BodyView(scene, simulation, hidden), 0, False, 0.0, 0
        origin, chosen, made = np.zeros(hidden), np.zeros((0, 0)), 0
        while seen <= PLANS:
            action = agent.act(batch.observations)
            if agent.planned[0]:
                shown = step >= SKIPPED
                seen += shown
                origin, chosen, made = view.origin(), agent.last_plan.observations[0], step
                if shown and seen <= PLANS:
                    yield from making(agent, batch, scene, view, chosen, origin, earned, step)
            elif shown:
                follow(scene, view, chosen, origin, step - made)
                yield captioned(batch.render(0), [f"step {step}", f"return so far {earned:.0f}", "following the plan"])
            result = batch.step(action, np.array([True]))
            earned, step = earned + float(result.rewards[0]), step + 1
            agent.observe(result.actions, result.rewards, result.terminated | result.truncated)


def kept(agent: Agent, transitions: int) -> np.ndarray:
    """Return about ``BEAMS`` different sequences of those kept after ``transitions``."""
    beams = agent.beams(0, agent.settings.beam_width, transitions)
    _, first = np.unique(beams.reshape(len(beams), -1), axis=0, return_index=True)
    different = np.sort(first)
    return beams[different[:: max(1, len(different) // BEAMS)]]


def making(
    agent: Agent, batch: EnvironmentBatch, scene: GhostScene, view: BodyView, chosen: np.ndarray, origin: np.ndarray,
    earned: float, step: int,
) -> Iterator[np.ndarray]:  # fmt: skip
    """Yield pictures of the sequences kept after more and more transitions, then of the chosen plan."""
    horizon = len(chosen)
    for transitions in (*range(3, horizon, 2), horizon, horizon):
        for beam in kept(agent, transitions):
            way = view.positions(np.concatenate([chosen[:1], beam]), origin)
            scene.add_body(way[-1], OTHERS)
            scene.add_line(np.array([scene.torso(position) for position in way]), 0.004, (0.3, 0.3, 0.3, 0.5))
        words = f"planning {transitions - 1} steps ahead"
        yield captioned(batch.render(0), [f"step {step}", f"return so far {earned:.0f}", words])
    for _ in range(2):
        follow(scene, view, chosen, origin, 0)
        yield captioned(batch.render(0), [f"step {step}", f"return so far {earned:.0f}", "the best plan"])


def follow(scene: GhostScene, view: BodyView, chosen: np.ndarray, origin: np.ndarray, age: int) -> None:
    """Add the remaining part of the plan to the next picture."""
    ahead = view.positions(chosen, origin)[age:]
    scene.add_line(np.array([scene.torso(position) for position in ahead]), 0.012, BLUE_LINE)
    for position in ahead[:0:-4]:
        scene.add_body(position, BLUE_BODY)


def soften(simulation: Any) -> None:
    """Set a wide picture, a floor in soft colours, a white sky, and a near camera."""
    model, renderer = simulation.model, find_renderer(simulation)
    assert renderer is not None
    renderer.width, renderer.height = WIDTH, HEIGHT
    model.vis.global_.offwidth, model.vis.global_.offheight = WIDTH, HEIGHT
    renderer.default_cam_config = {**renderer.default_cam_config, "distance": 3.3, "elevation": -8.0}
    for texture in range(model.ntex):
        begin = model.tex_adr[texture]
        size = model.tex_height[texture] * model.tex_width[texture] * model.tex_nchannel[texture]
        texels = model.tex_data[begin : begin + size]
        if model.tex_type[texture] == _MUJOCO.mjtTexture.mjTEXTURE_SKYBOX:
            texels[:] = 255
        else:
            texels[:] = 220 + np.repeat(texels[1::3] // 12, 3)  # grey, from the green channel
    model.geom_rgba[model.geom_type == _MUJOCO.mjtGeom.mjGEOM_PLANE] = 1.0
    model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = 0.55, 0.5


def gif(pictures: list[np.ndarray]) -> bytes:
    """Encode pictures as a GIF with one palette, so that what does not move is stored once."""
    images = [Image.fromarray(picture) for picture in pictures]
    sample = Image.fromarray(np.concatenate(pictures[:: max(1, len(pictures) // 8)]))
    palette = sample.quantize(COLORS)
    reduced = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    file = io.BytesIO()
    reduced[0].save(file, "GIF", save_all=True, append_images=reduced[1:], duration=MILLISECONDS, loop=0, optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    main()
