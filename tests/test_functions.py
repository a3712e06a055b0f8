import re

import pytest
import torch
from transformers import BertConfig, BertForNextSentencePrediction, GPT2Config, GPT2Model

from hf_efficient import PruningConfig, QuantizationConfig, functions, prune
from hf_efficient.errors import UnsupportedModelError, UserError
from hf_efficient.functions import build_target_search, check_pruning, select_units
from hf_efficient.measurement import target_costs
from hf_efficient.measurement.cost import count_flops, count_parameters
from hf_efficient.models import family_of, is_quantized
from hf_efficient.pruning.config import TARGETS
from hf_efficient.pruning.criteria import CRITERIA
from hf_efficient.pruning.selection import remove_units


@pytest.fixture
def prune_to(make_model, make_batch):
    """Returns a tiny model and its pruned student."""

    def run(head="BertForSequenceClassification", **fields):
        model = make_model(head, num_hidden_layers=2)
        return model, prune(model, PruningConfig(**{"multiple_of": 1, **fields}), [make_batch(head, labelled=True)])

    return run


def flops(model, tokens=40):
    return count_flops(model, {"input_ids": torch.ones(1, tokens, dtype=torch.long)})


@pytest.mark.parametrize(("target", "criterion"), [(2.0, "fisher"), (8.0, "magnitude")])
def test_flops_target_is_met_and_hardly_exceeded(prune_to, target, criterion):
    model, student = prune_to(target_flops=target, criterion=criterion)
    # The cost of one head is the largest step between two shapes.
    step = 2 * 40 * 32 * 8 * 4 + 2 * 40 * 40 * 8 * 2
    assert flops(model) / flops(student) >= target
    assert flops(student) + step > flops(model) / target


@pytest.mark.parametrize("target", [1.2, 3.0])
def test_size_target_is_met_and_hardly_exceeded(prune_to, target):
    model, student = prune_to(target_size=target)
    step = 8 * (4 * 32 + 3)
    assert count_parameters(model) / count_parameters(student) >= target
    assert count_parameters(student) + step > count_parameters(model) / target


def test_portable_student_has_the_stock_class_and_meets_the_target(prune_to):
    model, student = prune_to(portable=True, target_flops=2.0)
    assert type(student) is type(model)
    assert student.config.model_type == "bert"
    assert flops(model) / flops(student) >= 2


def test_selection_depends_on_the_sequence_length(prune_to):
    structures = {}
    for length in (4, 40):
        model, student = prune_to(target_flops=2.0, latency_sequence_length=length, criterion="magnitude")
        assert flops(model, length) / flops(student, length) >= 2
        structures[length] = student.config.structure
    assert structures[4] != structures[40]


def test_feed_forward_widths_are_multiples(prune_to):
    _, student = prune_to(target_size=1.5, multiple_of=16)
    blocks = family_of(student).blocks(student)
    widths = [block.units for name, block in blocks.items() if name.endswith("feed_forward")]
    assert any(widths)
    assert not [width for width in widths if width % 16]


@pytest.mark.parametrize("fields", [{"target_size": 1.5}, {"heads": 0.5, "layers": 0.3}])
def test_model_itself_is_not_changed(make_model, make_batch, fields):
    model, batch = make_model(problem_type="single_label_classification").train(), make_batch(labelled=True)
    state, config = {name: value.clone() for name, value in model.state_dict().items()}, model.config.to_dict()
    student = prune(model, PruningConfig(**fields), [batch])
    assert student is not model
    assert model.training
    assert student.training
    assert model.config.to_dict() == config
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {parameter.device.type for parameter in student.parameters()} == {"cpu"}


def test_fractions_are_removed(prune_to):
    _, student = prune_to(heads=0.5, neurons=0.75)
    layers = family_of(student).structure(student.config).stacks["encoder"]
    assert sum(len(layer.heads["attention"]) for layer in layers) == 4
    assert sum(layer.neurons["feed_forward"] for layer in layers) == 32


def test_pruning_by_magnitude_needs_no_data(make_model):
    student = prune(make_model(), PruningConfig(target_size=1.5, criterion="magnitude"))
    assert count_parameters(make_model()) / count_parameters(student) >= 1.5


