import copy

import pytest
import torch
from t5_shapes import ALL_HEADS, SHAPES, STOCK_SHAPES, selection_of, structure_of
from transformers import (
    AutoModelForSeq2SeqLM,
    MT5Config,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from hf_efficient import PruningConfig, measure, prune
from hf_efficient.measurement.comparison import model_inputs
from hf_efficient.models import FAMILIES, family_of
from hf_efficient.models.pruned_t5 import PrunedT5Config, PrunedT5EncoderModel
from hf_efficient.models.t5_attention import T5SubsetAttention
from hf_efficient.pruning.gates import apply_gates
from hf_efficient.pruning.selection import Selection, remove_units
from hf_efficient.pruning.unit_criteria import fisher

T5 = FAMILIES["t5"]
T5_HEADS = [cls.__name__ for cls in T5.pruned_classes]
GENERATION = "T5ForConditionalGeneration"
STOCK_NAMES = list(STOCK_SHAPES)


def restrict(selection, model):
    """Return the selection without the blocks that an encoder-only `model` does not have."""
    family = family_of(model)
    layers = tuple(name for name in selection.layers if name in family.layers(model))
    return Selection(layers, {name: selection.units[name] for name in family.blocks(model)})


def untie(model, tmp_path):
    """Return `model` as it loads if its output embeddings differ from its input embeddings, as those of Flan-T5."""
    untied = copy.deepcopy(model)
    untied.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight) * 0.3)
    untied.all_tied_weights_keys.pop("lm_head.weight")
    untied.save_pretrained(tmp_path / "untied")
    return type(model).from_pretrained(tmp_path / "untied")


def prune_and_compare_with_gates(model, batch, selection, gates_of, outputs, assert_same):
    """Return the pruned model, whose outputs must be those of the gated model."""
    selection = restrict(selection, model)
    with apply_gates(model, *gates_of(model, selection)):
        expected = outputs(model, batch)
    student = remove_units(model, selection)
    assert_same(outputs(student, batch), expected, atol=1e-9)
    return student


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        *((GENERATION, shape) for shape in SHAPES),
        ("MT5ForConditionalGeneration", "different heads"),
        ("MT5ForConditionalGeneration", "all of these"),
    ],
)
def test_pruned_equals_gated_in_every_shape(make_model, make_batch, gates_of, outputs, assert_same, head, shape):
    model, batch = make_model(head).double(), make_batch(head)
    selection = selection_of(SHAPES[shape])
    student = prune_and_compare_with_gates(model, batch, selection, gates_of, outputs, assert_same)
    assert family_of(student).structure(student.config) == structure_of(SHAPES[shape])
    assert student.config.model_type == f"pruned_{model.config.model_type}"


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        *((GENERATION, shape) for shape in STOCK_SHAPES),
        *((head, STOCK_NAMES[index % 5]) for index, head in enumerate(T5_HEADS) if head != GENERATION),
    ],
)
def test_stock_shapes_have_stock_classes(make_model, make_batch, gates_of, outputs, assert_same, head, shape):
    model, batch = make_model(head).double(), make_batch(head)
    selection = selection_of(STOCK_SHAPES[shape])
    student = prune_and_compare_with_gates(model, batch, selection, gates_of, outputs, assert_same)
    assert type(student) is type(model)
    assert type(student.config) is T5Config
    first_layer = next(iter(STOCK_SHAPES[shape]["encoder"].values()))
    config = student.config
    assert (config.num_heads, config.d_kv, config.d_ff) == (len(first_layer[0]), 8, first_layer[2])
    assert config.num_layers == len(STOCK_SHAPES[shape]["encoder"])
    if config.is_encoder_decoder:
        assert config.num_decoder_layers == len(STOCK_SHAPES[shape]["decoder"])
    assert not [module for module in student.modules() if isinstance(module, T5SubsetAttention)]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"encoder": {0: ((0, 1), None, 64), 1: ((0, 2), None, 64)}}, id="other heads in a layer"),
        pytest.param({"decoder": {0: ((0, 1), (0, 1, 2), 64)}}, id="another number in cross attention"),
        pytest.param({"decoder": {0: ((0, 1), (0, 1), 32)}}, id="another width in the decoder"),
        pytest.param({"encoder": {0: ((), None, 64)}, "decoder": {0: ((), (), 64)}}, id="no heads"),
    ],
)
def test_other_shapes_have_the_pruned_config(make_model, changes):
    shape = {"encoder": {0: ((0, 1), None, 64)}, "decoder": {0: ((0, 1), (0, 1), 64)}}
    config = make_model(GENERATION).config
    assert type(T5.config_for(config, structure_of(shape))) is T5Config
    assert type(T5.config_for(config, structure_of({**shape, **changes}))) is PrunedT5Config


