import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Subset

from hf_efficient.data.length_order import restore_order, sort_by_length

LENGTHS = [2, 5, 1, 5, 3]
ROWS = [{"input_ids": [7] * length, "labels": index} for index, length in enumerate(LENGTHS)]
NESTED = [{"input_ids": [[1], [1, 2]]}, {"input_ids": [[1, 2, 3], []]}, {"input_ids": [[1]]}]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (ROWS, [1, 3, 4, 0, 2]),
        (tuple(ROWS), [1, 3, 4, 0, 2]),
        (Dataset.from_list(ROWS), [1, 3, 4, 0, 2]),
        (Dataset.from_list(ROWS).with_format("torch"), [1, 3, 4, 0, 2]),
        (Dataset.from_list(ROWS).select([4, 0, 1]), [2, 0, 1]),
        (concatenate_datasets([Dataset.from_list(ROWS[:2]), Dataset.from_list(ROWS[2:])]), [1, 3, 4, 0, 2]),
        (Subset(Dataset.from_list(ROWS), [2, 4, 1]), [2, 1, 0]),
        (Dataset.from_list(NESTED), [1, 0, 2]),
        ([{"input_ids": torch.ones(2)}, {"input_ids": torch.ones(3)}], [1, 0]),
    ],
    ids=["list", "tuple", "dataset", "tensors", "selection", "two datasets", "subset", "choices", "list of tensors"],
)
def test_long_rows_come_first_and_equal_ones_in_their_order(rows, expected):
    assert sort_by_length(rows).tolist() == expected


class ComputedRows(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise AssertionError("a row was computed")


@pytest.mark.parametrize(
    "rows",
    [
        ComputedRows(),
        Subset(ComputedRows(), [0, 1]),
        Dataset.from_list(ROWS).remove_columns("input_ids"),
        Dataset.from_dict({"input_ids": ["a text", "another"]}),
        Dataset.from_dict({"input_ids": [[1, 2], [3, 4]]}),
        [{"labels": 1}, {"labels": 0}],
        [],
    ],
    ids=["computed rows", "subset of them", "no such column", "texts", "equal lengths", "list without it", "no rows"],
)
def test_rows_of_unknown_or_equal_lengths_have_no_order(rows):
    assert sort_by_length(rows) is None


def test_another_column_can_be_sorted_by():
    assert sort_by_length(Dataset.from_dict({"input_values": [[1], [1, 2]]}), "input_values").tolist() == [1, 0]


def test_order_of_the_data_is_restored_in_nested_arrays():
    order = np.array([2, 0, 1])
    values = np.array([[20], [0], [10]])
    restored = restore_order((values, None, [{"logits": torch.tensor(values)}]), order)
    assert restored[0].tolist() == restored[2][0]["logits"].tolist() == [[0], [10], [20]]
    assert restored[1] is None
    assert values.tolist() == [[20], [0], [10]]


def test_rows_after_those_of_the_data_are_left_out():
    assert restore_order(np.array([1, 0, 9, 9]), np.array([1, 0])).tolist() == [0, 1]
