"""Tests of sample inputs and calibration batches."""

import pytest
import torch
from export_cases import sentences

from hf_efficient.exporters.inputs import (
    EXPORT_CALIBRATION_SAMPLES,
    calibration_inputs,
    complete_batch,
    sample_export_inputs,
    take_calibration_batches,
)
from hf_efficient.exporters.runtime_models import DECODE, ENCODER, PREFILL


def test_inputs_of_multiple_choice_have_choices(make_model):
    inputs = sample_export_inputs(make_model("BertForMultipleChoice"), 2, 16)
    assert {tuple(value.shape) for value in inputs.values()} == {(2, 4, 16)}


def test_token_types_are_given_to_models_that_have_several(make_model):
    assert "token_type_ids" in sample_export_inputs(make_model(), 2, 16)
    assert "token_type_ids" not in sample_export_inputs(make_model("RobertaForSequenceClassification"), 2, 16)


def test_take_calibration_batches_stops_when_there_are_enough():
    batches = ({"input_ids": torch.zeros(100, 4)} for _ in range(9))
    assert len(take_calibration_batches(batches)) == EXPORT_CALIBRATION_SAMPLES // 100
    assert len(list(batches)) == 9 - EXPORT_CALIBRATION_SAMPLES // 100


def test_calibration_inputs_of_generation_are_made_from_labels(make_model):
    model, labels = make_model("T5ForConditionalGeneration"), torch.tensor([[5, 6, 1], [7, 1, -100], [8, 9, 1]])
    inputs = calibration_inputs(
        model, [complete_batch(model, {**sentences(), "labels": labels})], [ENCODER, PREFILL, DECODE]
    )
    assert inputs[PREFILL][0]["decoder_input_ids"].tolist() == [[0, 5], [0, 7], [0, 8]]
    assert inputs[DECODE][0]["decoder_input_ids"].tolist() == [[6], [1], [9]]
    assert inputs[DECODE][0]["past_key_values"].get_seq_length() == 2


def test_calibration_inputs_of_generation_need_labels(make_model):
    with pytest.raises(ValueError, match=r"calibration batches have input_ids, attention_mask: .* needs labels"):
        complete_batch(make_model("T5ForConditionalGeneration"), sentences())


def test_no_calibration_batches_are_refused(make_model):
    with pytest.raises(ValueError, match="the calibration data is empty: give at least one batch"):
        calibration_inputs(make_model(), [], ["model"])
