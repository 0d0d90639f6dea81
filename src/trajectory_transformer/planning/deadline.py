"""Planning against the clock: what a deadline leaves of a search."""

import time
from collections.abc import Callable


class Deadline:
    """Decides before each transition of a search whether, and with how many beams, there is time for it.

    What a transition takes is learnt from the plans made so far. The first time of its kind is not believed: it may
    have compiled something. So the first plans may be late. A search gives way in this order:

    1. The horizon: it ends before a transition that is not expected to end in time.
    2. The width, if not even the first transition is expected to: half of it, a quarter, …, one beam. That one
       transition is always planned.

    ``milliseconds``, above 0, are for one search, in all environments together; ``clock`` gives ever growing seconds.
    """

    def __init__(self, milliseconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._seconds, self._clock = milliseconds / 1000, clock
        self._expected: dict[tuple[int, int], float] = {}
        self._tried: set[tuple[int, int]] = set()
        self._end = self._mark = 0.0

    def start(self, share: float = 1.0) -> None:
        """A search begins; it has this share of the time."""
        self._mark = self._clock()
        self._end = self._mark + share * self._seconds

    def width(self, transition: int, environments: int, widest: int) -> int:
        """Beams, at most ``widest``, to plan the transition after so many with; 0: none, the search ends here."""
        left, width = self._end - self._clock(), widest
        while self._expect(transition, environments * width) > left:
            if transition > 0:
                return 0
            if width == 1:
                break
            width //= 2
        return width

    def planned(self, transition: int, environments: int, width: int) -> None:
        """A transition was planned, in the time since the last one, or since the start."""
        now, key = self._clock(), (transition, environments * width)
        taken, expected = now - self._mark, self._expected.get(key)
        self._mark = now
        if key in self._tried:
            # Slow to forget what was slow; where there is nothing to forget, as it was.
            self._expected[key] = taken if expected is None else max(taken, 0.8 * expected + 0.2 * taken)
        self._tried.add(key)

    @property
    def late(self) -> bool:
        """True if the time was over when the last transition had been planned."""
        return self._mark > self._end

    def _expect(self, transition: int, rows: int) -> float:
        """Seconds that a transition is expected to take: as it did, or else as other widths or the one before did.

        Less whenever it is asked for, so that what is not tried because it was slow once is tried again in time.
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
