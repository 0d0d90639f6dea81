"""The native kernel: decoding and search in C for float32 models on a CPU, used only where it is proven right.

``planning/planner.py`` calls these two functions and nothing else; without this folder and those calls, PyTorch plans.
"""

from .proof import make_decoder, make_search

__all__ = ["make_decoder", "make_search"]
