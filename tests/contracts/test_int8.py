"""What int8 models of every family must do: reload with the same outputs, and give every example its own answer."""

import pytest
import torch
import transformers
from heads import REPRESENTATIVE_HEADS
from torch import nn

from hf_efficient import QuantizationConfig, quantize
from hf_efficient.pruning.selection import remove_units

SCHEMES = ("int8_static", "int8_dynamic")
# Of each head with a scheme, each family with both.
CASES = [(head, SCHEMES[number % 2]) for number, head in enumerate(REPRESENTATIVE_HEADS)]
CASES += [(head, SCHEMES[1 - number % 2]) for number, head in enumerate(REPRESENTATIVE_HEADS) if number % 3 == 0]
GENERATION = "T5ForConditionalGeneration"

pytestmark = pytest.mark.usefixtures("kernels_for_tiny_weights")


@pytest.fixture
def quantized(make_model, make_batch):
    """Return an int8 model by the name of its head and its scheme."""

    def quantize_head(head, scheme, model=None):
        calibration = [make_batch(head, seed=seed) for seed in (1, 2)] if scheme == "int8_static" else None
        return quantize(make_model(head) if model is None else model, QuantizationConfig(scheme), calibration)

    return quantize_head


def pad(batch, tokens, model):
    """Return the batch with more padding; the hidden tokens are others than those of the padding before."""
    padded = {name: nn.functional.pad(values, (0, tokens)) for name, values in batch.items() if "decoder" not in name}
    padded["input_ids"][..., -tokens:] = model.config.pad_token_id
    return {**batch, **padded}


@pytest.mark.parametrize(("head", "scheme"), CASES)
def test_reloaded_model_has_equal_outputs(
    quantized, make_batch, outputs, assert_same, assert_same_weights, head, scheme, tmp_path
):
    model, batch = quantized(head, scheme), make_batch(head)
    expected = outputs(model, batch)
    model(**batch)  # weights are packed when the model is saved
    model.save_pretrained(tmp_path)
    loaded = getattr(transformers, model._auto_class).from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert_same_weights(loaded, model)
    assert_same(outputs(loaded, batch), expected, atol=0)


@pytest.mark.parametrize(("head", "scheme"), CASES)
def test_an_example_alone_in_a_batch_and_with_more_padding_has_the_same_outputs(
    quantized, make_batch, outputs, head, scheme
):
    model, batch = quantized(head, scheme), make_batch(head)
    together, padded = (outputs(model, each) for each in (batch, pad(batch, 4, model)))
    differences = {"alone": [], "padded": []}
    for row, length in enumerate((9, 6, 3)):
        alone = outputs(model, {name: values[row : row + 1] for name, values in batch.items()})
        for name in {"logits", "start_logits", "last_hidden_state"} & alone.keys():
            for other, values in (("alone", alone[name][0]), ("padded", padded[name][row])):
                expected = together[name][row]
                if expected.dim() > 1:  # of tokens, those that are no padding
                    count = min(length, len(expected)) if "decoder_input_ids" not in batch else len(expected)
                    expected, values = expected[:count], values[:count]
                elif len(expected) == 9:
                    expected, values = expected[:length], values[:length]
                differences[other].append((values - expected).abs().flatten() / expected.abs().max())
    for other, values in differences.items():
        assert float(torch.cat(values).median()) < 1e-5, other
        assert float(torch.cat(values).max()) < 0.05, other  # where a value is rounded the other way


@pytest.mark.parametrize("scheme", SCHEMES)
def test_generation_is_the_same_with_and_without_cache(quantized, make_model, make_batch, select, scheme):
    model = quantized(GENERATION, scheme, remove_units(make_model(GENERATION), select("uneven widths", GENERATION)))
    source = {name: make_batch(GENERATION)[name] for name in ("input_ids", "attention_mask")}
    results = [
        model.generate(
            **source,
            max_new_tokens=8,
            min_new_tokens=8,
            use_cache=use_cache,
            return_dict_in_generate=True,
            output_scores=True,
        )
        for use_cache in (True, False)
    ]
    assert torch.equal(results[0].sequences, results[1].sequences)
    assert len(results[0].sequences.unique()) > 3
    scores = [torch.stack(result.scores)[:, :, 2:] for result in results]
    assert float((scores[0] - scores[1]).abs().median()) < 1e-5
