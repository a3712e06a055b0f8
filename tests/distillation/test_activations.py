import copy
import re

import pytest
import torch

from hf_efficient import FAMILIES, DistillationConfig
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

CLASSIFIERS = [
    cls.__name__
    for family in FAMILIES.values()
    for cls in family.pruned_classes
    if cls.__name__.endswith("ForSequenceClassification")
]
DECODERS = ["T5Model", "T5ForConditionalGeneration", "MT5ForConditionalGeneration"]
NO_DROPOUT = {
    "distilbert": {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
    "t5": {"dropout_rate": 0.0},
    "mt5": {"dropout_rate": 0.0},
}


def without_dropout(head):
    prefix = next(kind for kind, family in FAMILIES.items() if head in {c.__name__ for c in family.pruned_classes})
    return NO_DROPOUT.get(prefix, {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})


def hooked(model):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, name)) for module in model.modules() for name in hooks)


def test_hidden_states_are_those_that_the_model_hands_out(make_model, make_batch, any_head):
    model, batch = make_model(any_head), make_batch(any_head)
    with torch.no_grad():
        answer = model(**batch, output_hidden_states=True)  # which leaves hooks of transformers' own
    stacks, before = family_of(model).stacks(model), hooked(model)
    wanted = [(HIDDEN, layer) for layer in family_of(model).layers(model)]
    wanted += [(EMBEDDINGS, stack) for stack in stacks]
    with torch.no_grad(), capture_activations(model, wanted) as seen:
        model(**batch)
    assert seen.keys() == set(wanted)
    assert hooked(model) == before
    for stack in stacks:
        given = answer.get("hidden_states") if len(stacks) == 1 else answer[f"{stack}_hidden_states"]
        found = [seen[EMBEDDINGS, stack], *(seen[HIDDEN, f"{stack}.{index}"] for index in range(3))]
        norm = getattr(getattr(model.base_model, stack, None), "final_layer_norm", None)
        if norm is not None:  # which T5 applies to what it hands out last
            found[-1] = norm(found[-1])
        assert len(given) == len(found) == 4
        for ours, theirs in zip(found, given, strict=True):
            assert torch.equal(ours, theirs)
        assert not torch.equal(found[1], found[2])


@pytest.mark.parametrize("head", [*CLASSIFIERS, *DECODERS])
def test_queries_keys_and_values_are_as_wide_as_the_heads_that_are_left(make_model, make_batch, select, head):
    batch = make_batch(head)
    for model, widths in (
        (make_model(head), (32, 32, 32)),
        (remove_units(make_model(head), select("uneven widths", head)), (16, 8, 32)),
    ):
        blocks = self_attention_blocks(model)
        assert blocks.keys() == family_of(model).layers(model).keys()
        wanted = [(what, layer) for layer in blocks for what in (QUERIES, KEYS, VALUES)]
        with torch.no_grad(), capture_activations(model, wanted) as seen:
            model(**batch)
        for (_, layer), values in seen.items():
            tokens = 5 if layer.startswith("decoder") and "decoder_input_ids" in batch else 9
            assert values.shape == (3, tokens, widths[int(layer.partition(".")[2])])


@pytest.mark.parametrize("head", [*CLASSIFIERS, *DECODERS])
def test_queries_keys_and_values_make_the_attention_of_the_model(make_model, make_batch, head):
    model, batch = make_model(head, attn_implementation="eager"), make_batch(head)
    wanted = [(what, "encoder.0") for what in (QUERIES, KEYS)]
    block = self_attention_blocks(model)["encoder.0"]
    with torch.no_grad(), capture_activations(model, wanted) as seen:
        answer = model(**batch, output_attentions=True)
    given = answer.get("attentions") or answer["encoder_attentions"]
    queries, keys = (seen[signal].view(3, 9, 4, 8).transpose(1, 2) for signal in wanted)
    scores, attention = queries @ keys.transpose(-1, -2), getattr(block.owner, block.compute)
    # T5 does not scale, and adds where tokens are.
    scores = scores + attention.compute_bias(9, 9) if "T5" in head else scores / 8**0.5
    scores = scores.masked_fill(~batch["attention_mask"].bool()[:, None, None, :], torch.finfo(torch.float32).min)
    torch.testing.assert_close(scores.softmax(-1), given[0], atol=1e-5, rtol=1e-5)


