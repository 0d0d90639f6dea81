"""The native kernel: decoding and search in C for float32 models on a CPU, used only after a check of its results.

``planning/planner.py`` calls only these two functions; without this folder and those calls, planning runs in PyTorch.
"""

from .proof import make_decoder, make_search

__all__ = ["make_decoder", "make_search"]
