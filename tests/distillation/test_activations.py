import copy
import re

import pytest
import torch
from heads import CLASSIFIERS, HEADS, enable_checkpointing

from hf_efficient import DistillationConfig
from hf_efficient.distillation.activations import (
    EMBEDDINGS,
    HIDDEN,
    KEYS,
    QUERIES,
    VALUES,
    capture_activations,
    self_attention_blocks,
    token_masks,
)
from hf_efficient.distillation.distiller import Distiller
from hf_efficient.distillation.teacher import Teacher
from hf_efficient.models import family_of
from hf_efficient.pruning.selection import remove_units

DECODERS = ["T5Model", "T5ForConditionalGeneration", "MT5ForConditionalGeneration"]
NO_DROPOUT = {
    "distilbert": {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
    "t5": {"dropout_rate": 0.0},
    "mt5": {"dropout_rate": 0.0},
    "bart": {"dropout": 0.0},
}
CHECKPOINTED = [head for head in CLASSIFIERS if HEADS[head][1].supports_gradient_checkpointing]
ATTENTION_IS_COMPARED = [head for head in CLASSIFIERS if HEADS[head][0].attention_scores_differ is None]


def without_dropout(head):
    """Return the changes of a config that turn off dropout."""
    family, _ = HEADS[head]
    return NO_DROPOUT.get(family.model_type, {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})


def count_hooks(model):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, name)) for module in model.modules() for name in hooks)


@pytest.mark.parametrize("head", [*CLASSIFIERS, *DECODERS, "BertForMultipleChoice", "T5EncoderModel"])
def test_hidden_states_are_those_that_the_model_returns(make_model, make_batch, head):
    model, batch = make_model(head), make_batch(head)
    with torch.no_grad():
        outputs = model(**batch, output_hidden_states=True)  # transformers adds hooks of its own
    stacks, before = family_of(model).stacks(model), count_hooks(model)
    keys = [(HIDDEN, layer) for layer in family_of(model).layers(model)]
    keys += [(EMBEDDINGS, stack) for stack in stacks]
    with torch.no_grad(), capture_activations(model, keys) as activations:
        model(**batch)
    assert activations.keys() == set(keys)
    assert count_hooks(model) == before
    for stack in stacks:
        expected = outputs.get("hidden_states") if len(stacks) == 1 else outputs[f"{stack}_hidden_states"]
        expected = expected[:: family_of(model).repetitions(model.config)]
        states = [activations[EMBEDDINGS, stack], *(activations[HIDDEN, f"{stack}.{index}"] for index in range(3))]
        norm = getattr(getattr(model.base_model, stack, None), "final_layer_norm", None)
        norm = getattr(model.base_model, "final_norm", norm)
        if norm is not None:  # T5 and ModernBERT apply it to the last hidden states that they return
            states[-1] = norm(states[-1])
        assert len(expected) == len(states) == 4
        for actual, returned in zip(states, expected, strict=True):
            assert torch.equal(actual, returned)
        assert not torch.equal(states[1], states[2])


@pytest.mark.parametrize("head", [*CLASSIFIERS, *DECODERS])
def test_queries_keys_and_values_have_the_width_of_the_kept_heads(make_model, make_batch, select, head):
    batch = make_batch(head)
    for model, widths in (
        (make_model(head), (32, 32, 32)),
        (remove_units(make_model(head), select("uneven widths", head)), (16, 8, 32)),
    ):
        blocks = self_attention_blocks(model)
        assert blocks.keys() == family_of(model).layers(model).keys()
        activation_keys = [(kind, layer) for layer in blocks for kind in (QUERIES, KEYS, VALUES)]
        with torch.no_grad(), capture_activations(model, activation_keys) as activations:
            model(**batch)
        for (_, layer), values in activations.items():
            tokens = 5 if layer.startswith("decoder") and "decoder_input_ids" in batch else 9
            assert values.shape == (3, tokens, widths[int(layer.partition(".")[2])])


@pytest.mark.parametrize("head", [*ATTENTION_IS_COMPARED, *DECODERS])
def test_queries_and_keys_give_the_attention_weights_of_the_model(make_model, make_batch, head):
    model, batch = make_model(head, attn_implementation="eager"), make_batch(head)
    activation_keys = [(kind, "encoder.0") for kind in (QUERIES, KEYS)]
    block = self_attention_blocks(model)["encoder.0"]
    with torch.no_grad(), capture_activations(model, activation_keys) as activations:
        outputs = model(**batch, output_attentions=True)
    expected = outputs["encoder_attentions" if "encoder_attentions" in outputs else "attentions"]
    queries, keys = (activations[key].view(3, 9, 4, 8).transpose(1, 2) for key in activation_keys)
    scores, attention = queries @ keys.transpose(-1, -2), getattr(block.owner, block.compute)
    # T5 does not scale the scores, and adds a position bias, as MPNet does.
    scores = scores + attention.compute_bias(9, 9) if "T5" in head else scores / 8**0.5
    if "MPNet" in head:
        scores = scores + model.base_model.encoder.compute_position_bias(batch["input_ids"])
    scores = scores.masked_fill(~batch["attention_mask"].bool()[:, None, None, :], torch.finfo(torch.float32).min)
    torch.testing.assert_close(scores.softmax(-1), expected[0], atol=1e-5, rtol=1e-5)


