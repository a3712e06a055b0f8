import pytest
import torch
from heads import enable_checkpointing, is_checkpointing

from hf_efficient.models import FAMILIES, LayerStructure, Structure, family_of
from hf_efficient.models.blocks import BiasOnly, EmptyBlock
from hf_efficient.models.encoder import EncoderFamily
from hf_efficient.pruning.selection import remove_units

ENCODERS = [name for name, family in FAMILIES.items() if isinstance(family, EncoderFamily)]
ALL = (0, 1, 2, 3)
BERT_LIKE = ("encoder.layer", "attention.self.{}", "attention.output.dense", "intermediate.dense", "output.dense")
DISTILBERT = ("transformer.layer", "attention.{}_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2")


def structure(*layers):
    return Structure(
        {"encoder": tuple(LayerStructure(s, {"attention": h}, {"feed_forward": n}) for s, h, n in layers)}
    )


def test_encoder_families_are_listed():
    expected = ["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra"]
    assert [*expected, "modernbert", "mpnet", "deberta-v2", "albert"] == ENCODERS


@pytest.mark.parametrize(
    ("head", "layout", "names"),
    [
        ("RobertaForMaskedLM", BERT_LIKE, ("query", "key", "value")),
        ("XLMRobertaForMultipleChoice", BERT_LIKE, ("query", "key", "value")),
        ("CamembertModel", BERT_LIKE, ("query", "key", "value")),
        ("ElectraForPreTraining", BERT_LIKE, ("query", "key", "value")),
        ("DistilBertForQuestionAnswering", DISTILBERT, ("q", "k", "v")),
    ],
)
def test_weights_of_a_layer_are_narrower(make_model, select, head, layout, names):
    stack, inputs, *others = layout
    layer = remove_units(make_model(head), select("uneven widths", head)).base_model.get_submodule(stack)[0]
    for name in names:
        linear = layer.get_submodule(inputs.format(name))
        assert (linear.weight.shape, linear.bias.shape) == ((16, 32), (16,))
    assert [tuple(layer.get_submodule(name).weight.shape) for name in others] == [(32, 16), (22, 32), (32, 22)]


@pytest.mark.parametrize("model_type", ENCODERS)
def test_config_holds_sizes_under_the_names_of_the_architecture(make_model, model_type):
    family = FAMILIES[model_type]
    config = make_model(next(iter(family.pruned_classes)).__name__).config
    assert family.structure(config) == structure((0, ALL, 64), (1, ALL, 64), (2, ALL, 64))
    narrower = family.config_for(config, structure((0, ALL, 24), (2, ALL, 24)))
    assert type(narrower) is family.config_class
    layers = 2 * family.repetitions(config)
    assert (narrower.num_hidden_layers, getattr(narrower, family.width_field)) == (layers, 24)
    assert family.structure(narrower) == structure((0, ALL, 24), (2, ALL, 24))
    uneven = family.config_for(config, structure((0, ALL, 24), (2, (1,), 24)))
    assert type(uneven) is family.pruned_config_class
    assert (uneven.num_hidden_layers, getattr(uneven, family.width_field)) == (layers, 64)
    assert family.config_for(uneven, structure((0, ALL, 24))).model_type == model_type


def test_empty_blocks_of_distilbert_return_the_bias_of_their_output(make_model, select):
    model = make_model("DistilBertModel")
    student = remove_units(model, select("all of these", "DistilBertModel"))
    layer, unpruned = student.transformer.layer[0], model.transformer.layer[0]
    assert [type(part) for part in (layer.attention, layer.ffn)] == [EmptyBlock, EmptyBlock]
    assert [type(part) for part in (layer.attention.out_lin, layer.ffn.lin2)] == [BiasOnly, BiasOnly]
    hidden_states = torch.randn(2, 5, 32)
    output, weights = layer.attention(hidden_states, attention_mask=None)
    assert torch.equal(output, unpruned.attention.out_lin.bias.expand(2, 5, 32))
    assert weights is None
    assert torch.equal(layer.ffn(hidden_states), unpruned.ffn.lin2.bias.expand(2, 5, 32))
    assert [name for name in student.state_dict() if name.startswith("transformer.layer.0.")] == [
        "transformer.layer.0.attention.out_lin.bias",
        "transformer.layer.0.sa_layer_norm.weight",
        "transformer.layer.0.sa_layer_norm.bias",
        "transformer.layer.0.ffn.lin2.bias",
        "transformer.layer.0.output_layer_norm.weight",
        "transformer.layer.0.output_layer_norm.bias",
    ]


def test_blocks_of_distilbert_are_narrowed_repeatedly_until_they_are_empty(make_model):
    model = make_model("DistilBertModel")
    for name, steps in (("attention", ([0, 1, 3], [1], [])), ("feed_forward", (range(9), [4], []))):
        block = family_of(model).blocks(model)[f"encoder.1.{name}"]
        bias = block.output.bias.detach().clone()
        for keep in steps:
            block.narrow(keep)
            current = family_of(model).blocks(model)[f"encoder.1.{name}"]
            assert block.units == current.units == len(keep)
            assert len(block.input_linears) == len(current.input_linears) == bool(keep) * len(block.inputs)
        assert torch.equal(current.output.bias, bias)


def test_electra_keeps_its_narrow_embeddings(make_model, select):
    model = make_model("ElectraForPreTraining")
    student = remove_units(model, select("all of these", "ElectraForPreTraining"))
    assert student.electra.embeddings.word_embeddings.weight.shape == (100, 16)
    assert torch.equal(student.electra.embeddings_project.weight, model.electra.embeddings_project.weight)
    assert student.config.embedding_size == 16
    equal_widths = remove_units(make_model("ElectraModel", embedding_size=32), select("all of these", "ElectraModel"))
    assert not hasattr(equal_widths, "embeddings_project")


@pytest.mark.parametrize("head", ["RobertaForMaskedLM", "DistilBertForMaskedLM", "ElectraForMaskedLM"])
def test_tied_weights_stay_tied(make_model, select, head):
    student = remove_units(make_model(head), select("uneven widths", head))
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight


@pytest.mark.parametrize("head", ["RobertaModel", "DistilBertModel", "ElectraModel"])
def test_activation_checkpointing_gives_the_same_gradients(make_model, make_batch, select, head):
    gradients = []
    for checkpointing in (False, True):
        student = remove_units(make_model(head), select("all of these", head)).train()
        for module in student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            enable_checkpointing(student)
        assert is_checkpointing(student) is checkpointing
        student(**make_batch(head)).last_hidden_state.square().sum().backward()
        gradients.append({name: p.grad for name, p in student.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