def test_target_is_a_ratio_of_the_reference(make_model):
    reference = make_model()
    half = prune(reference, PruningConfig(target_size=1.3, criterion="magnitude"))
    quarter = prune(half, PruningConfig(target_size=1.6, criterion="magnitude", multiple_of=1), reference=reference)
    sizes = [count_parameters(model) for model in (reference, half, quarter)]
    assert 1.3 <= sizes[0] / sizes[1] < 1.4
    assert 1.6 <= sizes[0] / sizes[2] < 1.7


def test_last_round_meets_the_target(make_model):
    config, model = PruningConfig(target_size=2.0, rounds=3, criterion="magnitude", multiple_of=1), make_model()
    student, ratios = model, []
    for number in (1, 2, 3):
        student = prune(student, config.for_round(number), reference=model)
        ratios.append(count_parameters(model) / count_parameters(student))
    assert [ratio >= 2 ** (number / 3) for number, ratio in enumerate(ratios, 1)] == [True] * 3
    assert ratios[2] < 2.1


def test_unreachable_target_names_the_ratio_that_can_be_reached(make_model):
    model, fields = make_model(), {"criterion": "magnitude", "multiple_of": 1}
    message = "target_size=1000 cannot be reached: the smallest shape .* reaches "
    with pytest.raises(UserError, match=message) as caught:
        prune(model, PruningConfig(target_size=1000.0, **fields))
    largest = float(re.search(r"reaches (\d+\.\d+); give a lower target", str(caught.value)).group(1))
    smallest = prune(model, PruningConfig(target_size=largest - 0.006, **fields))
    layers = family_of(smallest).structure(smallest.config).stacks["encoder"]
    assert sum(len(layer.heads["attention"]) for layer in layers) == 1
    assert sum(layer.neurons["feed_forward"] for layer in layers) == 0


def test_every_target_has_a_cost():
    assert set(target_costs.TARGET_COSTS) == set(TARGETS)


def test_selected_units_are_those_that_pruning_keeps(make_model, make_batch, assert_same_weights):
    model, batches = make_model(), [make_batch(labelled=True)]
    config = PruningConfig(target_size=1.5, recovery=False)
    assert_same_weights(remove_units(model, select_units(model, config, batches)), prune(model, config, batches))


def test_given_scores_and_loss_replace_those_of_the_criterion(make_model, make_batch, assert_same_weights):
    model, batches = make_model(), [make_batch(labelled=True)]
    config = PruningConfig(heads=0.5, recovery=False)
    scores = CRITERIA["random"](model)
    by_scores = prune(model, config, batches, scores=scores)
    assert_same_weights(by_scores, prune(model, PruningConfig(heads=0.5, criterion="random", recovery=False)))

    def loss(model, batch):
        raise ZeroDivisionError

    assert_same_weights(prune(model, config, batches, loss=loss, scores=scores), by_scores)
    with pytest.raises(ZeroDivisionError):
        prune(model, config, batches, loss=loss)


def test_compiled_models_are_not_tested_for_their_truth_value(make_model):
    """The truth value of a compiled model raises an error, as does that of any module with a length."""

    def refuse(self):
        raise TypeError("no length")

    reference = make_model()
    type(reference).__len__ = refuse
    try:
        prune(make_model(), PruningConfig(target_size=1.5, criterion="magnitude"), reference=reference)
    finally:
        del type(reference).__len__


def test_decoder_layers_are_removed_first_for_generation_speedup(make_model, make_batch, monkeypatch):
    """Every decoder layer runs once for each generated token, an encoder layer once in total."""

    def median_latencies_ms(calls, seconds=1.0):
        return {name: call() for name, call in calls.items()}

    def generation_latency(model, inputs, new_tokens):
        layers = family_of(model).layers(model)
        return lambda: 10.0 + sum(20.0 if name.startswith("decoder") else 1.0 for name in layers)

    monkeypatch.setattr(target_costs, "generation_call", generation_latency)
    monkeypatch.setattr(target_costs, "median_latencies_ms", median_latencies_ms)
    model = make_model("T5ForConditionalGeneration")
    config = PruningConfig(target_generation_speedup=1.28, criterion="magnitude")
    student = prune(model, config, [make_batch("T5ForConditionalGeneration", labelled=True)])
    before, after = ([name.partition(".")[0] for name in family_of(each).layers(each)] for each in (model, student))
    assert after.count("decoder") < before.count("decoder")
    assert after.count("encoder") == before.count("encoder")


