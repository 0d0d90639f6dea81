"""CUDA graphs: work that is recorded once and then repeated with a single launch."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")

Capture = Callable[[Callable[[], T], torch.device], tuple[Callable[[], None], T]]
"""Work and its device -> a function that repeats the work on its inputs' new contents, and the result's tensors."""


class CaptureError(Exception):
    """Error: work cannot be captured because the CPU waits for the GPU in it; the message says where."""


def cuda_graph(run: Callable[[], T], device: torch.device) -> tuple[Callable[[], None], T]:
    """:data:`Capture` on a GPU. The work runs twice before it is captured, which restores no state that it changes.

    Raises:
        CaptureError: the CPU waits for the GPU in ``run``, for example to read a value.
    """
    graph, present, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(present)
    with torch.cuda.stream(stream):
        run()  # allocates persistent memory and compiles and loads kernels
        with _refusing_to_wait():  # a failed capture would leave the random generator unusable
            run()
    present.wait_stream(stream)
    # On that stream, so that it is captured on the work's GPU, which may not be the current one.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        result = run()
    return graph.replay, result


@contextlib.contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Raise CaptureError where the CPU would wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        assert last is not None
        code = last.tb_frame.f_code
        raise CaptureError(f"{code.co_filename}:{last.tb_lineno} ({code.co_name}) waits for the GPU") from error
    finally:
        torch.cuda.set_sync_debug_mode(before)
