import re

import pytest
import torch
from datasets import Dataset, load_from_disk

from hf_efficient.distillation.losses import soft_label_loss
from hf_efficient.distillation.teacher import Teacher
from hf_efficient.distillation.teacher_cache import (
    TOP_TOKENS,
    TeacherOutputsCollator,
    cache_teacher_outputs,
    drop_teacher_columns,
    merge_remaining_classes,
    read_cached_outputs,
)

LENGTHS = (7, 2, 9, 4, 1, 9, 3)
COLUMNS = ["input_ids", "attention_mask", "labels", "start_positions", "end_positions"]
T5, BERT, MLM = "T5ForConditionalGeneration", "BertForSequenceClassification", "BertForMaskedLM"


class Collate:
    """Pads on either side; labels of tokens with -100."""

    def __init__(self, left=False):
        self.left = left

    def __call__(self, examples):
        batch = {}
        for name in examples[0]:
            rows = [torch.tensor(example[name]) for example in examples]
            filled = -100 if name == "labels" else 0
            longest = max(row.shape[0] for row in rows) if rows[0].dim() else 0
            padded = [
                torch.nn.functional.pad(
                    row, (longest - len(row), 0) if self.left else (0, longest - len(row)), value=filled
                )
                if rows[0].dim()
                else row
                for row in rows
            ]
            batch[name] = torch.stack(padded)
        return batch


