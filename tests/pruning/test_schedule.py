import pytest

from hf_efficient.pruning.schedule import cubic_fraction


def test_ramp_is_cubic():
    assert [cubic_fraction(step, 10, 50, final=0.8) for step in (10, 20, 30, 40, 50)] == pytest.approx(
        [0, 0.8 * (1 - 27 / 64), 0.8 * (1 - 1 / 8), 0.8 * (1 - 1 / 64), 0.8]
    )
    assert cubic_fraction(30, 10, 50, final=0.8, initial=0.4) == pytest.approx(0.8 - 0.4 / 8)


def test_outside_the_ramp_nothing_changes():
    assert [cubic_fraction(step, 10, 50, final=0.9, initial=0.2) for step in (0, 9, 50, 51, 10**6)] == [
        0.2, 0.2, 0.9, 0.9, 0.9
    ]  # fmt: skip


def test_ramp_without_length_is_a_step():
    assert [cubic_fraction(step, 5, 5, final=0.5) for step in (4, 5, 6)] == [0, 0.5, 0.5]


def test_ramp_never_falls():
    values = [cubic_fraction(step, 0, 100, final=0.7, initial=0.1) for step in range(101)]
    assert values == sorted(values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 9, 3, 0.5), "end=3 is before begin=9: give the steps in order"),
        ((0, 0, 9, 1.5), r"final=1.5 is not a fraction: give a number in \[0, 1\]"),
        ((0, 0, 9, 0.5, -0.1), "initial=-0.1 is not a fraction"),
    ],
)
def test_impossible_ramps_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cubic_fraction(*arguments)
