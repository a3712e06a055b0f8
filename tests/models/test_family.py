import pytest
from transformers import BertForNextSentencePrediction, GPT2Config, GPT2Model

from hf_efficient.errors import UnsupportedModelError
from hf_efficient.models import class_for, family_of
from hf_efficient.models.family import stock_fields


def test_unknown_architecture_error_says_how_to_add_a_family():
    model = GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10, n_positions=8))
    message = r"model_type 'gpt2' cannot be pruned: supported are bert.* subclass hf_efficient.models.Family"
    with pytest.raises(UnsupportedModelError, match=message):
        family_of(model)


def test_unknown_task_head_error_lists_the_supported_ones(make_model):
    config = make_model().config
    message = r"BertForNextSentencePrediction cannot be pruned: use one of BertModel, "
    with pytest.raises(TypeError, match=message):
        family_of(make_model()).class_for(BertForNextSentencePrediction, config)
    with pytest.raises(UnsupportedModelError, match=message):
        class_for(BertForNextSentencePrediction(config), config)


def test_class_for_is_stock_or_pruned_as_its_config(make_model):
    model = make_model()
    family = family_of(model)
    assert class_for(model, model.config) is type(model)
    pruned_config = family.pruned_config(model.config, family.structure(model.config))
    assert class_for(model, pruned_config) is family.pruned_classes[type(model)]


def test_stock_fields_leave_out_those_of_a_pruned_config(make_model):
    model = make_model(layer_norm_eps=1e-7)
    family = family_of(model)
    pruned_config = family.pruned_config(model.config, family.structure(model.config))
    fields = stock_fields(pruned_config)
    assert not {"structure", "codebooks", "auto_map", "model_type"} & fields.keys()
    assert fields["layer_norm_eps"] == 1e-7
