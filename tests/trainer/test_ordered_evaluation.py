"""Evaluation sorts texts by length; results are in the order of the data, with the values of the stock trainer."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, SequentialSampler
from trainers import (
    accuracy,
    arguments,
    build,
    classifier,
    collate,
    livelier,
    pad,
    rows,
    seq2seq_arguments,
    t5,
    written,
)
from transformers import Seq2SeqTrainer, Trainer

from hf_efficient import EfficientSeq2SeqTrainer, EfficientTrainer
from hf_efficient.trainer import ordered_evaluation

COUNT = 13  # the last batch of eight is not full
SETTINGS = {
    "plain": {},
    "small batches": {"per_device_eval_batch_size": 3},
    "accumulation": {"per_device_eval_batch_size": 2, "eval_accumulation_steps": 1},
    "inputs and losses": {"include_for_metrics": ["inputs", "loss"]},
    "workers": {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
}
TOKENS = collate(list(rows(COUNT)))["attention_mask"].bool().numpy()  # what is at padding depends on the batch
IN_ORDER = {
    "batches apart": {"eval_do_concat_batches": False, "per_device_eval_batch_size": 4},
    "metrics by batch": {"batch_eval_metrics": True},
    "incomplete batches dropped": {"dataloader_drop_last": True},
    "workers out of order": {"dataloader_in_order": False},
}


class ComputedRows(torch.utils.data.Dataset):
    """Rows whose lengths are not known before they are computed."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index]


class Recorder:
    """Metrics that record what they are computed from, and that the order of rows matters to."""

    def __init__(self):
        self.predictions = []

    def __call__(self, prediction, compute_result=True):
        self.predictions.append(prediction)
        logits = torch.as_tensor(
            prediction.predictions[0] if isinstance(prediction.predictions, list) else prediction.predictions
        )
        return {"weighted": float((logits[:, 0] * torch.arange(len(logits))).sum())}


def build_pair(folder, **changes):
    """Return the stock trainer and ours, of the same model, each with the lengths of the batches that it evaluates."""
    pair = []
    for trainer_class in (Trainer, EfficientTrainer):
        trainer = build(folder, trainer_class)
        trainer.compute_metrics = Recorder()
        for name, value in changes.items():
            setattr(trainer.args, name, value)
        pair.append((trainer, record_batches(trainer)))
    return pair


def record_batches(trainer):
    """Return a list that receives the padded length of each batch that the trainer evaluates."""
    lengths, step = [], trainer.prediction_step

    def prediction_step(model, inputs, *args, **kwargs):
        lengths.append(inputs["input_ids"].shape[1])
        return step(model, inputs, *args, **kwargs)

    trainer.prediction_step = prediction_step
    return lengths


