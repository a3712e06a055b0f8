import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    MT5Config,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)
from transformers.models.t5.modeling_t5 import T5Attention

from hf_efficient import PruningConfig, measure, prune
from hf_efficient.measurement.comparison import model_inputs
from hf_efficient.models import FAMILIES, LayerStructure, Structure, family_of
from hf_efficient.models.pruned_t5 import PrunedT5Config, PrunedT5EncoderModel, PrunedT5ForConditionalGeneration
from hf_efficient.models.t5_attention import T5SubsetAttention
from hf_efficient.pruning.gates import apply_gates
from hf_efficient.pruning.selection import Selection, remove_units
from hf_efficient.pruning.unit_criteria import fisher

T5 = FAMILIES["t5"]
ALL = (0, 1, 2, 3)
GENERATION = "T5ForConditionalGeneration"
# For each layer that stays: heads, heads of cross attention (None in the encoder), neurons.
SHAPES = {
    "different heads": {
        "encoder": {0: ((1, 3), None, 20), 1: ((0,), None, 7), 2: ((0, 2, 3), None, 64)},
        "decoder": {0: ((2,), (0, 1), 9), 1: ((0, 3), (1, 2, 3), 64), 2: ((1, 2), (3,), 5)},
    },
    "no heads in the first layers": {
        "encoder": {0: ((), None, 64), 1: ((3,), None, 64), 2: (ALL, None, 64)},
        "decoder": {0: ((), ALL, 64), 1: ((1, 2), ALL, 64), 2: ((), (0,), 64)},
    },
    "no heads that look at the encoder": {
        "encoder": {0: (ALL, None, 64), 1: (ALL, None, 64), 2: (ALL, None, 64)},
        "decoder": {0: (ALL, (), 64), 1: (ALL, (2,), 64), 2: (ALL, (), 64)},
    },
    "no neurons": {
        "encoder": {0: (ALL, None, 0), 1: (ALL, None, 64), 2: (ALL, None, 0)},
        "decoder": {0: (ALL, ALL, 64), 1: (ALL, ALL, 0), 2: (ALL, ALL, 0)},
    },
    "first layers gone": {
        "encoder": {1: ((1, 3), None, 64), 2: ((0, 2), None, 64)},
        "decoder": {1: ((2,), ALL, 64), 2: ((0, 1, 3), ALL, 64)},
    },
    "one decoder layer": {
        "encoder": {0: (ALL, None, 64), 1: ((0,), None, 64), 2: (ALL, None, 64)},
        "decoder": {2: ((1, 3), (0, 2), 30)},
    },
    "one encoder layer": {
        "encoder": {1: ((), None, 10)},
        "decoder": {0: ((), (0, 2), 30), 1: ((3,), ALL, 30), 2: ((1, 3), (0, 2), 30)},
    },
    "all at once": {
        "encoder": {1: ((), None, 0), 2: ((3,), None, 12)},
        "decoder": {1: ((), (), 0), 2: ((1, 2), (0,), 33)},
    },
}
STOCK_SHAPES = {
    "fewer layers": {
        "encoder": {1: (ALL, None, 64), 2: (ALL, None, 64)},
        "decoder": {0: (ALL, ALL, 64)},
    },
    "one width": {
        "encoder": {0: (ALL, None, 24), 1: (ALL, None, 24), 2: (ALL, None, 24)},
        "decoder": {0: (ALL, ALL, 24), 1: (ALL, ALL, 24), 2: (ALL, ALL, 24)},
    },
    "the same heads": {
        "encoder": {0: ((1, 3), None, 64), 2: ((1, 3), None, 64)},
        "decoder": {1: ((1, 3), (1, 3), 64), 2: ((1, 3), (1, 3), 64)},
    },
    "as many heads, the same in each stack": {
        "encoder": {1: ((0, 3), None, 64)},
        "decoder": {0: ((1, 2), (0, 1), 64), 2: ((1, 2), (2, 3), 64)},
    },
    "a decoder without layers": {"encoder": {0: (ALL, None, 64)}, "decoder": {}},
}


