"""Tests of int8 models with plain integers in their files."""

import json
import re
from dataclasses import asdict, replace

import pytest
import torch
import transformers
from heads import BERT_HEADS
from int8_cases import error
from safetensors.torch import load_file
from trainers import arguments, pad, seq2seq_arguments, written

from hf_efficient import EfficientSeq2SeqTrainer, QuantizationConfig, quantize
from hf_efficient.errors import UnsupportedModelError
from hf_efficient.functions import describe_quantization
from hf_efficient.measurement.cost import saved_bytes
from hf_efficient.models.int8 import Int8Embedding, Int8Linear
from hf_efficient.models.int8_kernels import WEIGHT_LIMIT
from hf_efficient.pruning.selection import remove_units
from hf_efficient.quantization.config import INT8_SCHEMES as SCHEMES
from hf_efficient.quantization.int8 import calibrate, merged_linears
from hf_efficient.quantization.module_selection import select_linears

# Names within a layer, with the Linears that each 8-bit Linear computes.
LINEARS_OF_LAYER = {
    "attention.self.query_key_value": ["attention.self.query", "attention.self.key", "attention.self.value"],
    "attention.output.dense": ["attention.output.dense"],
    "intermediate.dense": ["intermediate.dense"],
    "output.dense": ["output.dense"],
}
LAYER_LINEARS = {
    f"bert.encoder.layer.{layer}.{name}": [f"bert.encoder.layer.{layer}.{member}" for member in members]
    for layer in range(3)
    for name, members in LINEARS_OF_LAYER.items()
}
EMBEDDINGS = [f"bert.embeddings.{kind}_embeddings" for kind in ("word", "position")]

pytestmark = pytest.mark.usefixtures("kernels_for_tiny_weights")


@pytest.fixture(params=SCHEMES)
def scheme(request):
    return request.param


@pytest.fixture
def calibration(make_batch):
    return [make_batch(seed=seed) for seed in (1, 2)]


@pytest.fixture
def quantize_tiny(make_batch):
    """Quantize a tiny model, with calibration batches where the scheme needs them."""

    def quantize_model(model, config=None, **fields):
        config = replace(QuantizationConfig() if config is None else config, **fields)
        name = type(model).__name__.removeprefix("Pruned")
        batches = [make_batch(name, seed=seed) for seed in (1, 2)] if config.needs_calibration else None
        return quantize(model, config, batches)

    return quantize_model


def int8_modules(model):
    return [name for name, module in model.named_modules() if isinstance(module, (Int8Linear, Int8Embedding))]


