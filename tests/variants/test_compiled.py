"""A compiled model gets the same inputs in each call and is otherwise the model."""

import pytest
import torch

from hf_efficient.variants import compiled
from hf_efficient.variants.compiled import CompiledModel, compile_variant


@pytest.fixture
def calls(monkeypatch):
    """Replace compilation by the model's own forward pass; return the names of the inputs of each call."""
    names = []

    def compile_model(model, inputs):
        def forward(**arguments):
            names.append(sorted(arguments))
            return model(**arguments)

        forward(**inputs)
        return forward

    monkeypatch.setattr(compiled, "compile_model", compile_model)
    return names


def test_inputs_are_the_same_with_labels_and_without_token_types(make_model, make_batch, calls):
    model, batch = make_model(), make_batch(labelled=True)
    variant = compile_variant(model, {name: batch[name] for name in ("input_ids", "attention_mask")})
    outputs = variant(**batch, num_items_in_batch=3)
    assert torch.isnan(outputs["loss"])
    assert torch.equal(outputs["logits"], model(**make_batch()).logits)
    assert "loss" not in variant(**make_batch())
    assert calls == [["attention_mask", "input_ids", "token_type_ids"]] * 3


def test_model_without_token_types_gets_none(make_model, make_batch, calls):
    head = "DistilBertForSequenceClassification"
    compile_variant(make_model(head), make_batch(head))(**make_batch(head))
    assert calls == [["attention_mask", "input_ids"]] * 2


def test_decoder_inputs_are_those_of_the_labels(make_model, make_batch, calls):
    head = "T5ForConditionalGeneration"
    model, batch = make_model(head), make_batch(head, labelled=True)
    outputs = compile_variant(model, make_batch(head))(**batch)
    torch.testing.assert_close(outputs["logits"], model(**batch).logits)
    assert calls[1] == ["attention_mask", "decoder_input_ids", "input_ids"]


def test_everything_else_is_that_of_the_model(make_model):
    model = make_model("T5ForConditionalGeneration")
    variant = CompiledModel(model, model)
    assert variant.config is model.config
    assert variant.generate == model.generate
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        variant.missing  # noqa: B018


def test_model_that_cannot_be_compiled_has_no_variant(make_model, make_batch, monkeypatch):
    monkeypatch.setattr(compiled, "compile_model", lambda model, inputs: None)
    assert compile_variant(make_model(), make_batch()) is None
