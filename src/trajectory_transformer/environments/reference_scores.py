"""Returns that count as 0 and 100 % when scores are normalised."""

import re
from collections.abc import Mapping

# (minimum, maximum) of D4RL's infos.py, by the name of the environment without its version
D4RL_REFERENCE_SCORES: dict[str, tuple[float, float]] = {
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "Ant": (-325.6, 3879.7),
    "AdroitHandPen": (96.262799, 3076.8331),
    "AdroitHandDoor": (-56.512833, 2880.5693),
    "AdroitHandHammer": (-274.856578, 12794.1348),
    "AdroitHandRelocate": (-6.425911, 4233.8778),
    "FrankaKitchen": (0.0, 4.0),
    "MiniGrid-FourRooms": (0.01442, 2.89685),
}
# D4RL's AntMaze scores assume episodes that end at the goal. Its Maze2D differs from PointMaze, which has no scores.
D4RL_ANTMAZE = (0.0, 1.0)


def reference_scores(metadata: Mapping[str, object], env_id: str) -> tuple[tuple[float, float] | None, str]:
    """Return the (minimum, maximum) return for normalised scores, or None, and their origin.

    They are the metadata's ``ref_min_score`` and ``ref_max_score`` ("dataset"), else D4RL's for the environment
    ("d4rl"), else None ("none").
    """
    minimum, maximum = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if isinstance(minimum, (int, float)) and isinstance(maximum, (int, float)) and minimum < maximum:
        return (float(minimum), float(maximum)), "dataset"
    name = re.sub(r"-v\d+$", "", env_id.rpartition("/")[2])
    constants = D4RL_ANTMAZE if name.startswith("AntMaze_") else D4RL_REFERENCE_SCORES.get(name)
    return constants, "none" if constants is None else "d4rl"