def test_layers_without_heads_have_no_self_attention(make_model, select):
    student = remove_units(make_model(), select("a block without heads"))
    assert list(self_attention_blocks(student)) == ["encoder.0", "encoder.2"]


def test_activations_that_are_not_computed_are_named(make_model, make_batch, select):
    student = remove_units(make_model(), select("a block without heads"))
    message = "PrunedBertForSequenceClassification computed no queries of encoder.1: choose other layers with"
    with pytest.raises(ValueError, match=re.escape(message)), capture_activations(student, [(QUERIES, "encoder.1")]):
        student(**make_batch())
    assert count_hooks(student) == 0


def test_failed_forward_pass_leaves_no_hooks_and_its_own_error(make_model):
    model = make_model()
    with (
        pytest.raises(ZeroDivisionError),
        capture_activations(model, [(HIDDEN, "encoder.1"), (EMBEDDINGS, "encoder")]),
    ):
        raise ZeroDivisionError
    assert count_hooks(model) == 0


@pytest.mark.parametrize("head", [*CHECKPOINTED, "T5ForConditionalGeneration", "MT5ForConditionalGeneration"])
def test_gradient_checkpointing_changes_no_gradient_and_captures_once(make_model, make_batch, head):
    batch = make_batch(head, labelled=True)
    teacher = make_model(head, seed=1)
    plain = make_model(head, **without_dropout(head)).train()
    checkpointed = copy.deepcopy(plain)
    enable_checkpointing(checkpointed)
    config = DistillationConfig(
        hard_label_weight=0,
        logits_weight=0,
        hidden_weight=1.0,
        attention_weight=float(HEADS[head][0].attention_scores_differ is None),
        relation_weight=1.0,
    )
    gradients, calls = [], []
    for student in (plain, checkpointed):
        distiller = Distiller(Teacher([teacher]), config)
        distiller.prepare(student)
        runs = []
        query = self_attention_blocks(student)["encoder.0"].input_linears[0]
        handle = query.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        with distiller.capture() as activations:
            outputs = student(**batch)
        before = dict(activations)
        terms = distiller(batch, outputs, activations)
        assert len({term.name for term in terms}) == (3 if config.attention_weight else 2)
        sum(term.sum for term in terms).backward()
        handle.remove()
        assert all(activations[name] is value for name, value in before.items())
        assert all(value.requires_grad for value in before.values())
        gradients.append({n: p.grad for n, p in student.named_parameters() if p.grad is not None})
        calls.append(len(runs))
    assert calls[1] == 2 * calls[0]  # the second ones, in the backward pass, are not captured
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-6, atol=1e-5 * float(expected.abs().max()))
    queries = [
        name for name in gradients[0] if re.search(r"0.*(query|q_lin|\.q|query_proj|q_proj|Wqkv)\.weight", name)
    ]
    assert queries
    assert all(float(gradients[0][name].abs().sum()) > 0 for name in queries)


# ---- tokens that are not padding ----

MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])
LABELS = torch.tensor([[5, -100], [7, 8]])


@pytest.mark.parametrize(
    ("inputs", "stack", "expected"),
    [
        ({"input_ids": MASK, "attention_mask": MASK}, "encoder", [[1, 1, 1], [1, 0, 0]]),
        ({"input_ids": MASK}, "encoder", [[1, 1, 1], [1, 1, 1]]),
        ({"inputs_embeds": torch.zeros(2, 3, 8)}, "encoder", [[1, 1, 1], [1, 1, 1]]),
        ({"input_ids": MASK[None], "attention_mask": MASK[None]}, "encoder", [[1, 1, 1], [1, 0, 0]]),
        ({"input_ids": MASK, "attention_mask": MASK, "labels": LABELS}, "decoder", [[1, 0], [1, 1]]),
        ({"attention_mask": MASK, "labels": LABELS}, "encoder", [[1, 1, 1], [1, 0, 0]]),
        ({"labels": LABELS, "decoder_attention_mask": LABELS.gt(6)}, "decoder", [[0, 0], [1, 1]]),
        ({"attention_mask": MASK, "decoder_input_ids": LABELS}, "decoder", [[1, 1], [1, 1]]),
        ({"attention_mask": MASK, "labels": torch.tensor([2, 0])}, "decoder", [[1, 1, 1], [1, 0, 0]]),
        ({"attention_mask": MASK, "labels": torch.zeros(2, 4)}, "decoder", [[1, 1, 1], [1, 0, 0]]),
        ({"attention_mask": MASK}, "decoder", [[1, 1, 1], [1, 0, 0]]),
    ],
    ids=[
        "attention mask",
        "no mask",
        "embeddings without mask",
        "multiple choice",
        "decoder with labels",
        "encoder with labels",
        "decoder mask",
        "decoder inputs without mask",
        "labels that are classes",
        "labels that are numbers",
        "decoder without own inputs",
    ],
)
def test_token_masks(inputs, stack, expected):
    assert token_masks(inputs, [stack])[stack].int().tolist() == expected


def test_batch_without_tokens_is_refused():
    message = "the batch has no input_ids, only pixel_values, labels: the tokens of the encoder are unknown"
    with pytest.raises(ValueError, match=message):
        token_masks({"pixel_values": MASK, "labels": LABELS}, ["encoder"])