def examples(head, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in LENGTHS:
        ids = torch.randint(2, 100, (length,), generator=generator).tolist()
        row = {"input_ids": ids, "attention_mask": [1] * length, "labels": ids[0] % 3, "title": "not for the model"}
        if head.endswith("TokenClassification"):
            row["labels"] = [-100, *(number % 3 for number in ids[1:-1]), -100][:length]
        if head in (T5, MLM, "ElectraForPreTraining"):
            row["labels"] = {T5: ids[::2], MLM: ids}.get(head, [number % 2 for number in ids])
        if head.endswith("QuestionAnswering"):
            del row["labels"]
            row |= {"start_positions": 0, "end_positions": length - 1}
        rows.append(row)
    return rows


@torch.no_grad()
def answer_of(student, batch):
    return student(**batch)


def cached(head, teacher, left=False, data=None, **changes):
    """Returns the data with answers, and a collator that makes batches of it."""
    data = Dataset.from_list(examples(head)) if data is None else data
    found = cache_teacher_outputs(data, teacher, Collate(left), COLUMNS, pads_left=left, **changes)
    answers = teacher.head_outputs
    collator = TeacherOutputsCollator(
        Collate(left), answers.has_token_axis, of_labels=answers.decoder_reads_labels, pads_left=left
    )
    return found.remove_columns("title"), collator


@pytest.mark.parametrize(
    ("head", "left"),
    [
        (BERT, False),
        ("BertForTokenClassification", False),
        ("T5ForTokenClassification", True),  # whose positions are relative
        ("DistilBertForQuestionAnswering", False),
        ("RobertaForQuestionAnswering", True),  # which counts positions from the first real token
        ("ElectraForPreTraining", False),
        (MLM, False),
        (T5, False),
    ],
    ids=lambda value: value if isinstance(value, str) else ("padded left" if value else "padded right"),
)
@pytest.mark.parametrize("batch_size", [2, 64])
def test_cached_answers_are_those_that_the_teacher_gives(make_model, head, left, batch_size):
    # On the left, absolute positions as BERT has them would depend on the longest text of the batch.
    teacher, student = Teacher([make_model(head, pad_token_id=0)]), make_model(head, seed=1, pad_token_id=0)
    data, collator = cached(head, teacher, left, batch_size=batch_size)
    for chosen in ([0, 1, 2, 3, 4, 5, 6], [4, 1], [6, 3, 0]):
        batch = collator([data[index] for index in chosen])
        known = drop_teacher_columns(batch)
        assert known.keys() <= {*COLUMNS}
        asked, _ = teacher.predict(known)
        ours, theirs = read_cached_outputs(batch, answer_of(student, known), teacher.head_outputs.outputs, 2.0)
        assert theirs.keys() == asked.keys()
        there = teacher.head_outputs.padding_mask(known) if teacher.head_outputs.has_token_axis else slice(None)
        for name, expected in asked.items():
            assert theirs[name].shape == expected.shape
            torch.testing.assert_close(theirs[name][there], expected[there], atol=2e-5, rtol=1e-5)
        losses = [float(teacher.head_outputs.loss(ours, given, 2.0, batch)) for given in (theirs, asked)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-5)
        assert len(chosen) < 7 or losses[1] > 0.001


def test_padding_at_the_end_is_not_kept(make_model):
    data, _ = cached("BertForTokenClassification", Teacher([make_model("BertForTokenClassification")]))
    assert [len(row) for row in data["teacher_logits"]] == list(LENGTHS)
    data, _ = cached(T5, Teacher([make_model(T5)]))
    assert [len(row) for row in data["teacher_logits"]] == [len(row) for row in data["labels"]]
    data, _ = cached(BERT, Teacher([make_model()]))
    assert torch.tensor(data["teacher_logits"][:]).shape == (7, 3)
    assert data["input_ids"][:] == [row["input_ids"] for row in examples(BERT)]  # the order stays


def test_a_batch_without_answers_is_to_be_asked(make_model, make_batch):
    assert read_cached_outputs(make_batch(), {"logits": torch.zeros(3, 3)}, ["logits"], 2.0) is None
    some = {"teacher_start_logits": torch.zeros(3, 9)}
    assert read_cached_outputs(some, {}, ["start_logits", "end_logits"], 2.0) is None


def test_several_teachers_are_kept_as_one(make_model):
    teacher = Teacher([make_model(), make_model(seed=1)], [0.25, 0.75])
    data, collator = cached(BERT, teacher)
    batch = collator([data[0], data[1]])
    torch.testing.assert_close(batch["teacher_logits"], teacher.predict(drop_teacher_columns(batch))[0]["logits"])


# ---- the most likely answers, and the rest ----


def by_hand(student, teacher, k, temperature):
    """The divergence over k + 1 events, of one position."""
    ours, theirs = (student / temperature).double().softmax(-1), (teacher / temperature).double().softmax(-1)
    top = theirs.topk(k).indices
    events = [torch.cat([p[top], 1 - p[top].sum(-1, keepdim=True)]) for p in (ours, theirs)]
    return float((events[1] * (events[1] / events[0]).log()).sum()) * temperature**2


def sharper(model, by):
    """Multiplies all logits."""
    norm = model.decoder.final_layer_norm if hasattr(model, "decoder") else model.cls.predictions.transform.LayerNorm
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter *= by
    return model


def top(head, teacher, student, k, temperature=2.0):
    """Returns the distance by the cache, and answers of student and teacher at all labelled tokens."""
    data, collator = cached(head, teacher, top_k=k, temperature=temperature)
    batch = collator([data[index] for index in range(7)])
    known = drop_teacher_columns(batch)
    assert batch[TOP_TOKENS].shape == (*batch["labels"].shape, k)
    assert batch["teacher_logits"].shape == (*batch["labels"].shape, k + 1)
    answer = answer_of(student, known)
    ours, theirs = read_cached_outputs(batch, answer, ["logits"], temperature)
    labelled = known["labels"] != -100
    found = float(teacher.head_outputs.loss(ours, theirs, temperature, batch))
    return found, answer.logits[labelled], teacher.predict(known)[0]["logits"][labelled]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("head", [T5, MLM])
def test_the_most_likely_answers_and_the_rest_diverge_as_so_many_events(make_model, head, temperature):
    teacher, student = Teacher([sharper(make_model(head), 3)]), sharper(make_model(head, seed=1), 3)
    found, ours, theirs = top(head, teacher, student, 5, temperature)
    expected = sum(by_hand(*position, 5, temperature) for position in zip(ours, theirs, strict=True))
    assert found == pytest.approx(expected, rel=1e-4)
    assert found < float(soft_label_loss(ours, theirs, temperature)[0])  # events that are joined tell less


@pytest.mark.parametrize("head", [T5, MLM])
def test_where_the_rest_is_tiny_nothing_is_lost(make_model, head):
    teacher, student = Teacher([sharper(make_model(head), 60)]), sharper(make_model(head, seed=1), 3)
    found, ours, theirs = top(head, teacher, student, 60, 1.0)
    assert found == pytest.approx(float(soft_label_loss(ours, theirs, 1.0)[0]), rel=1e-3)


@pytest.mark.parametrize("head", [T5, MLM])
def test_the_most_likely_answers_of_an_equal_student_lose_nothing(make_model, head):
    assert top(head, Teacher([make_model(head)]), make_model(head), 5)[0] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_top_and_rest_have_the_shares_of_all_classes(temperature):
    logits = 3 * torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0))
    chosen = logits.topk(3).indices
    shares = (merge_remaining_classes(logits, chosen, temperature) / temperature).softmax(-1)
    whole = (logits / temperature).softmax(-1)
    torch.testing.assert_close(shares[..., :3], whole.gather(-1, chosen))
    torch.testing.assert_close(shares[..., 3], 1 - whole.gather(-1, chosen).sum(-1))


def test_top_answers_are_kept_in_descending_order(make_model):
    data, _ = cached(MLM, Teacher([make_model(MLM)]), top_k=4)
    row = torch.tensor(data["teacher_logits"][0])[:, :4]
    assert torch.equal(row, row.sort(descending=True).values)