def test_a_layer_without_heads_has_no_attention_to_watch(make_model, select):
    student = remove_units(make_model(), select("a block without heads"))
    assert list(self_attention_blocks(student)) == ["encoder.0", "encoder.2"]


def test_what_is_not_computed_is_named(make_model, make_batch, select):
    student = remove_units(make_model(), select("a block without heads"))
    message = "PrunedBertForSequenceClassification computed no queries of encoder.1: name other layers by layer_map"
    with pytest.raises(ValueError, match=re.escape(message)), capture_activations(student, [(QUERIES, "encoder.1")]):
        student(**make_batch())
    assert hooked(student) == 0


def test_a_model_that_does_not_run_leaves_no_hook_and_its_own_error(make_model):
    model = make_model()
    with (
        pytest.raises(ZeroDivisionError),
        capture_activations(model, [(HIDDEN, "encoder.1"), (EMBEDDINGS, "encoder")]),
    ):
        raise ZeroDivisionError
    assert hooked(model) == 0


@pytest.mark.parametrize("head", [*CLASSIFIERS, "T5ForConditionalGeneration", "MT5ForConditionalGeneration"])
def test_checkpointing_changes_no_gradient_and_shows_each_signal_once(make_model, make_batch, head):
    batch = make_batch(head, labelled=True)
    teacher = make_model(head, seed=1)
    plain = make_model(head, **without_dropout(head)).train()
    saving = copy.deepcopy(plain)
    saving.activation_checkpointing_enable()
    config = DistillationConfig(
        hard_label_weight=0, logits_weight=0, hidden_weight=1.0, attention_weight=1.0, relation_weight=1.0
    )
    gradients, calls = [], []
    for student in (plain, saving):
        distiller = Distiller(Teacher([teacher]), config)
        distiller.prepare(student)
        runs = []
        query = self_attention_blocks(student)["encoder.0"].input_linears[0]
        handle = query.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        with distiller.capture() as signals:
            outputs = student(**batch)
        before = dict(signals)
        parts = distiller(batch, outputs, signals)
        assert len({part.name for part in parts}) == 3
        sum(part.sum for part in parts).backward()
        handle.remove()
        assert all(signals[name] is value for name, value in before.items())
        assert all(value.requires_grad for value in before.values())
        gradients.append({n: p.grad for n, p in student.named_parameters() if p.grad is not None})
        calls.append(len(runs))
    assert calls == [1, 2]  # the second, in the backward pass, did happen, and is not seen
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-6, atol=1e-5 * float(expected.abs().max()))
    queries = [name for name in gradients[0] if re.search(r"0.*(query|q_lin|\.q)\.weight", name)]
    assert queries
    assert all(float(gradients[0][name].abs().sum()) > 0 for name in queries)


# ---- which tokens are no padding ----

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
        "the attention mask",
        "all tokens",
        "all embeddings",
        "a row a choice",
        "labelled tokens",
        "labels are the decoder's",
        "the decoder's own mask",
        "all the decoder reads",
        "classes are no tokens",
        "nor are numbers",
        "the decoder reads the input",
    ],
)
def test_token_masks_of(inputs, stack, expected):
    assert token_masks(inputs, [stack])[stack].int().tolist() == expected


def test_tokens_that_are_unknown_are_named():
    message = "there are no input_ids among pixel_values, labels: the encoder's tokens are unknown"
    with pytest.raises(ValueError, match=message):
        token_masks({"pixel_values": MASK, "labels": LABELS}, ["encoder"])
