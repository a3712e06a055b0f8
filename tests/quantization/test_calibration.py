"""Tests of the statistics of the inputs of Linears."""

import pytest
import torch
from torch import nn

from hf_efficient import QuantizationConfig
from hf_efficient.errors import UserError
from hf_efficient.quantization.calibration import CALIBRATION_SAMPLES, InputStatistics, observe_inputs
from hf_efficient.quantization.int8 import calibrate

DENSE = "bert.encoder.layer.1.output.dense"


def observe(model, batches, *names, **kwargs):
    return observe_inputs(model, {name: model.get_submodule(name) for name in names}, batches, **kwargs)


def inputs_of(model, name, batch):
    """Return the inputs (tokens, channels) of a Linear, without padding."""
    recorded = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda module, args: recorded.append(args[0]))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return recorded[0][batch["attention_mask"].bool()]


# ---- ranges and outlier channels ----


def test_range_includes_zero_and_limits_have_a_margin():
    statistics = InputStatistics.from_channels(torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 4.0, 3.5]))
    assert statistics == InputStatistics(0.0, 4.0, 0.0, 5.0)


@pytest.mark.parametrize(
    ("high", "outliers"),
    [
        ([1.0, 1.0, 1.75, 1.0], ()),  # not twice as wide
        ([1.0, 1.0, 9.0, 1.0], (2,)),
        ([1.0, 8.0, 9.0, 1.0], (1, 2)),
        ([4.0, 2.1, 9.0, 1.0], (2,)),  # as few as possible
        ([0.0, 0.0, 0.0, 0.0], ()),
        ([0.0, 0.0, 5.0, 0.0], (2,)),
    ],
)
def test_channels_far_larger_than_the_others_are_outliers(high, outliers):
    statistics = InputStatistics.from_channels(torch.zeros(4), torch.tensor(high))
    assert statistics.outliers == outliers
    assert statistics.high == max((value for channel, value in enumerate(high) if channel not in outliers), default=0)


def test_negative_channels_are_outliers_too():
    statistics = InputStatistics.from_channels(torch.tensor([-1.0, -50.0, -2.0]), torch.tensor([1.0, 0.0, 3.0]))
    assert (statistics.low, statistics.high, statistics.outliers) == (-2.0, 3.0, (1,))


def test_more_than_eight_large_channels_are_no_outliers():
    high = torch.ones(40)
    high[:8] = 100.0
    assert len(InputStatistics.from_channels(-high, high).outliers) == 8
    high[:9] = 100.0
    assert InputStatistics.from_channels(-high, high).outliers == ()


# ---- observation ----


def test_statistics_are_those_of_all_tokens_that_are_no_padding(make_model, make_batch):
    model, batches = make_model(), [make_batch(seed=seed) for seed in (1, 2)]
    values = torch.cat([inputs_of(model, DENSE, batch) for batch in batches])
    statistics = observe(model, batches, DENSE, second_moments=True)[DENSE]
    expected = InputStatistics.from_channels(values.amin(0), values.amax(0))
    assert (statistics.low, statistics.high, statistics.outliers) == (expected.low, expected.high, expected.outliers)
    torch.testing.assert_close(statistics.second_moments, values.T @ values, rtol=1e-4, atol=1e-4)
    assert observe(model, batches, DENSE)[DENSE].second_moments is None


def test_padding_does_not_change_statistics(make_model, make_batch):
    model, batch = make_model(), make_batch()
    longer = {name: nn.functional.pad(value, (0, 6)) for name, value in batch.items()}
    longer["input_ids"][:, 9:] = 7
    first, second = (observe(model, [each], DENSE)[DENSE] for each in (batch, longer))
    assert (first.low, first.high) == pytest.approx((second.low, second.high), rel=1e-5)


def test_statistics_of_cross_attention_leave_out_the_padding_of_each_stack(make_model, make_batch):
    head = "T5ForConditionalGeneration"
    model, batch = make_model(head), make_batch(head)
    length = batch["input_ids"].shape[1]  # source and target have the same length, and different padding
    batch["labels"] = torch.randint(2, 100, (3, length), generator=torch.Generator().manual_seed(3))
    batch["labels"][:, 2:] = -100
    del batch["decoder_input_ids"]
    names = [f"decoder.block.1.layer.1.EncDecAttention.{name}" for name in "qk"]
    recorded = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda m, args, n=name: recorded.update({n: args[0]}))
        for name in names
    ]
    statistics = observe(model, [batch], *names)
    for handle in handles:
        handle.remove()
    masks = batch["labels"] != -100, batch["attention_mask"].bool()
    for name, mask in zip(names, masks, strict=True):
        values = recorded[name][mask]
        expected = InputStatistics.from_channels(values.amin(0), values.amax(0))
        assert (statistics[name].low, statistics[name].high) == (expected.low, expected.high)


def test_no_more_examples_are_read_than_needed(make_model, make_batch):
    read = []

    def batches():
        while True:
            read.append(3)
            yield make_batch()

    observe(make_model(), batches(), DENSE)
    assert sum(read) == CALIBRATION_SAMPLES


def test_observation_changes_neither_model_nor_mode(make_model, make_batch):
    model = make_model().train()
    observe(model, [make_batch()], DENSE)
    assert model.training
    assert not model.get_submodule(DENSE)._forward_pre_hooks


def test_hooks_are_removed_after_an_error(make_model, make_batch):
    model = make_model()
    with pytest.raises(IndexError):
        observe(model, [{**make_batch(), "input_ids": torch.full((3, 9), 1000)}], DENSE)
    assert not model.get_submodule(DENSE)._forward_pre_hooks


def test_observation_without_batches_is_refused(make_model):
    with pytest.raises(UserError, match="at least one batch is required"):
        observe(make_model(), [], DENSE)


def test_calibrate_observes_linears_with_the_same_inputs_once(make_model, make_batch):
    statistics = calibrate(make_model(), QuantizationConfig(skip_modules=r"layer\.0\."), [make_batch()])
    assert sorted(statistics) == sorted(
        f"encoder.layer.{layer}.{name}"
        for layer in (1, 2)
        for name in ("attention.self.query", "intermediate.dense", "attention.output.dense", "output.dense")
    )
