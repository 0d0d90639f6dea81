"""Both ways to decode, for tests that hold for either."""

from collections.abc import Callable

import pytest

from trajectory_transformer.model.gpt import TrajectoryTransformerModel
from trajectory_transformer.planning.decoder import BeamDecoder
from trajectory_transformer.planning.native.library import find_compiler
from trajectory_transformer.planning.native_decoder import NativeDecoder
from trajectory_transformer.planning.transformer_decoder import TransformerDecoder

MakeDecoder = Callable[[TrajectoryTransformerModel, int, bool], BeamDecoder]


def make_eager(model: TrajectoryTransformerModel, window: int, sliding: bool) -> TransformerDecoder:
    return TransformerDecoder(model, window, sliding, rows=64)


needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C compiler")
both_decoders = pytest.mark.parametrize(
    "make_decoder",
    [pytest.param(NativeDecoder, id="native", marks=needs_compiler), pytest.param(make_eager, id="eager")],
)
