import pytest

from hf_efficient import PruningConfig
from hf_efficient.pruning.schedule import Phase, cubic_fraction, plan_phases


def test_fraction_grows_by_the_cubic_schedule():
    assert [cubic_fraction(step, 10, 50, final=0.8) for step in (10, 20, 30, 40, 50)] == pytest.approx(
        [0, 0.8 * (1 - 27 / 64), 0.8 * (1 - 1 / 8), 0.8 * (1 - 1 / 64), 0.8]
    )
    assert cubic_fraction(30, 10, 50, final=0.8, initial=0.4) == pytest.approx(0.8 - 0.4 / 8)


def test_fraction_is_constant_outside_the_schedule():
    assert [cubic_fraction(step, 10, 50, final=0.9, initial=0.2) for step in (0, 9, 50, 51, 10**6)] == [
        0.2, 0.2, 0.9, 0.9, 0.9
    ]  # fmt: skip


def test_schedule_of_no_length_is_a_step():
    assert [cubic_fraction(step, 5, 5, final=0.5) for step in (4, 5, 6)] == [0, 0.5, 0.5]


def test_fraction_never_falls():
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
def test_impossible_schedule_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cubic_fraction(*arguments)


@pytest.mark.parametrize(
    ("fields", "phases"),
    [
        ({"rounds": 2}, [Phase(1, 0.5), Phase(2, 0.5)]),
        ({"ramp": 0.25}, [Phase(0, 0.25, closes_gates=True), Phase(1, 0.75)]),
        ({"rewind": "weights"}, [Phase(0, 0.5), Phase(1, 0.5)]),
        ({"rewind": "learning_rate", "rounds": 3}, [Phase(number, 0.25) for number in range(4)]),
    ],
)
def test_phases_of_a_pruning(fields, phases):
    assert plan_phases(PruningConfig(target_flops=2, **fields)) == phases
