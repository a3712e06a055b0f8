"""Scores for pruning: the batches they are computed on, and the same values in all processes."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from trainers import arguments, classifier, collate, rows

from hf_efficient import PruningConfig
from hf_efficient.errors import UserError
from hf_efficient.pruning.connection_criteria import CONNECTION_SAMPLES
from hf_efficient.trainer import scoring
from hf_efficient.trainer.scoring import PruningScorer

BATCH_SIZE = 8


def build_scorer(folder, seed=3, **config):
    config = PruningConfig(**{"heads": 0.5, "scoring_samples": 12, "criterion": "magnitude", **config})
    return PruningScorer(config, arguments(folder, seed=seed), Accelerator(cpu=True))


def collate_with_teacher_outputs(examples):
    return {**collate(examples), "teacher_logits": torch.zeros(len(examples), 3)}


def draw(scorer, data, read=None):
    """Return the batches drawn from `data`; every batch that is read is counted in `read`."""

    def load(dataset):
        for batch in DataLoader(dataset, BATCH_SIZE, collate_fn=collate_with_teacher_outputs):
            if read is not None:
                read.append(len(batch["labels"]))
            yield batch

    return scorer.draw_batches(classifier(), data, load, lambda: load(data))


def tokens(batches):
    """Return the token ids of each example, without padding."""
    return [
        ids[mask.bool()].tolist()
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_examples_are_drawn_by_the_seed(tmp_path):
    data = rows()
    batches = draw(build_scorer(tmp_path), data)
    assert [len(batch["labels"]) for batch in batches] == [8, 4]
    assert set(batches[0]) == {"input_ids", "attention_mask", "labels"}  # no outputs of a teacher
    drawn = tokens(batches)
    all_tokens = [list(ids) for ids in data["input_ids"]]
    assert all(ids in all_tokens for ids in drawn)
    assert drawn != all_tokens[:12]
    assert tokens(draw(build_scorer(tmp_path), data)) == drawn
    assert tokens(draw(build_scorer(tmp_path, seed=4), data)) != drawn


def test_small_datasets_are_used_completely(tmp_path):
    data = rows(10)
    drawn = tokens(draw(build_scorer(tmp_path, scoring_samples=100), data))
    assert sorted(drawn) == sorted(list(ids) for ids in data["input_ids"])


def test_first_examples_of_streamed_data_are_used_and_no_more_are_read(tmp_path):
    read = []
    batches = draw(build_scorer(tmp_path), rows().to_iterable_dataset(), read)
    assert tokens(batches) == [list(ids) for ids in rows()["input_ids"][:12]]
    assert sum(read) == 16  # two batches, of which the second is cut


def test_pruning_without_training_data_is_refused(tmp_path):
    with pytest.raises(UserError, match="pruning scores units on training data: give the trainer a train_dataset"):
        draw(build_scorer(tmp_path), None)


def test_units_and_connections_are_scored(tmp_path):
    scorer, model = build_scorer(tmp_path), classifier()
    scores = scorer.score_units(model, scorer.config, [], teacher=None)
    assert {name: len(values) for name, values in scores.units.items()} == {
        f"encoder.{layer}.{block}": size
        for layer in (0, 1)
        for block, size in (("attention", 4), ("feed_forward", 64))
    }
    connections = scorer.score_connections(model, [], teacher=None)
    name = "bert.encoder.layer.0.output.dense.weight"
    torch.testing.assert_close(connections[name], model.state_dict()[name].abs())


def test_connections_are_scored_on_few_examples(tmp_path, monkeypatch):
    counts = []

    def criterion(model, batches, loss):
        counts.append(sum(len(batch["labels"]) for batch in batches))
        return {"linear": torch.ones(2, 2)}

    monkeypatch.setitem(scoring.CONNECTION_CRITERIA, "magnitude", criterion)
    batches = [collate(list(rows(8)))] * (CONNECTION_SAMPLES // 8 + 2)
    build_scorer(tmp_path).score_connections(classifier(), batches, teacher=None)
    assert counts == [CONNECTION_SAMPLES]


def test_one_process_keeps_its_batches_and_values(tmp_path):
    scorer, batches = build_scorer(tmp_path), [collate(list(rows(4)))]
    assert scorer.gather_batches(batches) is batches
    assert scorer.broadcast_from_main("selection") == "selection"
    assert scorer.average_over_processes(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]


def test_batches_of_two_processes_are_gathered_in_the_order_of_the_data(monkeypatch):
    scorer = PruningScorer(PruningConfig(heads=0.5), SimpleNamespace(world_size=2), Accelerator(cpu=True))
    monkeypatch.setattr(scoring, "gather_object", lambda values: [*values, ["second", "fourth"]])
    assert scorer.gather_batches(["first", "third"]) == ["first", "second", "third", "fourth"]


def test_second_process_receives_the_value_of_the_main_one(monkeypatch):
    scorer = PruningScorer(PruningConfig(heads=0.5), SimpleNamespace(world_size=2), Accelerator(cpu=True))
    monkeypatch.setattr(scoring, "broadcast_object_list", lambda values: values.__setitem__(0, "main"))
    assert scorer.broadcast_from_main("second") == "main"
