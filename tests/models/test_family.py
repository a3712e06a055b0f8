import pytest
from trainers import build, collate, log_entries, rows, without_report
from transformers import (
    BertForNextSentencePrediction,
    GPT2Config,
    GPT2Model,
    RemBertConfig,
    RemBertForSequenceClassification,
)

from hf_efficient import DistillationConfig, measure
from hf_efficient.errors import UnsupportedModelError
from hf_efficient.models import class_for, family_of
from hf_efficient.models.family import stock_fields


def rembert():
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    return RemBertForSequenceClassification(RemBertConfig(**sizes, vocab_size=60, num_labels=3))


def test_unknown_architecture_error_says_what_works_and_how_to_add_a_family():
    message = r"'rembert' cannot be pruned: supported are bert.* What works .* subclass hf_efficient.models.Family"
    with pytest.raises(UnsupportedModelError, match=message):
        family_of(rembert())


def test_decoder_only_error_names_other_libraries():
    model = GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10, n_positions=8))
    with pytest.raises(UnsupportedModelError, match=r"'gpt2' cannot be pruned: .* decoder only .* llm-compressor"):
        family_of(model)


def test_model_of_an_unknown_family_is_distilled_from_soft_labels_and_measured(tmp_path):
    trainer = build(tmp_path, model=rembert(), techniques={"distillation": DistillationConfig()})
    without_report(trainer).train()
    assert all(entry["soft_label_loss"] >= 0 for entry in log_entries(trainer))
    measured = measure(trainer.model, collate(list(rows(2))))
    assert measured.parameters == trainer.model.num_parameters()


def test_deberta_with_a_convolution_is_refused(make_model):
    model = make_model("DebertaV2Model", conv_kernel_size=3)
    with pytest.raises(UnsupportedModelError, match="with a convolution after the first layer"):
        class_for(model, model.config)


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
