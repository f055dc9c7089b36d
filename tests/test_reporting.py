"""The switch that silences progress and notes."""

from toolkit.reporting import is_silenced, silence


def test_a_block_inside_a_silenced_block_stays_silent():
    states = [is_silenced()]
    with silence():
        with silence(False):
            states.append(is_silenced())
        states.append(is_silenced())
    with silence(False):
        states.append(is_silenced())
    assert states == [False, True, True, False]
