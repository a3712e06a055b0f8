import pytest
import torch
from heads import enable_checkpointing
from t5_shapes import ALL_HEADS, SHAPES, STOCK_SHAPES, selection_of
from transformers import AutoModelForSeq2SeqLM
from transformers.models.t5.modeling_t5 import T5Attention

from hf_efficient.models import FAMILIES
from hf_efficient.models.pruned_t5 import PrunedT5Config
from hf_efficient.pruning.selection import Selection, remove_units

T5 = FAMILIES["t5"]
GENERATION = "T5ForConditionalGeneration"
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


@pytest.fixture
def source(make_batch):
    """Return inputs for generation, of which the second and third text are padded."""
    return {name: make_batch(GENERATION)[name] for name in ("input_ids", "attention_mask")}


def bias_table(stack):
    return stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight


@pytest.mark.parametrize(
    ("tokens", "keys", "past_tokens"), [(5, 5, 0), (1, 7, 6), (2, 7, 5), (1, 512, 511), (3, 515, 512)]
)
@pytest.mark.parametrize("shape", ["first layers without heads", "one decoder layer"])
def test_position_bias_is_that_of_the_stock_class(make_model, shape, tokens, keys, past_tokens):
    student = remove_units(make_model(GENERATION), selection_of(SHAPES[shape]))
    for stack in (student.encoder, student.decoder):
        attention = stack.block[0].layer[0].SelfAttention
        bias = attention.compute_bias(tokens, keys, past_seen_tokens=past_tokens)
        assert torch.equal(bias, T5Attention.compute_bias(attention, tokens, keys, past_seen_tokens=past_tokens))


def test_position_bias_can_be_trained_after_inference(make_model, make_batch):
    student = remove_units(make_model(GENERATION), selection_of(SHAPES["different heads"]))
    batch = make_batch(GENERATION)
    with torch.inference_mode():
        student(**batch)
    student(**batch).logits.square().sum().backward()
    for stack in (student.encoder, student.decoder):
        assert bias_table(stack).grad.abs().sum() > 0


def test_bias_table_moves_to_the_first_kept_layer(make_model):
    model = make_model(GENERATION)
    student = remove_units(model, selection_of(SHAPES["without the first layers"]))
    for stack in ("encoder", "decoder"):
        assert torch.equal(bias_table(getattr(student, stack)), bias_table(getattr(model, stack)))


def test_bias_table_of_a_stock_shape_has_the_columns_of_its_heads(make_model):
    model = make_model(GENERATION)
    student = remove_units(model, selection_of(STOCK_SHAPES["as many heads, the same in each stack"]))
    for stack, columns in (("encoder", [0, 3]), ("decoder", [1, 2])):
        assert torch.equal(bias_table(getattr(student, stack)), bias_table(getattr(model, stack))[:, columns])


@pytest.mark.parametrize(
    ("shape", "attention"),
    [(shape, ("sdpa", "eager")[index % 2]) for index, shape in enumerate(SHAPES)] + [("all of these", "sdpa")],
)
def test_generation_is_the_same_with_and_without_cache(make_model, source, shape, attention):
    student = remove_units(make_model(GENERATION, attn_implementation=attention), selection_of(SHAPES[shape]))
    cached = student.generate(**source, **GREEDY, use_cache=True)
    assert torch.equal(cached, student.generate(**source, **GREEDY, use_cache=False))
    last_text_alone = student.generate(source["input_ids"][2:, :3], **GREEDY, use_cache=True)
    assert torch.equal(last_text_alone, cached[2:])


@pytest.mark.parametrize("is_pruned", [True, False])
def test_decoder_deeper_than_the_encoder_generates_with_cache_after_reload(make_model, source, is_pruned, tmp_path):
    shape = {"encoder": {2: (ALL_HEADS, None, 64)}, "decoder": dict.fromkeys(range(3), (ALL_HEADS, ALL_HEADS, 64))}
    if is_pruned:
        shape = SHAPES["one encoder layer"]
    student = remove_units(make_model(GENERATION), selection_of(shape))
    student.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert isinstance(loaded.config, PrunedT5Config) is is_pruned
    cached = loaded.generate(**source, **GREEDY, use_cache=True)
    assert torch.equal(cached, student.generate(**source, **GREEDY, use_cache=False))
    # The field is not needed any more once the encoder is as deep as the decoder.
    units = {name: tuple(range(block.units)) for name, block in T5.blocks(loaded).items()}
    equally_deep = remove_units(loaded, Selection(("encoder.0", "decoder.1"), units))
    assert not hasattr(equally_deep.config, "decoder_layers")


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_of_several_steps_are_those_of_one_pass(make_model, source, shape):
    student = remove_units(make_model(GENERATION).double(), selection_of(SHAPES[shape]))
    tokens = torch.tensor([[0, 5, 77, 31, 8, 60]]).expand(3, -1)
    with torch.no_grad():
        expected = student(**source, decoder_input_ids=tokens).logits
        cache, logits = None, []
        for start, end in ((0, 2), (2, 3), (3, 6)):
            step = student(**source, decoder_input_ids=tokens[:, start:end], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            logits.append(step.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, atol=1e-9, rtol=1e-9)
    assert cache.get_seq_length() == 6


@pytest.mark.parametrize("shape", ["first layers without heads", "all of these"])
def test_beam_search_is_the_same_with_and_without_cache(make_model, source, shape):
    student = remove_units(make_model(GENERATION).double(), selection_of(SHAPES[shape]))
    options = {"max_new_tokens": 8, "num_beams": 3, "length_penalty": 2.0}
    cached = student.generate(**source, **options, use_cache=True)
    assert torch.equal(cached, student.generate(**source, **options, use_cache=False))
    assert not torch.equal(cached, student.generate(**source, max_new_tokens=8, num_beams=1))


@pytest.mark.parametrize("shape", ["different heads", "first layers without heads"])
def test_generation_is_the_same_with_a_static_cache(make_model, source, shape):
    student = remove_units(make_model(GENERATION), selection_of(SHAPES[shape]))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "disable_compile": True}
    static = student.generate(**source, **options, cache_implementation="static")
    assert torch.equal(static, student.generate(**source, **options))


def test_attention_weights_are_returned_for_layers_with_heads(make_model, make_batch):
    model = make_model(GENERATION, attn_implementation="eager")
    student = remove_units(model, selection_of(SHAPES["first layers without heads"]))
    outputs = student(**make_batch(GENERATION), output_attentions=True)
    assert [attention.shape[1] for attention in outputs.encoder_attentions] == [1, 4]
    assert [attention.shape[1] for attention in outputs.decoder_attentions] == [2]
    assert [attention.shape[1] for attention in outputs.cross_attentions] == [4, 4, 1]


@pytest.mark.parametrize("shape", ["different heads", "first layers without heads", "all of these"])
def test_gradient_checkpointing_gives_the_same_gradients(make_model, make_batch, shape):
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
    expected = gradients()
    enable_checkpointing(student)
    checkpointed = gradients()
    assert expected.keys() == checkpointed.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-10, rtol=1e-10)
    assert expected["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].abs().sum() > 0
