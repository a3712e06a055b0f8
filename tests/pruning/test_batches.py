import re

import pytest
import torch
from torch.nn import functional as F

from hf_efficient.models import FAMILIES, family_of
from hf_efficient.pruning.batches import eval_mode, example_count, has_labels, non_padding_mask, require_batches
from hf_efficient.pruning.gates import apply_gates
from hf_efficient.pruning.losses import example_loss, sampled_loss, task_or_sampled_loss
from hf_efficient.pruning.unit_criteria import fisher

BLOCK = "encoder.1.attention"
HEADS = [cls.__name__ for family in FAMILIES.values() for cls in family.pruned_classes]
TASKS = [head for head in HEADS if "For" in head]


def singles(batch):
    return [{name: value[row : row + 1] for name, value in batch.items()} for row in range(example_count(batch))]


def repeated(batch, times):
    """Returns the first example, without its padding, so many times."""
    length = int(batch["attention_mask"][0].sum())
    return {
        name: (value[:1, :length] if value.dim() == 2 else value[:1]).repeat_interleave(times, 0)
        for name, value in batch.items()
    }


def gates(model, rows=1):
    return torch.ones(rows, family_of(model).blocks(model)[BLOCK].units, requires_grad=True)


def test_examples_are_counted_by_the_first_dimension():
    assert example_count({"input_ids": torch.zeros(5, 9)}) == 5


def test_all_batches_pass_and_none_at_all_is_refused():
    batches = [{"input_ids": torch.zeros(1, 2)}, {"input_ids": torch.ones(1, 2)}]
    assert list(require_batches(iter(batches))) == batches
    with pytest.raises(ValueError, match="the dataloader is empty: at least one batch is required"):
        list(require_batches([]))


@pytest.mark.parametrize("training", [True, False])
def test_mode_comes_back_after_an_error_too(make_model, training):
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
    ("batch", "tokens", "decoding", "expected"),
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
        "mask", "mask in an encoder", "labels as wide as texts", "labels in a decoder", "mask of the decoder",
        "labels of examples", "nothing fits", "nothing known",
    ],
)  # fmt: skip
def test_padding_is_found(batch, tokens, decoding, expected):
    found = non_padding_mask(batch, torch.zeros(2, tokens, 7), decoding)
    assert found.dtype == torch.bool
    assert found.tolist() == expected.bool().tolist()


def test_padding_of_choices_is_found():
    mask = torch.stack([MASK, MASK.flip(0)])
    found = non_padding_mask({"attention_mask": mask}, torch.zeros(4, 4, 7), False)
    assert found.tolist() == mask.view(4, 4).bool().tolist()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("input_ids labels", True),
        ("input_ids label_ids", True),
        ("input_ids start_positions end_positions", True),
        ("input_ids position_ids attention_mask", False),
    ],
)
def test_answers_are_told_from_inputs(names, expected):
    assert has_labels(dict.fromkeys(names.split(), torch.zeros(1))) is expected


@pytest.mark.parametrize("head", TASKS)
def test_loss_of_a_batch_is_the_sum_of_its_examples(make_model, make_batch, head):
    model, batch = make_model(head), make_batch(head, labelled=True)
    with torch.no_grad():
        parts = [example_loss(model, example) for example in singles(batch)]
        whole = example_loss(model, batch)
    assert whole.shape == ()
    assert min(parts) > 0
    torch.testing.assert_close(whole, torch.stack(parts).sum(), rtol=1e-4, atol=1e-4)


def test_loss_of_examples_and_of_tokens_is_their_cross_entropy(make_model, make_batch):
    for head in ("BertForSequenceClassification", "BertForTokenClassification"):
        model, batch = make_model(head), make_batch(head, labelled=True)
        with torch.no_grad():
            logits, found = model(**batch).logits, example_loss(model, batch)
        expected = F.cross_entropy(logits.flatten(0, -2), batch["labels"].flatten(), reduction="sum")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [("regression", [0.5, -1.0, 2.0]), ("multi_label_classification", [[1.0, 0, 1], [0, 0, 1], [1, 1, 1]])],
)
def test_loss_of_numbers_is_the_sum_of_its_examples(make_model, make_batch, problem_type, labels):
    model = make_model(problem_type=problem_type, num_labels=3 if "multi" in problem_type else 1)
    batch = {**make_batch(), "labels": torch.tensor(labels)}
    with torch.no_grad():
        parts = [example_loss(model, example) for example in singles(batch)]
        torch.testing.assert_close(example_loss(model, batch), torch.stack(parts).sum(), rtol=1e-4, atol=1e-5)


def test_loss_without_labels_is_refused(make_model, make_batch):
    message = "the batches have no labels, only input_ids, attention_mask, token_type_ids: give labelled data, or"
    with pytest.raises(ValueError, match=re.escape(message)):
        example_loss(make_model(), make_batch())


# ---- answers drawn from the model's own distribution ----


def test_squared_gradients_of_drawn_classes_average_to_the_fisher_information(make_model, make_batch):
    model, batch = make_model(), make_batch()
    with torch.no_grad():
        model.classifier.weight *= 0.1
        probabilities = model(**repeated(batch, 1)).logits.softmax(-1)[0]
    assert probabilities.max() < 0.8
    true = torch.zeros(4)
    for label, probability in enumerate(probabilities):
        gate = gates(model)
        with apply_gates(model, {BLOCK: gate}):
            loss = F.cross_entropy(model(**repeated(batch, 1)).logits, torch.tensor([label]))
        true += probability * torch.autograd.grad(loss, gate)[0][0].square() / 2
    found = fisher(model, [repeated(batch, 512)] * 2, sampled_loss()).units[BLOCK]
    torch.testing.assert_close(found, true, rtol=0.15, atol=0)