def test_second_pruning_counts_heads_and_layers_in_the_unpruned_network(
    make_model, make_batch, gates_of, outputs, assert_same
):
    batch = make_batch(GENERATION)
    once = remove_units(make_model(GENERATION).double(), selection_of(SHAPES["different heads"]))
    second = Selection(
        ("encoder.1", "encoder.2", "decoder.1"),
        {name: tuple(range(block.units))[-2:] for name, block in T5.blocks(once).items()},
    )
    twice = prune_and_compare_with_gates(once, batch, second, gates_of, outputs, assert_same)
    assert twice.config.structure == {
        "encoder": [
            {"source": 1, "heads": {"attention": [0]}, "neurons": {"feed_forward": 2}},
            {"source": 2, "heads": {"attention": [2, 3]}, "neurons": {"feed_forward": 2}},
        ],
        "decoder": [
            {"source": 1, "heads": {"attention": [0, 3], "cross_attention": [2, 3]}, "neurons": {"feed_forward": 2}}
        ],
    }


def test_pruned_model_can_become_stock(make_model, make_batch, gates_of, outputs, assert_same):
    once = remove_units(make_model(GENERATION).double(), selection_of(SHAPES["different heads"]))
    units = {name: (0,) if "attention" in name else (0, 1, 2) for name in T5.blocks(once)}
    second = Selection(("encoder.0", "decoder.1"), units)  # head 1 of the encoder, head 0 of the decoder
    twice = prune_and_compare_with_gates(once, make_batch(GENERATION), second, gates_of, outputs, assert_same)
    assert type(twice) is T5ForConditionalGeneration
    assert (twice.config.model_type, twice.config.num_heads, twice.config.d_ff) == ("t5", 1, 3)


def test_keeping_everything_gives_the_same_stock_model(make_model, assert_same_weights):
    model = make_model(GENERATION)
    everything = Selection(
        tuple(T5.layers(model)), {name: tuple(range(block.units)) for name, block in T5.blocks(model).items()}
    )
    student = remove_units(model, everything)
    assert type(student) is T5ForConditionalGeneration
    assert student.config.to_dict() == {**model.config.to_dict(), "dtype": "float32"}
    assert_same_weights(student, model)


def test_empty_blocks_have_no_weights(make_model):
    student = remove_units(make_model(GENERATION), selection_of(SHAPES["all of these"]))
    for stack in (student.encoder, student.decoder):
        names = [name for name, _ in stack.block[0].named_parameters()]
        assert names == ["layer.0.SelfAttention.relative_attention_bias.weight"]


def test_blocks_of_a_pruned_model_are_found(make_model):
    blocks = T5.blocks(remove_units(make_model(GENERATION), selection_of(SHAPES["all of these"])))
    assert {name: block.units for name, block in blocks.items()} == {
        "encoder.0.attention": 0,
        "encoder.0.feed_forward": 0,
        "encoder.1.attention": 1,
        "encoder.1.feed_forward": 12,
        "decoder.0.attention": 0,
        "decoder.0.cross_attention": 0,
        "decoder.0.feed_forward": 0,
        "decoder.1.attention": 2,
        "decoder.1.cross_attention": 1,
        "decoder.1.feed_forward": 33,
    }
    assert [len(block.input_linears) for block in blocks.values()] == [0, 0, 3, 1, 0, 0, 0, 3, 3, 1]


def test_gated_feed_forward_block_has_two_inputs(make_model):
    model = make_model("MT5Model")
    blocks = family_of(model).blocks(model)
    assert {len(block.input_linears) for name, block in blocks.items() if "feed_forward" in name} == {2}


def test_generation_config_is_kept(make_model):
    model = make_model(GENERATION)
    model.generation_config.num_beams = 4
    assert remove_units(model, selection_of(SHAPES["all of these"])).generation_config.num_beams == 4


def test_tied_embeddings_stay_tied(make_model):
    student = remove_units(make_model(GENERATION), selection_of(SHAPES["all of these"]))
    assert student.lm_head.weight is student.shared.weight is student.decoder.embed_tokens.weight


@pytest.mark.parametrize("shape", [SHAPES["all of these"], STOCK_SHAPES["the same heads"]], ids=["pruned", "stock"])
def test_untied_embeddings_stay_untied(
    make_model, make_batch, gates_of, outputs, assert_same, assert_same_weights, shape, tmp_path
):
    model = untie(make_model(GENERATION, feed_forward_proj="gated-gelu", tie_word_embeddings=False), tmp_path)
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    model, batch = model.double(), make_batch(GENERATION)
    student = prune_and_compare_with_gates(model, batch, selection_of(shape), gates_of, outputs, assert_same)
    assert student.config.scale_decoder_outputs is False
    assert torch.equal(student.lm_head.weight, model.lm_head.weight)
    assert student.shared.weight is student.encoder.embed_tokens.weight
    student.save_pretrained(tmp_path / "student")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "student")
    assert loaded.config.scale_decoder_outputs is False
    assert_same_weights(loaded, student)


