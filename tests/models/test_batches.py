import re

import pytest
import torch
from heads import REPRESENTATIVE_HEADS
from torch.nn import functional as F

from hf_efficient.models import family_of
from hf_efficient.models.batches import eval_mode, example_count, has_labels, non_padding_mask, require_batches
from hf_efficient.pruning.gates import apply_gates
from hf_efficient.pruning.losses import example_loss, sampled_loss, task_or_sampled_loss
from hf_efficient.pruning.unit_criteria import fisher

BLOCK = "encoder.1.attention"
TASKS = [head for head in REPRESENTATIVE_HEADS if "For" in head]


def split_examples(batch):
    return [{name: value[row : row + 1] for name, value in batch.items()} for row in range(example_count(batch))]


def repeat_first_example(batch, times):
    """Returns the first example, without its padding, `times` times."""
    length = int(batch["attention_mask"][0].sum())
    return {
        name: (value[:1, :length] if value.dim() == 2 else value[:1]).repeat_interleave(times, 0)
        for name, value in batch.items()
    }


def gates(model, rows=1):
    return torch.ones(rows, family_of(model).blocks(model)[BLOCK].units, requires_grad=True)


def test_examples_are_counted_by_the_first_dimension():
    assert example_count({"input_ids": torch.zeros(5, 9)}) == 5


def test_missing_batches_are_refused():
    batches = [{"input_ids": torch.zeros(1, 2)}, {"input_ids": torch.ones(1, 2)}]
    assert list(require_batches(iter(batches))) == batches
    with pytest.raises(ValueError, match="the dataloader is empty: at least one batch is required"):
        list(require_batches([]))


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored_even_after_an_error(make_model, training):
    model = make_model().train(training)
    with eval_mode(model):
        assert not model.training
    assert model.training is training

    def fail():
        with eval_mode(model):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert model.training is training


MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
LABELS = torch.tensor([[5, 5, -100], [5, -100, -100]])


@pytest.mark.parametrize(
    ("batch", "tokens", "is_decoder", "expected"),
    [
        ({"attention_mask": MASK}, 4, False, MASK),
        ({"attention_mask": MASK, "labels": LABELS}, 4, False, MASK),
        ({"attention_mask": MASK, "labels": MASK - 100}, 4, False, MASK),
        ({"attention_mask": MASK, "labels": LABELS}, 3, True, LABELS.ne(-100)),
        ({"labels": LABELS, "decoder_attention_mask": torch.ones(2, 3)}, 3, True, torch.ones(2, 3)),
        ({"labels": torch.tensor([0, 1]), "attention_mask": MASK}, 4, True, MASK),
        ({"attention_mask": MASK, "labels": LABELS}, 5, True, torch.ones(2, 5)),
        ({"input_ids": MASK}, 4, False, torch.ones(2, 4)),
    ],
    ids=[
        "mask", "mask in an encoder", "labels as long as texts", "labels in a decoder", "mask of the decoder",
        "labels of examples", "no fitting size", "no mask",
    ],
)  # fmt: skip
def test_padding_mask(batch, tokens, is_decoder, expected):
    actual = non_padding_mask(batch, torch.zeros(2, tokens, 7), is_decoder)
    assert actual.dtype == torch.bool
    assert actual.tolist() == expected.bool().tolist()


def test_padding_mask_of_choices():
    mask = torch.stack([MASK, MASK.flip(0)])
    actual = non_padding_mask({"attention_mask": mask}, torch.zeros(4, 4, 7), False)
    assert actual.tolist() == mask.view(4, 4).bool().tolist()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("input_ids labels", True),
        ("input_ids label_ids", True),
        ("input_ids start_positions end_positions", True),
        ("input_ids position_ids attention_mask", False),
    ],
)
def test_labels_are_recognized_by_their_names(names, expected):
    assert has_labels(dict.fromkeys(names.split(), torch.zeros(1))) is expected


@pytest.mark.parametrize("head", TASKS)
def test_loss_of_a_batch_is_the_sum_of_its_examples(make_model, make_batch, head):
    model, batch = make_model(head), make_batch(head, labelled=True)
    with torch.no_grad():
        parts = [example_loss(model, example) for example in split_examples(batch)]
        total = example_loss(model, batch)
    assert total.shape == ()
    assert min(parts) > 0
    torch.testing.assert_close(total, torch.stack(parts).sum(), rtol=1e-4, atol=1e-4)