# ---- configuration ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scheme": "int4"}, "scheme='int4' is unknown: give one of int8_static, int8_dynamic, int8_weight_only"),
        ({"skip_modules": "query,(key"}, "skip_modules='(key' is not a regular expression"),
        (
            {"torchao": True},
            "torchao=True cannot be combined with scheme='int8_static': give scheme=int8_dynamic or int8_weight_only",
        ),
        (
            {"scheme": "int8_dynamic", "torchao": True, "aware": True},
            "torchao=True cannot be combined with scheme='int8_dynamic' and aware=True: give scheme=int8_dynamic or",
        ),
    ],
)
def test_config_refuses_unknown_values(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        QuantizationConfig(**fields)


def test_config_round_trips_through_json():
    config = QuantizationConfig("int8_weight_only", quantize_embeddings=False, skip_modules="query, key")
    assert QuantizationConfig(**json.loads(json.dumps(asdict(config)))) == config
    assert config.skip_patterns == ("query", "key")


def test_every_field_has_help():
    assert all(field.metadata["help"].endswith(".") for field in QuantizationConfig.__dataclass_fields__.values())


def test_static_is_the_default_scheme_and_nothing_is_compiled_by_default():
    assert QuantizationConfig().scheme == "int8_static"
    assert not QuantizationConfig().compile


def test_scheme_follows_the_calibration_batches(make_model, calibration):
    layers = [quantize(make_model(), calibration=batches).bert.encoder.layer[0] for batches in (None, calibration)]
    assert [layer.output.dense.activations for layer in layers] == ["dynamic", "static"]


# ---- which modules ----


def test_layers_and_embeddings_are_quantized_and_the_rest_stays_in_float(make_model, quantize_tiny, scheme):
    model = make_model()
    quantized = quantize_tiny(model, scheme=scheme)
    assert sorted(int8_modules(quantized)) == sorted([*LAYER_LINEARS, *EMBEDDINGS])
    for name in (
        "classifier",
        "bert.pooler.dense",
        "bert.embeddings.LayerNorm",
        "bert.embeddings.token_type_embeddings",
    ):
        assert torch.equal(quantized.get_submodule(name).weight, model.get_submodule(name).weight)


def test_embeddings_stay_in_float_without_quantize_embeddings(make_model, quantize_tiny, scheme):
    model = make_model()
    quantized = quantize_tiny(model, scheme=scheme, quantize_embeddings=False)
    assert sorted(int8_modules(quantized)) == sorted(LAYER_LINEARS)
    assert torch.equal(quantized.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight)


@pytest.mark.parametrize(
    ("patterns", "changes"),
    [
        (
            "query",
            {
                f"bert.encoder.layer.{layer}.attention.self.{name}": is_int8
                for layer in range(3)
                for name, is_int8 in (("query_key_value", False), ("key", True), ("value", True))
            },
        ),
        (
            r"layer\.0\., position",
            {**{n: False for n in LAYER_LINEARS if "layer.0." in n}, "bert.embeddings.position_embeddings": False},
        ),
        (r"layer\.[02]\.output", {f"bert.encoder.layer.{layer}.output.dense": False for layer in (0, 2)}),
    ],
)
def test_skipped_modules_stay_in_float(
    make_model, quantize_tiny, make_batch, outputs, assert_same, patterns, changes, tmp_path
):
    quantized = quantize_tiny(make_model(), skip_modules=patterns)
    expected = {**dict.fromkeys([*LAYER_LINEARS, *EMBEDDINGS], True), **changes}
    assert sorted(int8_modules(quantized)) == sorted(name for name, is_int8 in expected.items() if is_int8)
    quantized.save_pretrained(tmp_path)
    loaded = type(quantized).from_pretrained(tmp_path)
    assert int8_modules(loaded) == int8_modules(quantized)
    assert_same(outputs(loaded, make_batch()), outputs(quantized, make_batch()), atol=0)


def test_linears_that_read_the_same_states_become_one(make_model):
    model = make_model("T5ForConditionalGeneration")
    names = [name for name, _ in select_linears(model, QuantizationConfig())]
    merged = merged_linears(model, names)
    attention = {name.partition("block.1.")[2]: m for name, m in merged.items() if name.startswith("decoder.block.1.")}
    assert [name for name in attention if name.startswith("layer.1")] == [
        "layer.1.EncDecAttention.k_v",
        "layer.1.EncDecAttention.q",
        "layer.1.EncDecAttention.o",
    ]
    assert "layer.0.SelfAttention.q_k_v" in attention
    assert sorted(member for members in merged.values() for member in members) == sorted(names)
    gated = make_model("MT5ForConditionalGeneration")
    assert "encoder.block.0.layer.1.DenseReluDense.wi_0_wi_1" in merged_linears(
        gated, [name for name, _ in select_linears(gated, QuantizationConfig())]
    )


def test_tied_embeddings_stay_in_float_and_tied(make_model, make_batch, quantize_tiny, scheme, tmp_path):
    model, batch = make_model("BertForMaskedLM"), make_batch("BertForMaskedLM", labelled=True)
    quantized = quantize_tiny(model, scheme=scheme)
    assert EMBEDDINGS[0] not in int8_modules(quantized)
    quantized.save_pretrained(tmp_path)
    loaded = type(quantized).from_pretrained(tmp_path)
    table = loaded.bert.embeddings.word_embeddings.weight
    assert loaded.cls.predictions.decoder.weight is table
    assert torch.equal(table, model.bert.embeddings.word_embeddings.weight)
    assert loaded(**batch).loss.item() == pytest.approx(model(**batch).loss.item(), rel=0.1)


def test_distilbert_is_quantized(make_model):
    quantized = quantize(make_model("DistilBertModel"))
    layer = "transformer.layer.1"
    assert [name for name in int8_modules(quantized) if name.startswith(layer)] == [
        f"{layer}.attention.out_lin",
        f"{layer}.attention.q_lin_k_lin_v_lin",
        f"{layer}.ffn.lin1",
        f"{layer}.ffn.lin2",
    ]


# ---- values ----


def test_logits_stay_close_to_those_in_float(make_model, make_batch, quantize_tiny, outputs, scheme):
    model, batch = make_model(), make_batch()
    logits = [outputs(m, batch)["logits"] for m in (quantize_tiny(model, scheme=scheme), model)]
    assert 0 < error(*logits) < 0.1


def test_only_int8_weight_only_keeps_inputs_in_float(make_model, make_batch, quantize_tiny, outputs):
    difference = {}
    for scheme in SCHEMES:
        quantized, rounded = quantize_tiny(make_model(), scheme=scheme, quantize_embeddings=False), make_model()
        for name, members in LAYER_LINEARS.items():
            linears = [rounded.get_submodule(member) for member in members]
            parts = quantized.get_submodule(name).float_weight().split([linear.out_features for linear in linears])
            for linear, part in zip(linears, parts, strict=True):
                linear.weight.data.copy_(part)
        difference[scheme] = error(*(outputs(model, make_batch())["logits"] for model in (quantized, rounded)))
    assert difference["int8_weight_only"] < 1e-5
    assert difference["int8_dynamic"] > 1e-3
    assert difference["int8_static"] > 1e-3


def test_weights_are_rounded_with_a_scale_per_row(make_model):
    model = make_model()
    quantized = quantize(model)
    for name, members in LAYER_LINEARS.items():
        weight = torch.cat([model.get_submodule(member).weight.detach() for member in members])
        linear = quantized.get_submodule(name)
        assert linear.weight.abs().max() == WEIGHT_LIMIT
        torch.testing.assert_close(linear.weight_scale, weight.abs().amax(1) / WEIGHT_LIMIT)
        assert ((linear.float_weight() - weight).abs() <= 0.501 * linear.weight_scale[:, None]).all()
        assert torch.equal(linear.bias, torch.cat([model.get_submodule(member).bias for member in members]))
    table, int8_table = (m.bert.embeddings.word_embeddings for m in (model, quantized))
    assert int8_table.weight.abs().max() == 127
    assert ((int8_table(torch.arange(100)) - table.weight).abs() <= 0.501 * int8_table.weight_scale).all()


def test_calibration_batches_reduce_the_errors_of_weights(make_model, make_batch, outputs):
    model, batches = make_model(), [make_batch(seed=seed) for seed in range(1, 30)]
    config = QuantizationConfig("int8_weight_only", quantize_embeddings=False)
    expected = [outputs(model, batch)["logits"] for batch in batches]
    errors = []
    for calibration in (None, batches):
        small = quantize(model, config, calibration)
        errors.append(sum(error(outputs(small, b)["logits"], e) for b, e in zip(batches, expected, strict=True)))
    assert errors[1] < 0.8 * errors[0]


def test_ranges_and_outliers_come_from_the_calibration_batches(make_model, calibration):
    model = make_model()
    model.bert.encoder.layer[1].intermediate.dense.bias.data[5] = 100.0
    quantized = quantize(model, QuantizationConfig(), calibration)
    statistics = calibrate(model, QuantizationConfig(), calibration)
    observed = statistics["encoder.layer.1.output.dense"]
    linear = quantized.bert.encoder.layer[1].output.dense
    assert observed.outliers == (5,)
    assert linear.outlier_index.tolist() == [5]
    assert torch.equal(linear.outlier_weight[0], model.bert.encoder.layer[1].output.dense.weight[:, 5])
    assert not linear.weight[:, 5].any()
    torch.testing.assert_close(linear.input_range, torch.tensor([observed.low, observed.high]))


def test_statistics_give_the_same_model_as_their_batches(make_model, calibration, assert_same_weights):
    model, config = make_model(), QuantizationConfig()
    statistics = calibrate(model, config, calibration)
    assert_same_weights(quantize(model, config, statistics=statistics), quantize(model, config, calibration))


def test_linear_without_statistics_keeps_its_inputs_in_float(make_model, make_batch, calibration, outputs, tmp_path):
    model, config = make_model(), QuantizationConfig()
    statistics = calibrate(model, config, calibration)
    del statistics["encoder.layer.1.output.dense"]
    quantized = quantize(model, config, statistics=statistics)
    activations = [layer.output.dense.activations for layer in quantized.bert.encoder.layer]
    assert activations == ["static", None, "static"]
    quantized.save_pretrained(tmp_path)
    loaded = type(quantized).from_pretrained(tmp_path)
    assert torch.equal(outputs(loaded, make_batch())["logits"], outputs(quantized, make_batch())["logits"])


def test_bfloat16_models_are_quantized(make_model, make_batch, quantize_tiny, outputs, scheme, tmp_path):
    model = make_model()
    expected = outputs(model, make_batch())["logits"]
    quantized = quantize_tiny(model.to(torch.bfloat16), scheme=scheme)
    logits = outputs(quantized, make_batch())["logits"]
    assert logits.dtype == torch.bfloat16
    assert error(logits, expected) < 0.1
    quantized.save_pretrained(tmp_path)
    loaded = type(quantized).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(outputs(loaded, make_batch())["logits"], logits)


# ---- files ----


@pytest.mark.parametrize(
    ("head", "scheme"), [(head, SCHEMES[number % len(SCHEMES)]) for number, head in enumerate(BERT_HEADS)]
)
def test_saved_model_reloads_with_equal_outputs(
    make_model, make_batch, quantize_tiny, outputs, assert_same, assert_same_weights, scheme, head, tmp_path
):
    quantized = quantize_tiny(make_model(head), scheme=scheme)
    expected = outputs(quantized, make_batch(head))
    quantized(**make_batch(head))  # the weights are packed
    quantized.save_pretrained(tmp_path)
    loaded = getattr(transformers, quantized._auto_class).from_pretrained(tmp_path)
    assert int8_modules(loaded) == int8_modules(quantized)
    assert_same_weights(loaded, quantized)
    assert_same(outputs(loaded, make_batch(head)), expected, atol=0)


def test_saved_pruned_model_reloads_with_equal_outputs(
    make_model, make_batch, quantize_tiny, outputs, assert_same, select, uneven_shape, tmp_path
):
    quantized = quantize_tiny(remove_units(make_model(), select(uneven_shape)))
    quantized.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert int8_modules(loaded) == int8_modules(quantized)
    assert any("layer." in name for name in int8_modules(loaded))
    assert_same(outputs(loaded, make_batch()), outputs(quantized, make_batch()), atol=0)


def test_saved_bytes_are_one_per_weight_and_a_scale_per_row(make_model, quantize_tiny, scheme, tmp_path):
    model = make_model()
    small = quantize_tiny(model, scheme=scheme)
    small.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    quantized = {*EMBEDDINGS, *(member for members in LAYER_LINEARS.values() for member in members)}
    expected = 4 * 4 * len(LAYER_LINEARS) * (scheme == "int8_static")  # two values of the range, and two limits
    outliers = {name: module.outliers for name, module in small.named_modules() if isinstance(module, Int8Linear)}
    expected += sum(count * (8 + 4 * small.get_submodule(name).out_features) for name, count in outliers.items())
    for name, parameter in model.named_parameters():
        is_quantized = name.removesuffix(".weight") in quantized
        expected += parameter.numel() + 4 * parameter.shape[0] if is_quantized else 4 * parameter.numel()
    assert sum(tensor.nbytes for tensor in tensors.values()) == expected
    assert {tensor.dtype for tensor in tensors.values()} <= {torch.int8, torch.int64, torch.float32}
    assert expected < 0.45 * 4 * model.num_parameters()
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_larger_model_is_almost_four_times_smaller(make_model):
    model = make_model(hidden_size=128, intermediate_size=512, vocab_size=2000)
    assert 3.3 < saved_bytes(model) / saved_bytes(quantize(model)) < 4


def test_quantize_does_not_change_the_model(make_model, quantize_tiny, scheme):
    model = make_model().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    quantized = quantize_tiny(model, scheme=scheme)
    assert (model.training, quantized.training) == (True, False)
    assert not int8_modules(model)
    assert getattr(model.config, "int8", None) is None
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# ---- refusals ----


def test_quantize_refuses_a_config_that_skips_everything(make_model):
    with pytest.raises(
        ValueError, match=re.escape("nothing to quantize in BertForSequenceClassification with skip_modules='.*'")
    ):
        quantize(make_model(), QuantizationConfig("int8_dynamic", skip_modules=".*"))


def test_quantize_refuses_a_quantized_model(make_model):
    with pytest.raises(ValueError, match="the model is quantized already: start from the float model"):
        quantize(quantize(make_model()))


def test_static_without_calibration_batches_is_refused(make_model):
    with pytest.raises(ValueError, match="scheme='int8_static' computes ranges of activations from data: give `cali"):
        quantize(make_model(), QuantizationConfig())


def test_empty_calibration_batches_are_refused(make_model):
    with pytest.raises(ValueError, match="at least one batch is required"):
        quantize(make_model(), calibration=[])


def test_quantize_without_a_scheme_is_refused(make_model):
    with pytest.raises(ValueError, match="scheme=None quantizes nothing: give one of int8_static, int8_dynamic"):
        quantize(make_model(), QuantizationConfig(scheme=None))


def test_models_of_other_families_are_refused():
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20)
    with pytest.raises(UnsupportedModelError):
        quantize(transformers.GPT2Model(config))


