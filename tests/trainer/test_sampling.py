import itertools

from torch.utils.data import SequentialSampler
from trainers import LENGTHS, arguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_efficient.trainer.sampling import QuerySampler, seed_by_epoch


def test_order_depends_only_on_seed_and_epoch(tmp_path):
    epoch = [0.0]

    def sampler(seed):
        grouped = LengthGroupedSampler(2, lengths=list(LENGTHS) * 4)
        return seed_by_epoch(grouped, arguments(tmp_path, seed=seed), lambda: epoch[0])

    first = list(sampler(1))
    epoch[0] = 0.9999999  # a sum of fractions that should be 1
    second = list(sampler(1))
    epoch[0] = None
    assert list(sampler(1)) == first != second
    assert list(sampler(2)) != first
    assert sorted(first) == sorted(second) == list(range(32))


def test_samplers_that_do_not_group_by_length_are_returned_unchanged(tmp_path):
    sequential = SequentialSampler(range(4))
    assert seed_by_epoch(sequential, arguments(tmp_path), lambda: 0.0) is sequential
    assert seed_by_epoch(None, arguments(tmp_path), lambda: 0.0) is None


def test_documents_of_a_query_come_together_in_another_order_each_epoch():
    queries = [7, 3, 7, 3, 5, 7]
    epoch = 0.0
    sampler = QuerySampler(queries, seed=1, get_epoch=lambda: epoch)
    first = list(sampler)
    assert len(sampler) == 6
    assert sorted(first) == list(range(6))
    changes = sum(queries[one] != queries[other] for one, other in itertools.pairwise(first))
    assert changes == 2  # three queries
    assert list(sampler) == first
    orders = set()
    for number in range(8):
        epoch = float(number)
        orders.add(tuple(sampler))
    assert len(orders) > 1