def assert_equal(actual, expected):
    if expected is None:
        assert actual is None
    elif isinstance(expected, tuple | list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_equal(one, other)
    else:
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def without_times(metrics):
    times = ("runtime", "per_second", "preparation_time")
    return {name: value for name, value in metrics.items() if not name.endswith(times)}


def assert_same_results(trainer, stock, dataset):
    """Check that both predict and evaluate the same, and compute their metrics from the same."""
    actual, expected = trainer.predict(dataset), stock.predict(dataset)
    assert_equal((actual.predictions, actual.label_ids), (expected.predictions, expected.label_ids))
    assert without_times(actual.metrics) == pytest.approx(without_times(expected.metrics), abs=1e-4)
    metrics = without_times(trainer.evaluate(dataset))
    assert metrics == pytest.approx(without_times(stock.evaluate(dataset)), abs=1e-4)
    assert {"eval_loss", "eval_weighted"} <= metrics.keys()
    calls, expected_calls = trainer.compute_metrics.predictions, stock.compute_metrics.predictions
    assert len(calls) == len(expected_calls) > 0
    for call, expected_call in zip(calls, expected_calls, strict=True):
        assert_equal((call.predictions, call.label_ids), (expected_call.predictions, expected_call.label_ids))
        if expected_call.inputs is not None:
            assert_equal(call.inputs[TOKENS], expected_call.inputs[TOKENS])
            assert len(call.losses) == COUNT


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_results_are_those_of_the_stock_trainer_in_less_padded_batches(tmp_path, settings, strategy):
    (stock, stock_lengths), (trainer, lengths) = build_pair(tmp_path, **settings)
    trainer.args.train_sampling_strategy = strategy
    assert_same_results(trainer, stock, rows(COUNT))
    assert sum(lengths) < sum(stock_lengths)
    batches = len(lengths) // 2
    assert lengths[:batches] == sorted(lengths[:batches], reverse=True) == lengths[batches:]


@pytest.mark.parametrize("settings", IN_ORDER.values(), ids=IN_ORDER)
def test_settings_that_depend_on_batches_keep_the_order_of_the_data(tmp_path, settings):
    (stock, stock_lengths), (trainer, lengths) = build_pair(tmp_path, **settings)
    assert_same_results(trainer, stock, rows(COUNT))
    assert lengths == stock_lengths


@pytest.mark.parametrize(
    "convert", [ComputedRows, lambda data: data.to_iterable_dataset()], ids=["computed rows", "streamed rows"]
)
def test_rows_of_unknown_lengths_keep_their_order_also_in_training_by_length(tmp_path, convert):
    (stock, stock_lengths), (trainer, lengths) = build_pair(tmp_path)
    trainer.args.train_sampling_strategy = "group_by_length"
    assert_same_results(trainer, stock, convert(rows(COUNT)))
    assert lengths == stock_lengths


def test_each_of_several_datasets_is_evaluated_in_its_order(tmp_path):
    (stock, _), (trainer, lengths) = build_pair(tmp_path)
    data = {"first": rows(COUNT), "second": rows(5, seed=4)}
    metrics = without_times(trainer.evaluate(data))
    assert metrics == pytest.approx(without_times(stock.evaluate(data)), abs=1e-4)
    assert {"eval_first_weighted", "eval_second_weighted"} <= metrics.keys()
    assert lengths == [12, 5, 12]


def test_data_loader_of_the_user_is_not_sorted(tmp_path):
    trainer = build(tmp_path)
    trainer.get_eval_dataloader = lambda data=None: DataLoader(list(rows(COUNT)), batch_size=4, collate_fn=collate)
    lengths = record_batches(trainer)
    trainer.evaluate()
    assert lengths == [12, 11, 12, 7]


def test_nested_predictions_are_in_order(tmp_path):
    results = []
    for trainer_class in (Trainer, EfficientTrainer):
        trainer = build(tmp_path, trainer_class, model=classifier(output_hidden_states=True))
        trainer.compute_metrics = None
        results.append(trainer.predict(rows(COUNT)))
    stock, ours = results
    assert_equal(ours.predictions[0], stock.predictions[0])
    assert len(ours.predictions[1]) == 3
    for states, expected in zip(ours.predictions[1], stock.predictions[1], strict=True):
        assert states.shape == expected.shape
        assert_equal(states[TOKENS], expected[TOKENS])


def test_generated_texts_are_in_order(tmp_path):
    results = []
    for trainer_class in (Seq2SeqTrainer, EfficientSeq2SeqTrainer):
        args = seq2seq_arguments(arguments(tmp_path))
        args.predict_with_generate, args.generation_max_length = True, 9
        recorder = Recorder()
        trainer = trainer_class(model=livelier(t5()), args=args, data_collator=pad, compute_metrics=recorder)
        lengths = record_batches(trainer)
        results.append((trainer.predict(written(COUNT)), recorder.predictions[0], lengths))
    (stock, stock_call, stock_lengths), (ours, call, lengths) = results
    assert len(np.unique(stock.predictions, axis=0)) > 1
    for actual, expected in ((ours, stock), (call, stock_call)):
        assert_equal(actual.predictions, expected.predictions)
        assert_equal(np.maximum(actual.label_ids, 0), np.maximum(expected.label_ids, 0))  # padded with -100 and 0
    assert sum(lengths) < sum(stock_lengths)


def flatten_confident(logits, labels):
    """Return fewer predictions than rows."""
    return logits[labels > 0]


def test_predictions_that_are_not_rows_are_made_again_in_the_order_of_the_data(tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr(ordered_evaluation.logger, "warning", messages.append)
    (stock, stock_lengths), (trainer, lengths) = build_pair(tmp_path)
    for each in (stock, trainer):
        each.preprocess_logits_for_metrics = flatten_confident
    assert_same_results(trainer, stock, rows(COUNT))
    assert len(lengths) == len(stock_lengths) + 2  # repeated once only
    assert messages == ["predictions are not one row a text: texts are evaluated in their order, not by length"]


def test_metrics_of_the_trainer_are_restored_after_an_error(tmp_path):
    trainer = build(tmp_path)

    def fail(prediction):
        raise ZeroDivisionError

    trainer.compute_metrics = fail
    with pytest.raises(ZeroDivisionError):
        trainer.evaluate()
    assert trainer.compute_metrics is fail


def test_padded_texts_are_not_sorted(tmp_path):
    padded = Dataset.from_dict({name: values.tolist() for name, values in collate(list(rows(COUNT))).items()})
    trainer = build(tmp_path)
    assert isinstance(trainer.get_test_dataloader(padded).sampler, SequentialSampler)
    assert trainer.predict(padded).metrics["test_accuracy"] == accuracy(trainer.predict(rows(COUNT)))["accuracy"]


def test_examples_that_pruning_scores_are_not_sorted(tmp_path):
    trainer = build(tmp_path, train_sampling_strategy="random")
    lengths = [batch["input_ids"].shape[1] for batch in trainer.draw_scoring_batches()]
    assert lengths[0] < lengths[-1]