def test_encoder_loads_from_a_folder_with_a_decoder(make_model, make_batch, outputs, tmp_path):
    student = remove_units(make_model(GENERATION), selection_of(SHAPES["all of these"]))
    student.save_pretrained(tmp_path)
    encoder = PrunedT5EncoderModel.from_pretrained(tmp_path)
    batch = {name: make_batch(GENERATION)[name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(
        outputs(encoder, batch)["last_hidden_state"],
        outputs(student, make_batch(GENERATION))["encoder_last_hidden_state"],
        atol=0,
        rtol=0,
    )
    units = {name: tuple(range(block.units)) for name, block in T5.blocks(encoder).items()}
    assert type(remove_units(encoder, Selection(("encoder.1",), units))) is T5EncoderModel


def test_saved_config_keeps_unrelated_fields(tmp_path):
    for family, config_class in ((T5, T5Config), (FAMILIES["mt5"], MT5Config)):
        config = config_class(feed_forward_proj="gated-silu", num_layers=3, num_decoder_layers=2, d_kv=16, num_heads=4)
        shape = {"encoder": {2: ((1,), None, 5)}, "decoder": {0: ((), (2, 3), 0), 1: ((1,), (0,), 8)}}
        pruned = family.pruned_config(config, structure_of(shape))
        assert (pruned.num_layers, pruned.num_decoder_layers, pruned.num_heads, pruned.d_kv) == (1, 2, 4, 16)
        pruned.save_pretrained(tmp_path / family.model_type)
        loaded = family.pruned_config_class.from_pretrained(tmp_path / family.model_type)
        assert family.structure(loaded) == structure_of(shape)
        assert (loaded.is_gated_act, loaded.dense_act_fn) == (True, "silu")


# ---- pruning by scores ----


@pytest.mark.parametrize("head", [head for head in T5_HEADS if "For" in head])
def test_fisher_scores_of_an_example_do_not_depend_on_its_batch(make_model, make_batch, head):
    model, batch = make_model(head).double(), make_batch(head, labelled=True)

    def count(batch):
        labels = batch.get("labels")
        return labels.ne(-100).sum() if labels is not None and labels.dim() == 2 else len(batch["input_ids"])

    def fisher_scores(batches):
        return fisher(model, batches, lambda model, batch: model(**batch).loss * count(batch))

    together = fisher_scores([batch])
    separate = fisher_scores([{name: value[row : row + 1] for name, value in batch.items()} for row in range(3)])
    for name, scores in together.units.items():
        assert scores.shape == (T5.blocks(model)[name].units,)
        assert torch.isfinite(scores).all()
        assert scores.sum() > 0
        torch.testing.assert_close(scores, separate.units[name])
    assert together.layers == pytest.approx(separate.layers)


def test_fisher_scores_of_an_encoder_without_cross_attention_are_zero(make_model, make_batch):
    shape = {"encoder": {0: (ALL_HEADS, None, 64)}, "decoder": {0: (ALL_HEADS, (), 64)}}
    scores = fisher(remove_units(make_model(GENERATION), selection_of(shape)), [make_batch(GENERATION, labelled=True)])
    assert scores.units["encoder.0.attention"].tolist() == [0, 0, 0, 0]
    assert scores.layers["encoder.0"] == 0
    assert scores.units["decoder.0.attention"].min() > 0


@pytest.mark.parametrize("head", [GENERATION, "T5ForTokenClassification"])
def test_flops_target_is_met(make_model, make_batch, head):
    model = make_model(head)
    config = PruningConfig(target_flops=2.0, multiple_of=16, latency_sequence_length=16)
    student = prune(model, config, [make_batch(head, labelled=True)])
    inputs = model_inputs(model, 1, 16)
    before, after = (measure(m, inputs, repeats=1) for m in (model, student))
    assert 2.0 <= before.flops / after.flops < 2.2
    assert after.parameters < before.parameters


def test_portable_pruning_gives_a_stock_shape_in_both_stacks(make_model, make_batch):
    config = PruningConfig(target_flops=1.5, portable=True, multiple_of=16, latency_sequence_length=16)
    student = prune(make_model(GENERATION), config, [make_batch(GENERATION, labelled=True)])
    assert type(student) is T5ForConditionalGeneration


def test_measured_inputs_of_a_seq2seq_model_end_with_the_end_token(make_model):
    inputs = model_inputs(make_model(GENERATION), 3, 20)
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "input_ids": (3, 20),
        "attention_mask": (3, 20),
        "decoder_input_ids": (3, 20),
    }
    assert inputs["input_ids"].eq(1).sum(1).tolist() == [1, 1, 1]
    assert inputs["input_ids"][:, -1].tolist() == [1, 1, 1]
    assert inputs["decoder_input_ids"].min() >= 2
    assert "decoder_input_ids" not in model_inputs(make_model("T5EncoderModel"), 3, 20)
