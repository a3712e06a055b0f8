import json

import pytest
from transformers import AutoConfig, BertConfig, BertForSequenceClassification

from hf_efficient.models import FAMILIES, LayerStructure, Structure, family_of
from hf_efficient.models.pruned_bert import PrunedBertConfig, PrunedBertForSequenceClassification

BERT = FAMILIES["bert"]
ALL = (0, 1, 2, 3)
AUTO_MAP = {
    "AutoConfig": "pruned_bert.PrunedBertConfig",
    "AutoModel": "pruned_bert.PrunedBertModel",
    "AutoModelForMaskedLM": "pruned_bert.PrunedBertForMaskedLM",
    "AutoModelForSequenceClassification": "pruned_bert.PrunedBertForSequenceClassification",
    "AutoModelForTokenClassification": "pruned_bert.PrunedBertForTokenClassification",
    "AutoModelForQuestionAnswering": "pruned_bert.PrunedBertForQuestionAnswering",
    "AutoModelForMultipleChoice": "pruned_bert.PrunedBertForMultipleChoice",
}


def structure(*layers):
    return Structure(
        {
            "encoder": tuple(
                LayerStructure(source, {"attention": tuple(heads)}, {"feed_forward": neurons})
                for source, heads, neurons in layers
            )
        }
    )


def test_structure_of_a_stock_model_has_every_head_and_neuron(make_model):
    model = make_model()
    full = structure((0, ALL, 64), (1, ALL, 64), (2, ALL, 64))
    assert family_of(model).structure(model.config) == full


@pytest.mark.parametrize(
    ("layers", "is_stock"),
    [
        pytest.param([(0, ALL, 64), (2, ALL, 64)], True, id="fewer layers"),
        pytest.param([(0, ALL, 24), (1, ALL, 24), (2, ALL, 24)], True, id="one common width"),
        pytest.param([(1, ALL, 1)], True, id="one neuron"),
        pytest.param([(0, ALL, 24), (1, ALL, 32)], False, id="two widths"),
        pytest.param([(0, ALL, 0), (1, ALL, 0)], False, id="no neuron"),
        pytest.param([(0, (0, 1), 64), (1, (0, 1), 64)], False, id="fewer heads"),
    ],
)
def test_config_is_stock_if_it_can_hold_the_shape(make_model, layers, is_stock):
    config = BERT.config_for(make_model().config, structure(*layers))
    assert type(config) is (BertConfig if is_stock else PrunedBertConfig)
    assert config.num_hidden_layers == len(layers)
    if is_stock:
        assert config.intermediate_size == layers[0][2]
        assert "structure" not in config.to_dict()
        assert "auto_map" not in config.to_dict()
    else:
        assert BERT.structure(config) == structure(*layers)


def test_config_of_a_pruned_model_can_become_stock(make_model):
    pruned = BERT.pruned_config(make_model().config, structure((0, (1,), 64), (1, ALL, 64)))
    stock = BERT.config_for(pruned, structure((1, ALL, 64)))
    assert type(stock) is BertConfig
    assert stock.model_type == "bert"


def test_config_keeps_unrelated_fields(make_model):
    config = make_model(id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1}, layer_norm_eps=1e-7).config
    pruned = BERT.pruned_config(config, structure((0, (1,), 8)))
    assert (pruned.id2label, pruned.layer_norm_eps) == ({0: "bad", 1: "good"}, 1e-7)
    assert (pruned.hidden_size, pruned.num_attention_heads, pruned.intermediate_size) == (32, 4, 64)


def test_saved_config_names_every_auto_class_and_reloads(make_model, tmp_path):
    config = BERT.pruned_config(make_model().config, structure((0, (1, 3), 40)))
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"] == AUTO_MAP
    assert saved["model_type"] == "pruned_bert"
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, PrunedBertConfig)
    assert BERT.structure(loaded) == structure((0, (1, 3), 40))


def test_class_depends_on_config_and_head(make_model):
    stock = make_model().config
    pruned = BERT.pruned_config(stock, structure((0, (1, 3), 40)))
    for model_class in (BertForSequenceClassification, PrunedBertForSequenceClassification):
        assert BERT.class_for(model_class, stock) is BertForSequenceClassification
        assert BERT.class_for(model_class, pruned) is PrunedBertForSequenceClassification


def test_new_model_has_the_widths_of_its_structure(make_model):
    config = BERT.pruned_config(make_model().config, structure((0, (1, 3), 40), (2, (), 0)))
    model = PrunedBertForSequenceClassification(config)
    widths = {name: block.units for name, block in BERT.blocks(model).items()}
    assert widths == {
        "encoder.0.attention": 2,
        "encoder.0.feed_forward": 40,
        "encoder.1.attention": 0,
        "encoder.1.feed_forward": 0,
    }
    assert model.bert.encoder.layer[0].attention.self.query.weight.shape == (16, 32)
    assert model.bert.encoder.layer[0].output.dense.weight.shape == (32, 40)
