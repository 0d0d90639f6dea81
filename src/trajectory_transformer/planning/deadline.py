"""Planning within a time limit: a deadline that shortens or narrows a search."""

import time
from collections.abc import Callable


class Deadline:
    """The time limit of a search: decides before each transition whether to plan it, and with how many beams.

    The duration of a transition is estimated from the plans made so far. The first measurement of its kind is ignored,
    because it may include compilation, so the first plans may be late. A search is reduced in this order:

    1. The horizon: the search ends before a transition that is not expected to finish in time.
    2. The beam width, if not even the first transition is expected to finish in time: half of it, a quarter, …, one
       beam. The first transition is always planned.

    ``milliseconds``, above 0, are for one search in all environments together; ``clock`` returns monotonic seconds.
    """

    def __init__(self, milliseconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._seconds, self._clock = milliseconds / 1000, clock
        self._expected: dict[tuple[int, int], float] = {}
        self._tried: set[tuple[int, int]] = set()
        self._end = self._mark = 0.0

    def start(self, share: float = 1.0) -> None:
        """Begin a search that may take this share of the time."""
        self._mark = self._clock()
        self._end = self._mark + share * self._seconds

    def width(self, transition: int, environments: int, widest: int) -> int:
        """Number of beams, at most ``widest``, for the transition with this index, from 0; 0: end the search."""
        left, width = self._end - self._clock(), widest
        while self._expect(transition, environments * width) > left:
            if transition > 0:
                return 0
            if width == 1:
                break
            width //= 2
        return width

    def planned(self, transition: int, environments: int, width: int) -> None:
        """Record the time that a transition took, since the one before or since the start."""
        now, key = self._clock(), (transition, environments * width)
        taken, expected = now - self._mark, self._expected.get(key)
        self._mark = now
        if key in self._tried:
            # Adopt a longer time at once, a shorter one gradually.
            self._expected[key] = taken if expected is None else max(taken, 0.8 * expected + 0.2 * taken)
        self._tried.add(key)

    @property
    def late(self) -> bool:
        """True if the last transition was finished after the deadline."""
        return self._mark > self._end

    def _expect(self, transition: int, rows: int) -> float:
        """Expected seconds of a transition, from its own measurements, or from other widths or the transition before.

        The estimate decreases by 1% at each call, so that a transition skipped because it was slow once is tried again.
        """
        key = (transition, rows)
        if key not in self._expected:
            others = [known for known in self._expected if known[0] == transition]
            others = others or [known for known in self._expected if known[0] == transition - 1]
            if not others:
                return 0.0
            nearest = min(others, key=lambda known: abs(known[1] - rows))
            self._expected[key] = self._expected[nearest] * rows / nearest[1]
        expected = self._expected[key]
        self._expected[key] *= 0.99
        return expected