@pytest.mark.parametrize("labels", [1, 2])
def test_squared_gradients_of_drawn_numbers_average_to_the_fisher_information(make_model, make_batch, labels):
    model, batch = make_model(num_labels=labels, problem_type="regression"), make_batch()
    true = torch.zeros(4)
    for number in range(labels):
        gate = gates(model)
        with apply_gates(model, {BLOCK: gate}):
            true += torch.autograd.grad(model(**repeated(batch, 1)).logits[0, number], gate)[0][0].square() / 2
    found = fisher(model, [repeated(batch, 512)] * 2, sampled_loss()).units[BLOCK]
    torch.testing.assert_close(found, true, rtol=0.15, atol=0)


def test_squared_gradients_of_drawn_hidden_states_average_to_the_fisher_information(make_model, make_batch):
    model, batch = make_model("BertModel"), {name: value[2:, :5] for name, value in make_batch("BertModel").items()}
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0]]
    gate, true = gates(model), torch.zeros(4)
    with apply_gates(model, {BLOCK: gate}):
        states = model(**batch).last_hidden_state[0, :3].flatten()
    for number in states:
        true += torch.autograd.grad(number, gate, retain_graph=True)[0][0].square() / 2
    many = {name: value.repeat_interleave(512, 0) for name, value in batch.items()}
    found = fisher(model, [many] * 2, sampled_loss()).units[BLOCK]
    torch.testing.assert_close(found, true, rtol=0.2, atol=0)


def test_independent_labels_are_drawn_one_by_one(make_model, make_batch):
    model = make_model(problem_type="multi_label_classification")
    with torch.no_grad():
        model.classifier.weight *= 0.1
    with torch.no_grad():
        found = sampled_loss()(model, repeated(make_batch(), 1024)) / 1024
    chances = torch.distributions.Bernoulli(logits=model(**repeated(make_batch(), 1)).logits[0])
    torch.testing.assert_close(found, chances.entropy().sum(), rtol=0.05, atol=0)


def test_tokens_that_are_judged_are_drawn_one_by_one(make_model, make_batch):
    head = "ElectraForPreTraining"
    model, batch = make_model(head), make_batch(head)
    many = {name: value.repeat_interleave(512, 0) for name, value in batch.items()}
    with torch.no_grad():
        found = sampled_loss()(model, many) / 512
        chances = torch.distributions.Bernoulli(logits=model(**batch).logits)
    torch.testing.assert_close(found, chances.entropy()[batch["attention_mask"].bool()].sum(), rtol=0.05, atol=0)


def certain(make_model, head, label):
    """Returns a teacher that is certain of the answer `label` to everything."""
    teacher = make_model(head, seed=5).train()
    with torch.no_grad():
        teacher.classifier.weight.zero_()
        teacher.classifier.bias.copy_(F.one_hot(torch.tensor(label), 3) * 100.0)
    return teacher


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "BertForTokenClassification"])
def test_a_teacher_that_is_certain_gives_its_answer(make_model, make_batch, head):
    model, batch, teacher = make_model(head), make_batch(head), certain(make_model, head, label=2)
    labels = torch.full((3,), 2)
    if "Token" in head:
        labels = torch.where(batch["attention_mask"].bool(), 2, -100)
    found = sampled_loss(teacher)(model, batch)
    torch.testing.assert_close(found, example_loss(model, {**batch, "labels": labels}), rtol=1e-4, atol=1e-4)
    assert teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_teacher_answers_without_dropout(make_model, make_batch):
    teacher = make_model(seed=3).train()
    model, batch = make_model(), make_batch()
    assert sampled_loss(teacher)(model, batch) == sampled_loss(teacher)(model, batch)


def test_drawn_answers_follow_the_seed(make_model, make_batch):
    model, batch = make_model("BertForMaskedLM"), make_batch("BertForMaskedLM")
    first, again, other = (sampled_loss(seed=seed)(model, batch) for seed in (1, 1, 2))
    assert first == again != other
    loss = sampled_loss(seed=1)
    assert loss(model, batch) != loss(model, batch)


@pytest.mark.parametrize(("head", "labelled"), [(head, False) for head in HEADS] + [(head, True) for head in TASKS])
def test_every_head_draws_answers(make_model, make_batch, head, labelled):
    model, batch = make_model(head), make_batch(head, labelled)
    gate = gates(model, 3)
    with apply_gates(model, {BLOCK: gate}):
        loss = sampled_loss()(model, batch)
    gradient = torch.autograd.grad(loss, gate)[0]
    assert loss.shape == ()
    assert 0 < loss < float("inf")
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_targets_say_what_the_decoder_reads_and_nothing_else(make_model, make_batch):
    head = "T5ForConditionalGeneration"
    model, batch = make_model(head), make_batch(head, labelled=True)
    read = {**batch, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(batch["labels"])}
    assert sampled_loss()(model, batch) == sampled_loss()(model, read)


def test_task_loss_where_there_are_labels_and_drawn_answers_where_not(make_model, make_batch):
    model, batch = make_model(), make_batch(labelled=True)
    loss = task_or_sampled_loss(seed=4)
    assert loss(model, batch) == example_loss(model, batch)
    assert loss(model, make_batch()) == sampled_loss(seed=4)(model, make_batch())
    teacher = certain(make_model, "BertForSequenceClassification", label=1)
    expected = example_loss(model, {**batch, "labels": torch.ones(3, dtype=torch.long)})
    torch.testing.assert_close(task_or_sampled_loss(teacher)(model, make_batch()), expected, rtol=1e-4, atol=1e-4)