def selection_of(shape, seed=0):
    """Returns the selection that leaves a tiny model in `shape`, with neurons drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    layers, units = [], {}
    for stack in ("encoder", "decoder"):
        for index in range(3):
            name = f"{stack}.{index}"
            heads, cross, neurons = shape[stack].get(index, ((), (), 0))
            layers += [name] if index in shape[stack] else []
            units[f"{name}.attention"] = tuple(heads)
            if stack == "decoder":
                units[f"{name}.cross_attention"] = tuple(cross)
            units[f"{name}.feed_forward"] = tuple(sorted(torch.randperm(64, generator=generator)[:neurons].tolist()))
    return Selection(tuple(layers), units)


def within(model, selection):
    """Returns `selection` without the blocks that `model` does not have, as encoder-only classes need it."""
    family = family_of(model)
    layers = tuple(name for name in selection.layers if name in family.layers(model))
    return Selection(layers, {name: selection.units[name] for name in family.blocks(model)})


def structure_of(shape):
    return Structure(
        {
            stack: tuple(
                LayerStructure(
                    index,
                    {"attention": heads} | ({} if cross is None else {"cross_attention": cross}),
                    {"feed_forward": neurons},
                )
                for index, (heads, cross, neurons) in shape[stack].items()
            )
            for stack in ("encoder", "decoder")
        }
    )


def untied(model, tmp_path):
    """Returns `model` as it loads when its output embeddings differ from its input embeddings, as Flan-T5's do."""
    whole = copy.deepcopy(model)
    whole.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight) * 0.3)
    whole.all_tied_weights_keys.pop("lm_head.weight")
    whole.save_pretrained(tmp_path / "untied")
    return type(model).from_pretrained(tmp_path / "untied")


@pytest.fixture
def source(make_batch):
    """Inputs of generation, the second and third text padded."""
    return {name: make_batch(GENERATION)[name] for name in ("input_ids", "attention_mask")}


def check_cut(model, batch, selection, gates_of, outputs, assert_same):
    selection = within(model, selection)
    units, layers = gates_of(model, selection)
    with apply_gates(model, units, layers):
        expected = outputs(model, batch)
    student = remove_units(model, selection)
    assert_same(outputs(student, batch), expected, atol=1e-9)
    return student


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("head", ["T5ForConditionalGeneration", "MT5ForConditionalGeneration"])
def test_cut_equals_gated_in_every_shape(make_model, make_batch, gates_of, outputs, assert_same, head, shape):
    model, batch = make_model(head).double(), make_batch(head)
    student = check_cut(model, batch, selection_of(SHAPES[shape]), gates_of, outputs, assert_same)
    assert family_of(student).structure(student.config) == structure_of(SHAPES[shape])
    assert student.config.model_type == f"pruned_{model.config.model_type}"


@pytest.mark.parametrize("shape", STOCK_SHAPES)
@pytest.mark.parametrize("head", [cls.__name__ for cls in T5.pruned_classes])
def test_stock_shapes_get_stock_classes(make_model, make_batch, gates_of, outputs, assert_same, head, shape):
    model, batch = make_model(head).double(), make_batch(head)
    student = check_cut(model, batch, selection_of(STOCK_SHAPES[shape]), gates_of, outputs, assert_same)
    assert type(student) is type(model)
    assert type(student.config) is T5Config
    first = next(iter(STOCK_SHAPES[shape]["encoder"].values()))
    config = student.config
    assert (config.num_heads, config.d_kv, config.d_ff) == (len(first[0]), 8, first[2])
    assert config.num_layers == len(STOCK_SHAPES[shape]["encoder"])
    if config.is_encoder_decoder:
        assert config.num_decoder_layers == len(STOCK_SHAPES[shape]["decoder"])
    assert not [module for module in student.modules() if isinstance(module, T5SubsetAttention)]


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"encoder": {0: ((0, 1), None, 64), 1: ((0, 2), None, 64)}}, id="other heads in a layer"),
        pytest.param({"decoder": {0: ((0, 1), (0, 1, 2), 64)}}, id="another number in cross attention"),
        pytest.param({"decoder": {0: ((0, 1), (0, 1), 32)}}, id="another width in the decoder"),
        pytest.param({"encoder": {0: ((), None, 64)}, "decoder": {0: ((), (), 64)}}, id="no heads"),
    ],
)
def test_other_shapes_need_the_pruned_config(make_model, changed):
    shape = {"encoder": {0: ((0, 1), None, 64)}, "decoder": {0: ((0, 1), (0, 1), 64)}}
    config = make_model(GENERATION).config
    assert type(T5.config_for(config, structure_of(shape))) is T5Config
    assert type(T5.config_for(config, structure_of({**shape, **changed}))) is PrunedT5Config