# ---- found again ----


def counted(teacher):
    calls, ask = [], teacher.predict
    teacher.predict = lambda *args: calls.append(1) or ask(*args)
    return calls


@pytest.fixture
def on_disk(tmp_path):
    """Data that lies on disk, as what `datasets` loads does."""

    def save(head):
        if not (tmp_path / head).exists():
            Dataset.from_list(examples(head)).save_to_disk(tmp_path / head)
        return load_from_disk(tmp_path / head)

    return save


def asks(head, on_disk, model, **changes):
    teacher = Teacher([model] if not isinstance(model, list) else model, changes.pop("shares", (1.0,)))
    calls = counted(teacher)
    cached(head, teacher, data=on_disk(head), **changes)
    return len(calls)


def test_what_was_asked_is_found_again(make_model, on_disk):
    assert asks(BERT, on_disk, make_model()) == 1
    assert asks(BERT, on_disk, make_model()) == 0
    assert asks(BERT, on_disk, make_model(), temperature=9.0) == 0  # logits are kept, not distributions


@pytest.mark.parametrize(
    ("changed", "changes"),
    [
        ({"seed": 1}, {}),
        ({"layer_norm_eps": 1e-3}, {}),
        ({}, {"top_k": 6}),
        ({}, {"top_k": None}),
        ({}, {"temperature": 3.0}),
        ({}, {"left": True}),
    ],
    ids=[
        "other weights",
        "another config",
        "more answers",
        "all answers",
        "another temperature",
        "padded on the other side",
    ],
)
def test_another_question_is_asked(make_model, on_disk, changed, changes):
    first = {"top_k": 5, "temperature": 2.0}
    assert asks(MLM, on_disk, make_model(MLM), **first) == 1
    assert asks(MLM, on_disk, make_model(MLM, **changed), **{**first, **changes}) == 1
    assert asks(MLM, on_disk, make_model(MLM), **first) == 0


def test_teachers_with_other_weights_are_asked(make_model, on_disk):
    models = [make_model(), make_model(seed=1)]
    assert asks(BERT, on_disk, models, shares=(0.5, 0.5)) == 1
    assert asks(BERT, on_disk, models, shares=(0.6, 0.4)) == 1
    assert asks(BERT, on_disk, models[::-1], shares=(0.5, 0.5)) == 1
    assert asks(BERT, on_disk, models, shares=(0.5, 0.5)) == 0


def test_other_data_is_asked_about(make_model, on_disk):
    teacher = Teacher([make_model()])
    cached(BERT, teacher, data=on_disk(BERT))
    calls = counted(teacher)
    cached(BERT, teacher, data=on_disk(BERT).select(range(1, 7)))
    assert len(calls) == 1


# ---- refused ----


def test_masks_that_are_drawn_anew_are_refused(make_model):
    collate = Collate()
    collate.mlm = True
    with pytest.raises(ValueError, match="one answer an example, but the tokens to guess are drawn anew in every"):
        cache_teacher_outputs(Dataset.from_list(examples(MLM)), Teacher([make_model(MLM)]), collate, COLUMNS)


@pytest.mark.parametrize(
    ("head", "changes", "options", "message"),
    [
        (MLM, {"vocab_size": 1001}, {}, "would keep 1001 numbers for every token: give cache_top_k=64"),
        (T5, {"vocab_size": 1001}, {}, "would keep 1001 numbers for every token: give cache_top_k=64"),
        ("BertModel", {}, {}, "BertModel has no task head: there are no answers to keep"),
        (BERT, {}, {"top_k": 1}, "BertForSequenceClassification has 3 answers an example: leave it out"),
        ("BertForQuestionAnswering", {}, {"top_k": 1}, "BertForQuestionAnswering has 2 answers an example: leave it"),
        (
            "BertForTokenClassification",
            {},
            {"top_k": 2},
            "cache_top_k=2 keeps the most likely of many answers a token, BertForTokenClassification has 3 answers: "
            "leave it out",
        ),
        (MLM, {}, {"top_k": 99}, "cache_top_k=99 keeps the most likely of many answers a token, BertForMaskedLM has"),
        ("ElectraForPreTraining", {"num_labels": 9}, {"top_k": 2}, "cache_top_k=2 keeps"),
    ],
)
def test_what_cannot_be_kept_is_refused(make_model, head, changes, options, message):
    teacher = Teacher([make_model(head, **changes)])
    with pytest.raises(ValueError, match=re.escape(message)):
        cached(head, teacher, **options)


def test_a_thousand_classes_an_example_are_kept(make_model):
    data, _ = cached(BERT, Teacher([make_model(num_labels=1200)]))
    assert len(data["teacher_logits"][0]) == 1200
