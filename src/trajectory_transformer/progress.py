"""Progress of long computations, as a bar in a terminal or as lines in a log."""

import threading
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from typing_extensions import override

from .files import is_first_process

PLAIN_LINE_SECONDS = 30.0  # between lines of progress where there is no terminal


class WorkProgress(Progress):
    """A progress bar on standard error with the remaining time; without a terminal, a line of text every 30 s.

    Args:
        text: Rich's template of the words beside the bar, such as "{task.completed:.0f} episodes".
        shown: False prints nothing.
    """

    def __init__(self, text: str, shown: bool = True) -> None:
        console = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn(text)
        times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
        bar = shown and console.is_terminal
        # Without a bar, auto_refresh would make Rich count iterations only at the end.
        super().__init__(*columns, *times, console=console, auto_refresh=bar, refresh_per_second=4, disable=not bar)
        self._text, self._plain = text, shown and not bar and is_first_process()
        self._ended = threading.Event()

    @override
    def start(self) -> None:
        super().start()
        self._ended = threading.Event()  # anew, because a progress may be entered again
        if self._plain:  # in a thread, because a single plan may take minutes
            threading.Thread(target=self._print_regularly, args=(self._ended,), daemon=True).start()

    @override
    def stop(self) -> None:
        self._ended.set()
        super().stop()

    def _print_regularly(self, ended: threading.Event) -> None:
        while not ended.wait(PLAIN_LINE_SECONDS):
            for task in self.tasks:
                if task.finished:
                    continue
                left = task.time_remaining  # None until there is an estimate
                words = [task.description, self._text.format(task=task), f"{_clock(task.elapsed or 0.0)} elapsed"]
                words += [] if left is None else [f"{_clock(left)} remaining"]
                self.console.print("  ".join(words), highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