@pytest.mark.parametrize(("tokens", "keys", "seen"), [(5, 5, 0), (1, 7, 6), (2, 7, 5), (1, 512, 511), (3, 515, 512)])
@pytest.mark.parametrize("shape", ["no heads in the first layers", "one decoder layer"])
def test_position_bias_is_that_of_the_stock_class(make_model, shape, tokens, keys, seen):
    student = remove_units(make_model(GENERATION), selection_of(SHAPES[shape]))
    for stack in (student.encoder, student.decoder):
        attention = stack.block[0].layer[0].SelfAttention
        ours = attention.compute_bias(tokens, keys, past_seen_tokens=seen)
        assert torch.equal(ours, T5Attention.compute_bias(attention, tokens, keys, past_seen_tokens=seen))


def test_position_bias_trains_after_inference(make_model, make_batch):
    student, batch = (
        remove_units(make_model(GENERATION), selection_of(SHAPES["different heads"])),
        make_batch(GENERATION),
    )
    with torch.inference_mode():
        student(**batch)
    student(**batch).logits.square().sum().backward()
    for stack in (student.encoder, student.decoder):
        assert stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.grad.abs().sum() > 0


def test_table_moves_to_the_new_first_layer(make_model):
    model = make_model(GENERATION)
    student = remove_units(model, selection_of(SHAPES["first layers gone"]))
    for stack in ("encoder", "decoder"):
        table = getattr(model, stack).block[0].layer[0].SelfAttention.relative_attention_bias.weight
        moved = getattr(student, stack).block[0].layer[0].SelfAttention.relative_attention_bias.weight
        assert torch.equal(moved, table)


def test_table_of_a_stock_shape_has_the_columns_of_its_heads(make_model):
    model = make_model(GENERATION)
    student = remove_units(model, selection_of(STOCK_SHAPES["as many heads, the same in each stack"]))
    for stack, columns in (("encoder", [0, 3]), ("decoder", [1, 2])):
        table = getattr(model, stack).block[0].layer[0].SelfAttention.relative_attention_bias.weight
        kept = getattr(student, stack).block[0].layer[0].SelfAttention.relative_attention_bias.weight
        assert torch.equal(kept, table[:, columns])


def test_cut_twice_keeps_counting_in_the_unpruned_network(make_model, make_batch, gates_of, outputs, assert_same):
    batch = make_batch(GENERATION)
    once = remove_units(make_model(GENERATION).double(), selection_of(SHAPES["different heads"]))
    second = Selection(
        ("encoder.1", "encoder.2", "decoder.1"),
        {name: tuple(range(block.units))[-2:] for name, block in T5.blocks(once).items()},
    )
    with apply_gates(once, *gates_of(once, second)):
        expected = outputs(once, batch)
    twice = remove_units(once, second)
    assert_same(outputs(twice, batch), expected, atol=1e-9)
    assert twice.config.structure == {
        "encoder": [
            {"source": 1, "heads": {"attention": [0]}, "neurons": {"feed_forward": 2}},
            {"source": 2, "heads": {"attention": [2, 3]}, "neurons": {"feed_forward": 2}},
        ],
        "decoder": [
            {"source": 1, "heads": {"attention": [0, 3], "cross_attention": [2, 3]}, "neurons": {"feed_forward": 2}}
        ],
    }


def test_pruned_shape_can_become_stock_again(make_model, make_batch, gates_of, outputs, assert_same):
    once = remove_units(make_model(GENERATION).double(), selection_of(SHAPES["different heads"]))
    units = {name: (0,) if "attention" in name else (0, 1, 2) for name in T5.blocks(once)}
    second = Selection(("encoder.0", "decoder.1"), units)  # head 1 of the encoder, 0 of the decoder
    batch = make_batch(GENERATION)
    with apply_gates(once, *gates_of(once, second)):
        expected = outputs(once, batch)
    twice = remove_units(once, second)
    assert type(twice) is T5ForConditionalGeneration
    assert (twice.config.model_type, twice.config.num_heads, twice.config.d_ff) == ("t5", 1, 3)
    assert_same(outputs(twice, batch), expected, atol=1e-9)


