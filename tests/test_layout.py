import pytest

from trajectory_transformer.layout import TOKEN_KINDS, TransitionLayout


def test_positions_of_a_small_transition() -> None:
    layout = TransitionLayout(observation_dim=3, action_dim=2)
    positions = list(range(layout.transition_dim))
    assert positions[layout.observation] == [0, 1, 2]
    assert positions[layout.action] == [3, 4]
    assert (layout.reward, layout.value, layout.transition_dim) == (5, 6, 7)
    assert layout.block_size(10) == 69


def test_kinds_cover_every_position_once() -> None:
    layout = TransitionLayout(observation_dim=11, action_dim=3)
    covered = [p for kind in TOKEN_KINDS for p in range(16)[layout.kind_slices()[kind]]]
    assert covered == list(range(16))


@pytest.mark.parametrize("dims", [(0, 1), (1, 0), (-1, 2)])
def test_empty_parts_are_refused(dims: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TransitionLayout(*dims)