def test_loss_of_examples_and_of_tokens_is_their_cross_entropy(make_model, make_batch):
    for head in ("BertForSequenceClassification", "BertForTokenClassification"):
        model, batch = make_model(head), make_batch(head, labelled=True)
        with torch.no_grad():
            logits, actual = model(**batch).logits, example_loss(model, batch)
        expected = F.cross_entropy(logits.flatten(0, -2), batch["labels"].flatten(), reduction="sum")
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [("regression", [0.5, -1.0, 2.0]), ("multi_label_classification", [[1.0, 0, 1], [0, 0, 1], [1, 1, 1]])],
)
def test_loss_of_float_labels_is_the_sum_of_its_examples(make_model, make_batch, problem_type, labels):
    model = make_model(problem_type=problem_type, num_labels=3 if "multi" in problem_type else 1)
    batch = {**make_batch(), "labels": torch.tensor(labels)}
    with torch.no_grad():
        parts = [example_loss(model, example) for example in split_examples(batch)]
        torch.testing.assert_close(example_loss(model, batch), torch.stack(parts).sum(), rtol=1e-4, atol=1e-5)


def test_loss_without_labels_is_refused(make_model, make_batch):
    message = "the batches have no labels, only input_ids, attention_mask, token_type_ids: give labelled data, or"
    with pytest.raises(ValueError, match=re.escape(message)):
        example_loss(make_model(), make_batch())


# ---- labels sampled from the predictions ----


def test_squared_gradients_of_sampled_classes_average_to_the_fisher_information(make_model, make_batch):
    model, batch = make_model(), make_batch()
    with torch.no_grad():
        model.classifier.weight *= 0.1
        probabilities = model(**repeat_first_example(batch, 1)).logits.softmax(-1)[0]
    assert probabilities.max() < 0.8
    expected = torch.zeros(4)
    for label, probability in enumerate(probabilities):
        gate = gates(model)
        with apply_gates(model, {BLOCK: gate}):
            loss = F.cross_entropy(model(**repeat_first_example(batch, 1)).logits, torch.tensor([label]))
        expected += probability * torch.autograd.grad(loss, gate)[0][0].square() / 2
    actual = fisher(model, [repeat_first_example(batch, 512)] * 2, sampled_loss()).units[BLOCK]
    torch.testing.assert_close(actual, expected, rtol=0.15, atol=0)


@pytest.mark.parametrize("labels", [1, 2])
def test_squared_gradients_of_sampled_targets_average_to_the_fisher_information(make_model, make_batch, labels):
    model, batch = make_model(num_labels=labels, problem_type="regression"), make_batch()
    expected = torch.zeros(4)
    for number in range(labels):
        gate = gates(model)
        with apply_gates(model, {BLOCK: gate}):
            expected += (
                torch.autograd.grad(model(**repeat_first_example(batch, 1)).logits[0, number], gate)[0][0].square() / 2
            )
    actual = fisher(model, [repeat_first_example(batch, 512)] * 2, sampled_loss()).units[BLOCK]
    torch.testing.assert_close(actual, expected, rtol=0.15, atol=0)


def test_squared_gradients_of_sampled_hidden_states_average_to_the_fisher_information(make_model, make_batch):
    model, batch = make_model("BertModel"), {name: value[2:, :5] for name, value in make_batch("BertModel").items()}
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0]]
    gate, expected = gates(model), torch.zeros(4)
    with apply_gates(model, {BLOCK: gate}):
        states = model(**batch).last_hidden_state[0, :3].flatten()
    for number in states:
        expected += torch.autograd.grad(number, gate, retain_graph=True)[0][0].square() / 2
    many = {name: value.repeat_interleave(512, 0) for name, value in batch.items()}
    actual = fisher(model, [many] * 2, sampled_loss()).units[BLOCK]
    torch.testing.assert_close(actual, expected, rtol=0.2, atol=0)