def test_nothing_removed_gives_the_same_stock_model(make_model, assert_same_weights):
    model = make_model(GENERATION)
    everything = Selection(tuple(T5.layers(model)), {n: tuple(range(b.units)) for n, b in T5.blocks(model).items()})
    same = remove_units(model, everything)
    assert type(same) is T5ForConditionalGeneration
    assert same.config.to_dict() == {**model.config.to_dict(), "dtype": "float32"}
    assert_same_weights(same, model)


def test_empty_blocks_hold_no_weights(make_model):
    student = remove_units(make_model(GENERATION), selection_of(SHAPES["all at once"]))
    assert [name for name, _ in student.encoder.block[0].named_parameters()] == [
        "layer.0.SelfAttention.relative_attention_bias.weight"
    ]
    assert [name for name, _ in student.decoder.block[0].named_parameters()] == [
        "layer.0.SelfAttention.relative_attention_bias.weight"
    ]


def test_block_without_heads_still_says_what_it_is(make_model):
    blocks = T5.blocks(remove_units(make_model(GENERATION), selection_of(SHAPES["all at once"])))
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


def test_gated_feed_forward_has_two_inputs(make_model):
    blocks = family_of(make_model("MT5Model")).blocks(make_model("MT5Model"))
    assert {len(block.input_linears) for name, block in blocks.items() if "feed_forward" in name} == {2}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("shape", SHAPES)
def test_generates_the_same_with_and_without_cache(make_model, source, shape, attention):
    student = remove_units(make_model(GENERATION, attn_implementation=attention), selection_of(SHAPES[shape]))
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    cached = student.generate(**source, **options, use_cache=True)
    assert torch.equal(cached, student.generate(**source, **options, use_cache=False))
    alone = student.generate(source["input_ids"][2:, :3], **options, use_cache=True)
    assert torch.equal(alone, cached[2:])


@pytest.mark.parametrize("pruned", [True, False])
def test_deeper_decoder_generates_with_cache_after_a_reload(make_model, source, pruned, tmp_path):
    shape = {"encoder": {2: (ALL, None, 64)}, "decoder": dict.fromkeys(range(3), (ALL, ALL, 64))}
    if pruned:
        shape = SHAPES["one encoder layer"]
    student = remove_units(make_model(GENERATION), selection_of(shape))
    student.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert isinstance(loaded.config, PrunedT5Config) is pruned
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    cached = loaded.generate(**source, **options, use_cache=True)
    assert torch.equal(cached, student.generate(**source, **options, use_cache=False))
    # Cut so that the encoder is as deep again, there is nothing to say.
    units = {name: tuple(range(block.units)) for name, block in T5.blocks(loaded).items()}
    again = remove_units(loaded, Selection(("encoder.0", "decoder.1"), units))
    assert not hasattr(again.config, "decoder_layers")


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_step_by_step_are_those_of_one_pass(make_model, source, shape):
    student = remove_units(make_model(GENERATION).double(), selection_of(SHAPES[shape]))
    written = torch.tensor([[0, 5, 77, 31, 8, 60]]).expand(3, -1)
    with torch.no_grad():
        whole = student(**source, decoder_input_ids=written).logits
        cache, steps = None, []
        for start, end in ((0, 2), (2, 3), (3, 6)):
            step = student(**source, decoder_input_ids=written[:, start:end], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            steps.append(step.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-9, rtol=1e-9)
    assert cache.get_seq_length() == 6


@pytest.mark.parametrize("shape", ["no heads in the first layers", "all at once"])
def test_beam_search_is_the_same_with_and_without_cache(make_model, source, shape):
    student = remove_units(make_model(GENERATION).double(), selection_of(SHAPES[shape]))
    options = {"max_new_tokens": 8, "num_beams": 3, "length_penalty": 2.0}
    cached = student.generate(**source, **options, use_cache=True)
    assert torch.equal(cached, student.generate(**source, **options, use_cache=False))
    assert not torch.equal(cached, student.generate(**source, max_new_tokens=8, num_beams=1))


@pytest.mark.parametrize("shape", ["different heads", "no heads in the first layers"])
def test_generates_the_same_with_a_cache_of_fixed_length(make_model, source, shape):
    student = remove_units(make_model(GENERATION), selection_of(SHAPES[shape]))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "disable_compile": True}
    fixed = student.generate(**source, **options, cache_implementation="static")
    assert torch.equal(fixed, student.generate(**source, **options))