@pytest.fixture
def latencies(monkeypatch):
    """Replaces timing: a model takes 4 ms and a layer 1 ms in torch, and `int8_ms` a layer in int8."""
    times = {"int8_ms": 0.25}

    def run(name, model, inputs):
        layer_ms = times["int8_ms"] if is_quantized(model) else 1.0
        return lambda: 4.0 + layer_ms * len(family_of(model).layers(model))

    def median_latencies_ms(calls, seconds=1.0):
        return {name: call() for name, call in calls.items()}

    for module in (functions, target_costs):
        monkeypatch.setattr(module, "build_runner", run)
        monkeypatch.setattr(module, "median_latencies_ms", median_latencies_ms)
    return times


@pytest.mark.parametrize(
    ("runtime", "int8_ms", "target", "layers"),
    [
        ("torch", 0.25, 1.2, 2),  # (4 + 4) / (4 + 2)
        ("int8", 0.25, 1.2, 4),  # (4 + 4) / (4 + 4 * 0.25) without any pruning
        ("int8", 0.25, 1.7, 2),
        ("fastest", 0.25, 1.2, 4),
        ("fastest", 2.0, 1.2, 2),
    ],
)
def test_speedup_counts_the_form_of_the_student(make_model, latencies, runtime, int8_ms, target, layers):
    latencies["int8_ms"] = int8_ms
    config = PruningConfig(target_speedup=target, latency_runtime=runtime, criterion="magnitude")
    student = prune(make_model(num_hidden_layers=4), config)
    assert len(family_of(student).layers(student)) == layers
    assert not is_quantized(student)


def test_costs_in_a_file_are_not_measured_again(make_model, make_batch, monkeypatch, tmp_path):
    monkeypatch.setattr(target_costs, "median_latencies_ms", lambda calls, seconds=1.0: dict.fromkeys(calls, 1.0))
    config = PruningConfig(target_speedup=1.0)
    search = build_target_search(make_model(), config, cost_file=tmp_path / "costs.json")
    monkeypatch.setattr(target_costs, "median_latencies_ms", None)
    assert build_target_search(make_model(), config, cost_file=tmp_path / "costs.json").selector.table == (
        search.selector.table
    )


def test_config_that_requests_nothing_is_refused(make_model):
    with pytest.raises(ValueError, match="the PruningConfig requests nothing: give a target"):
        prune(make_model(), PruningConfig())


def test_quantized_model_is_refused(make_model):
    model = make_model()
    model.hf_quantizer = object()
    with pytest.raises(ValueError, match="a quantized model cannot be pruned: prune its float weights, then quantize"):
        prune(model, PruningConfig(target_flops=2.0))


def test_unknown_runtime_is_refused(make_model):
    with pytest.raises(ValueError, match="runtime 'jax' is unknown: give one of torch"):
        check_pruning(make_model(), PruningConfig(target_speedup=2.0, latency_runtime="jax"))


def test_generation_target_is_refused_for_a_model_that_does_not_generate(prune_to):
    message = "models that generate text, which BertForSequenceClassification does not: give target_speedup"
    with pytest.raises(ValueError, match=message):
        prune_to(target_generation_speedup=2.0)


@pytest.mark.parametrize(
    ("model_class", "config", "message"),
    [
        (BertForNextSentencePrediction, BertConfig, "BertForNextSentencePrediction cannot be pruned: use one of"),
        (GPT2Model, GPT2Config, "model_type 'gpt2' cannot be pruned: supported are bert"),
    ],
)
def test_unknown_head_or_architecture_is_refused_as_unsupported(model_class, config, message):
    model = model_class(config(num_hidden_layers=1, hidden_size=12, vocab_size=10, num_attention_heads=3))
    with pytest.raises(UnsupportedModelError, match=message):
        check_pruning(model, PruningConfig(heads=0.5))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("function", ["prune", "quantize"])
def test_weights_that_are_no_numbers_are_refused_by_name(make_model, function, value):
    model = make_model()
    model.bert.encoder.layer[1].output.dense.weight.data[0, 0] = value
    config = {"prune": PruningConfig(heads=0.5, criterion="magnitude"), "quantize": QuantizationConfig("int8_dynamic")}
    with pytest.raises(UserError, match=r"NaN or infinite, in bert\.encoder\.layer\.1\.output\.dense\.weight"):
        getattr(functions, function)(model, config[function])