@torch.no_grad()
def test_gated_neuron_that_is_far_larger_does_not_ruin_the_others(
    make_model, make_batch, outputs, scheme, monkeypatch
):
    head, warnings = "MT5ForConditionalGeneration", []
    monkeypatch.setattr("hf_efficient.quantization.int8.logger.warning", warnings.append)
    batch, calibration = make_batch(head), [make_batch(head, seed=seed) for seed in (1, 2)]
    errors = []
    for factor in (1, 100):
        model = make_model(head)
        dense = model.encoder.block[1].layer[-1].DenseReluDense
        dense.wi_1.weight[5] *= factor
        dense.wo.weight[:, 5] /= factor
        quantized = quantize(model, QuantizationConfig(scheme), calibration)
        errors.append(error(outputs(quantized, batch)["logits"], outputs(model, batch)["logits"]))
    assert errors[1] < 1.3 * errors[0]
    name = "encoder.block.1.layer.1.DenseReluDense.wo"
    is_in_float = isinstance(quantized.get_submodule(name), torch.nn.Linear)
    assert is_in_float == (scheme != "int8_static")
    expected = f"{name} stays in float: it reads neurons that are far larger than the others"
    assert warnings == [expected] * is_in_float
    described = describe_quantization(model, quantized, QuantizationConfig(scheme))
    sentence = f"in float, since they read neurons that are far larger than the others: {name}"
    assert (sentence in described) == is_in_float
    assert ("input channels of" in described) == (scheme == "int8_static")


def test_report_and_card_say_what_stays_in_float(tmp_path):
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "num_heads": 2, "num_layers": 1, "d_ff": 32, "vocab_size": 60}
    model = transformers.MT5ForConditionalGeneration(transformers.MT5Config(**sizes, decoder_start_token_id=0))
    for block in (*model.encoder.block, *model.decoder.block):
        block.layer[-1].DenseReluDense.wi_1.weight.data[3] *= 100
    args = seq2seq_arguments(arguments(tmp_path))
    data = {"eval_dataset": written(4), "data_collator": pad}
    techniques = {"quantization": QuantizationConfig("int8_dynamic")}
    trainer = EfficientSeq2SeqTrainer(model=model, args=args, **data, **techniques)
    trainer.train()
    trainer.create_model_card()
    names = "decoder.block.0.layer.2.DenseReluDense.wo, encoder.block.0.layer.1.DenseReluDense.wo"
    sentence = f"in float, since they read neurons that are far larger than the others: {names}"
    report = json.loads((tmp_path / "compression_report.json").read_text())
    assert [sentence in stage for stage in report["stages"]] == [True]
    assert sentence in (tmp_path / "README.md").read_text()