def test_attentions_of_the_layers_that_have_heads_are_reported(make_model, make_batch):
    student = remove_units(
        make_model(GENERATION, attn_implementation="eager"), selection_of(SHAPES["no heads in the first layers"])
    )
    answer = student(**make_batch(GENERATION), output_attentions=True)
    assert [attention.shape[1] for attention in answer.encoder_attentions] == [1, 4]
    assert [attention.shape[1] for attention in answer.decoder_attentions] == [2]
    assert [attention.shape[1] for attention in answer.cross_attentions] == [4, 4, 1]


def test_generation_config_is_kept(make_model):
    model = make_model(GENERATION)
    model.generation_config.num_beams = 4
    assert remove_units(model, selection_of(SHAPES["all at once"])).generation_config.num_beams == 4


def test_tied_embeddings_stay_tied(make_model):
    student = remove_units(make_model(GENERATION), selection_of(SHAPES["all at once"]))
    assert student.lm_head.weight is student.shared.weight is student.decoder.embed_tokens.weight


@pytest.mark.parametrize("shape", [SHAPES["all at once"], STOCK_SHAPES["the same heads"]], ids=["pruned", "stock"])
def test_embeddings_that_differ_stay_different(
    make_model, make_batch, gates_of, outputs, assert_same, assert_same_weights, shape, tmp_path
):
    model = untied(make_model(GENERATION, feed_forward_proj="gated-gelu", tie_word_embeddings=False), tmp_path)
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    model, batch = model.double(), make_batch(GENERATION)
    student = check_cut(model, batch, selection_of(shape), gates_of, outputs, assert_same)
    assert student.config.scale_decoder_outputs is False
    assert torch.equal(student.lm_head.weight, model.lm_head.weight)
    assert student.shared.weight is student.encoder.embed_tokens.weight
    student.save_pretrained(tmp_path / "student")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "student")
    assert loaded.config.scale_decoder_outputs is False
    assert_same_weights(loaded, student)


def test_encoder_alone_is_found_in_a_folder_with_a_decoder(make_model, make_batch, outputs, tmp_path):
    student = remove_units(make_model(GENERATION), selection_of(SHAPES["all at once"]))
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


def test_config_round_trip_keeps_what_pruning_does_not_change(make_model, tmp_path):
    for family, config_class in ((T5, T5Config), (FAMILIES["mt5"], MT5Config)):
        config = config_class(feed_forward_proj="gated-silu", num_layers=3, num_decoder_layers=2, d_kv=16, num_heads=4)
        shape = {"encoder": {2: ((1,), None, 5)}, "decoder": {0: ((), (2, 3), 0), 1: ((1,), (0,), 8)}}
        pruned = family.pruned_config(config, structure_of(shape))
        assert (pruned.num_layers, pruned.num_decoder_layers, pruned.num_heads, pruned.d_kv) == (1, 2, 4, 16)
        pruned.save_pretrained(tmp_path / family.model_type)
        loaded = family.pruned_config_class.from_pretrained(tmp_path / family.model_type)
        assert family.structure(loaded) == structure_of(shape)
        assert (loaded.is_gated_act, loaded.dense_act_fn) == (True, "silu")


