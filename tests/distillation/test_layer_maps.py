import re

import pytest

from hf_efficient.distillation.layer_maps import last, parse_layer_map, skip, uniform


@pytest.mark.parametrize(
    ("layer_map", "student", "teacher", "expected"),
    [
        (uniform, 6, 12, [1, 3, 5, 7, 9, 11]),
        (uniform, 3, 6, [1, 3, 5]),
        (uniform, 4, 12, [2, 5, 8, 11]),
        (uniform, 4, 4, [0, 1, 2, 3]),
        (uniform, 6, 3, [0, 0, 1, 1, 2, 2]),
        (uniform, 1, 12, [11]),
        (uniform, 1, 1, [0]),
        (skip, 6, 12, [1, 3, 5, 7, 9]),
        (skip, 3, 6, [1, 3]),
        (skip, 6, 3, [0, 1]),
        (skip, 1, 12, [11]),
        (skip, 1, 1, [0]),
    ],
)
def test_named_maps_are_those_of_their_papers(layer_map, student, teacher, expected):
    assert layer_map(student, teacher) == list(enumerate(expected))


def test_last_layers_are_paired():
    assert last(6, 12) == [(0, 6), (1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]
    assert last(6, 3) == [(3, 0), (4, 1), (5, 2)]
    assert last(1, 1) == [(0, 0)]


@pytest.mark.parametrize("student", range(1, 13))
def test_uniform_is_increasing_evenly_spaced_and_ends_with_the_last_layer(student):
    teacher_layers = [teacher for _, teacher in uniform(student, 12)]
    assert teacher_layers == sorted(set(teacher_layers))
    assert teacher_layers[-1] == 11
    gaps = [after - before for before, after in zip([-1, *teacher_layers], teacher_layers, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_explicit_pairs_are_parsed_by_stack():
    assert parse_layer_map("0:1, 1:3,2:5") == {"": [(0, 1), (1, 3), (2, 5)]}
    assert parse_layer_map("encoder.0:1,decoder.2:0") == {"encoder": [(0, 1)], "decoder": [(2, 0)]}
    assert parse_layer_map("skip") is parse_layer_map("auto") is None


@pytest.mark.parametrize("text", ["", "every", "0", "0:", ":1", "0:1,", "-1:0", "0:1:2", "0;1"])
def test_invalid_map_is_refused(text):
    message = (
        f"layer_map={text!r} is unknown: give one of auto, uniform, last, skip, or pairs student:teacher counted from"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_layer_map(text)