def test_independent_labels_are_sampled_separately(make_model, make_batch):
    model = make_model(problem_type="multi_label_classification")
    with torch.no_grad():
        model.classifier.weight *= 0.1
    with torch.no_grad():
        actual = sampled_loss()(model, repeat_first_example(make_batch(), 1024)) / 1024
    distribution = torch.distributions.Bernoulli(logits=model(**repeat_first_example(make_batch(), 1)).logits[0])
    torch.testing.assert_close(actual, distribution.entropy().sum(), rtol=0.05, atol=0)


def test_replaced_token_labels_are_sampled_per_token(make_model, make_batch):
    head = "ElectraForPreTraining"
    model, batch = make_model(head), make_batch(head)
    many = {name: value.repeat_interleave(512, 0) for name, value in batch.items()}
    with torch.no_grad():
        actual = sampled_loss()(model, many) / 512
        distribution = torch.distributions.Bernoulli(logits=model(**batch).logits)
    torch.testing.assert_close(actual, distribution.entropy()[batch["attention_mask"].bool()].sum(), rtol=0.05, atol=0)


def make_certain_teacher(make_model, head, label):
    """Returns a teacher that predicts `label` with certainty for every input."""
    teacher = make_model(head, seed=5).train()
    with torch.no_grad():
        teacher.classifier.weight.zero_()
        teacher.classifier.bias.copy_(F.one_hot(torch.tensor(label), 3) * 100.0)
    return teacher


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "BertForTokenClassification"])
def test_labels_of_a_certain_teacher_are_its_predictions(make_model, make_batch, head):
    model, batch, teacher = make_model(head), make_batch(head), make_certain_teacher(make_model, head, label=2)
    labels = torch.full((3,), 2)
    if "Token" in head:
        labels = torch.where(batch["attention_mask"].bool(), 2, -100)
    actual = sampled_loss(teacher)(model, batch)
    torch.testing.assert_close(actual, example_loss(model, {**batch, "labels": labels}), rtol=1e-4, atol=1e-4)
    assert teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_teacher_predicts_without_dropout(make_model, make_batch):
    teacher = make_model(seed=3).train()
    model, batch = make_model(), make_batch()
    assert sampled_loss(teacher)(model, batch) == sampled_loss(teacher)(model, batch)


def test_sampled_labels_follow_the_seed(make_model, make_batch):
    model, batch = make_model("BertForMaskedLM"), make_batch("BertForMaskedLM")
    first, again, other = (sampled_loss(seed=seed)(model, batch) for seed in (1, 1, 2))
    assert first == again != other
    loss = sampled_loss(seed=1)
    assert loss(model, batch) != loss(model, batch)


@pytest.mark.parametrize(
    ("head", "labelled"), [(head, False) for head in REPRESENTATIVE_HEADS] + [(head, True) for head in TASKS]
)
def test_every_head_has_a_sampled_loss(make_model, make_batch, head, labelled):
    model, batch = make_model(head), make_batch(head, labelled)
    gate = gates(model, 3)
    with apply_gates(model, {BLOCK: gate}):
        loss = sampled_loss()(model, batch)
    gradient = torch.autograd.grad(loss, gate)[0]
    assert loss.shape == ()
    assert 0 < loss < float("inf")
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_labels_determine_the_decoder_inputs_only(make_model, make_batch):
    head = "T5ForConditionalGeneration"
    model, batch = make_model(head), make_batch(head, labelled=True)
    read = {**batch, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(batch["labels"])}
    assert sampled_loss()(model, batch) == sampled_loss()(model, read)


def test_task_loss_with_labels_and_sampled_loss_without(make_model, make_batch):
    model, batch = make_model(), make_batch(labelled=True)
    loss = task_or_sampled_loss(seed=4)
    assert loss(model, batch) == example_loss(model, batch)
    assert loss(model, make_batch()) == sampled_loss(seed=4)(model, make_batch())
    teacher = make_certain_teacher(make_model, "BertForSequenceClassification", label=1)
    expected = example_loss(model, {**batch, "labels": torch.ones(3, dtype=torch.long)})
    torch.testing.assert_close(task_or_sampled_loss(teacher)(model, make_batch()), expected, rtol=1e-4, atol=1e-4)