@pytest.mark.parametrize("shape", ["different heads", "no heads in the first layers", "all at once"])
def test_activation_checkpointing_gives_the_same_gradients(make_model, make_batch, shape):
    student = remove_units(make_model(GENERATION), selection_of(SHAPES[shape])).double()
    student.config.dropout_rate = 0.0
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    batch = make_batch(GENERATION, labelled=True)

    def gradients():
        student.zero_grad()
        student(**batch).logits.square().sum().backward()
        return {name: parameter.grad.clone() for name, parameter in student.named_parameters()}

    student.train()
    plain = gradients()
    student.activation_checkpointing_enable()
    again = gradients()
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-10, rtol=1e-10)
    assert plain["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].abs().sum() > 0


@pytest.mark.parametrize("head", [cls.__name__ for cls in T5.pruned_classes if "For" in cls.__name__])
def test_fisher_of_an_example_does_not_depend_on_its_batch(make_model, make_batch, head):
    model, batch = make_model(head).double(), make_batch(head, labelled=True)

    def total(batches):
        return fisher(model, batches, lambda model, batch: model(**batch).loss * tokens(batch))

    def tokens(batch):
        labels = batch.get("labels")
        return labels.ne(-100).sum() if labels is not None and labels.dim() == 2 else len(batch["input_ids"])

    whole = total([batch])
    alone = total([{name: value[row : row + 1] for name, value in batch.items()} for row in range(3)])
    for name, scores in whole.units.items():
        assert scores.shape == (T5.blocks(model)[name].units,)
        assert torch.isfinite(scores).all()
        assert scores.sum() > 0
        torch.testing.assert_close(scores, alone.units[name])
    assert whole.layers == pytest.approx(alone.layers)


def test_fisher_of_a_model_whose_decoder_does_not_look_at_the_encoder(make_model, make_batch):
    shape = {
        "encoder": {0: (ALL, None, 64)},
        "decoder": {0: (ALL, (), 64)},
    }
    scores = fisher(remove_units(make_model(GENERATION), selection_of(shape)), [make_batch(GENERATION, labelled=True)])
    assert scores.units["encoder.0.attention"].tolist() == [0, 0, 0, 0]
    assert scores.layers["encoder.0"] == 0
    assert scores.units["decoder.0.attention"].min() > 0


@pytest.mark.parametrize("head", [cls.__name__ for cls in T5.pruned_classes if "For" in cls.__name__])
def test_prunes_to_a_target_of_flops(make_model, make_batch, head):
    model = make_model(head)
    config = PruningConfig(target_flops=2.0, multiple_of=16, latency_sequence_length=16)
    student = prune(model, config, [make_batch(head, labelled=True)])
    inputs = model_inputs(model, 1, 16)
    before, after = (measure(m, inputs, repeats=1) for m in (model, student))
    assert 2.0 <= before.flops / after.flops < 2.2
    assert after.parameters < before.parameters


def test_portable_prunes_both_stacks_to_a_stock_shape(make_model, make_batch):
    config = PruningConfig(target_flops=1.5, portable=True, multiple_of=16, latency_sequence_length=16)
    student = prune(make_model(GENERATION), config, [make_batch(GENERATION, labelled=True)])
    assert type(student) is T5ForConditionalGeneration


def test_inputs_of_a_seq2seq_model_end_with_the_end_token(make_model):
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


def test_generates_the_same_where_the_package_is_not_installed(make_model, source, tmp_path):
    student = remove_units(make_model(GENERATION), selection_of(SHAPES["all at once"]))
    student.save_pretrained(tmp_path / "student")
    torch.save(dict(source), tmp_path / "source.pt")
    code = """
import json, sys
sys.modules["hf_efficient"] = None
import torch
from transformers import AutoModelForSeq2SeqLM
torch.set_num_threads(1)
model = AutoModelForSeq2SeqLM.from_pretrained("student", trust_remote_code=True)
with torch.no_grad():
    tokens = model.generate(**torch.load("source.pt"), max_new_tokens=8, min_new_tokens=8)
total = sum(float(value.double().sum()) for value in model.state_dict().values())
print(json.dumps([type(model).__name__, tokens.tolist(), total]))
"""
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    name, tokens, total = json.loads(done.stdout.splitlines()[-1])
    assert name == PrunedT5ForConditionalGeneration.__name__
    assert tokens == student.generate(**source, max_new_tokens=8, min_new_tokens=8).tolist()
    assert total == sum(float(value.double().sum()) for value in student.state_dict().values())
    assert sorted(path.name for path in Path(tmp_path / "student").glob("*.py")) == [
        "codebook.py",
        "pruned_t5.py",
        "structure.py",
        "t5_attention.py",
        "t5_family.py",
    ]
