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


class Collator:
    """Pads on either side; labels of tokens with -100."""

    def __init__(self, pads_left=False):
        self.pads_left = pads_left

    def __call__(self, examples):
        batch = {}
        for name in examples[0]:
            rows = [torch.tensor(example[name]) for example in examples]
            padding_value = -100 if name == "labels" else 0
            longest = max(row.shape[0] for row in rows) if rows[0].dim() else 0
            padded = [
                torch.nn.functional.pad(
                    row, (longest - len(row), 0) if self.pads_left else (0, longest - len(row)), value=padding_value
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
        row = {"input_ids": ids, "attention_mask": [1] * length, "labels": ids[0] % 3, "title": "not an input"}
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
def outputs_of(student, batch):
    return student(**batch)


def cache(head, teacher, pads_left=False, data=None, **changes):
    """Return the dataset with cached outputs, and a collator that makes batches of it."""
    data = Dataset.from_list(examples(head)) if data is None else data
    collator = Collator(pads_left)
    cached = cache_teacher_outputs(data, teacher, collator, COLUMNS, pads_left=pads_left, **changes)
    head_outputs = teacher.head_outputs
    of_labels = head_outputs.decoder_reads_labels
    return cached.remove_columns("title"), TeacherOutputsCollator(
        collator, head_outputs.has_token_axis, of_labels=of_labels, pads_left=pads_left
    )


@pytest.mark.parametrize(
    ("head", "pads_left"),
    [
        (BERT, False),
        ("BertForTokenClassification", False),
        ("T5ForTokenClassification", True),  # with relative positions
        ("DistilBertForQuestionAnswering", False),
        ("RobertaForQuestionAnswering", True),  # with positions counted from the first token after padding
        ("ElectraForPreTraining", False),
        (MLM, False),
        (T5, False),
    ],
    ids=lambda value: value if isinstance(value, str) else ("padded left" if value else "padded right"),
)
@pytest.mark.parametrize("batch_size", [2, 64])
def test_cached_outputs_are_those_of_the_teacher(make_model, head, pads_left, batch_size):
    # With padding on the left, absolute positions as in BERT would depend on the longest text of the batch.
    teacher, student = Teacher([make_model(head, pad_token_id=0)]), make_model(head, seed=1, pad_token_id=0)
    data, collator = cache(head, teacher, pads_left, batch_size=batch_size)
    head_outputs = teacher.head_outputs
    for indices in ([0, 1, 2, 3, 4, 5, 6], [4, 1], [6, 3, 0]):
        batch = collator([data[index] for index in indices])
        inputs = drop_teacher_columns(batch)
        assert inputs.keys() <= {*COLUMNS}
        expected, _ = teacher.predict(inputs)
        student_outputs, cached = read_cached_outputs(batch, outputs_of(student, inputs), head_outputs.outputs, 2.0)
        assert cached.keys() == expected.keys()
        mask = head_outputs.padding_mask(inputs) if head_outputs.has_token_axis else slice(None)
        for name, value in expected.items():
            assert cached[name].shape == value.shape
            torch.testing.assert_close(cached[name][mask], value[mask], atol=2e-5, rtol=1e-5)
        losses = [float(head_outputs.loss(student_outputs, values, 2.0, batch)) for values in (cached, expected)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-5)
        assert len(indices) < 7 or losses[1] > 0.001


def test_padding_at_the_end_is_not_cached(make_model):
    data, _ = cache("BertForTokenClassification", Teacher([make_model("BertForTokenClassification")]))
    assert [len(row) for row in data["teacher_logits"]] == list(LENGTHS)
    data, _ = cache(T5, Teacher([make_model(T5)]))
    assert [len(row) for row in data["teacher_logits"]] == [len(row) for row in data["labels"]]
    data, _ = cache(BERT, Teacher([make_model()]))
    assert torch.tensor(data["teacher_logits"][:]).shape == (7, 3)
    assert data["input_ids"][:] == [row["input_ids"] for row in examples(BERT)]


def test_batch_without_cached_outputs_gives_none(make_batch):
    assert read_cached_outputs(make_batch(), {"logits": torch.zeros(3, 3)}, ["logits"], 2.0) is None
    incomplete = {"teacher_start_logits": torch.zeros(3, 9)}
    assert read_cached_outputs(incomplete, {}, ["start_logits", "end_logits"], 2.0) is None


def test_average_of_several_teachers_is_cached(make_model):
    teacher = Teacher([make_model(), make_model(seed=1)], [0.25, 0.75])
    data, collator = cache(BERT, teacher)
    batch = collator([data[0], data[1]])
    torch.testing.assert_close(batch["teacher_logits"], teacher.predict(drop_teacher_columns(batch))[0]["logits"])


# ---- highest logits only ----


def divergence_of_top_classes(student, teacher, k, temperature):
    """Return the divergence at one position, over the k most likely classes and the sum of the others."""
    student, teacher = ((logits / temperature).double().softmax(-1) for logits in (student, teacher))
    top = teacher.topk(k).indices
    student, teacher = (torch.cat([p[top], 1 - p[top].sum(-1, keepdim=True)]) for p in (student, teacher))
    return float((teacher * (teacher / student).log()).sum()) * temperature**2


def scale_logits(model, factor):
    """Multiply all logits of the model, in place."""
    norm = model.decoder.final_layer_norm if hasattr(model, "decoder") else model.cls.predictions.transform.LayerNorm
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter *= factor
    return model


def loss_by_cache(head, teacher, student, k, temperature=2.0):
    """Return the loss by cached top logits, and the logits of student and teacher at all labelled tokens."""
    data, collator = cache(head, teacher, top_k=k, temperature=temperature)
    batch = collator([data[index] for index in range(7)])
    inputs = drop_teacher_columns(batch)
    assert batch[TOP_TOKENS].shape == (*batch["labels"].shape, k)
    assert batch["teacher_logits"].shape == (*batch["labels"].shape, k + 1)
    outputs = outputs_of(student, inputs)
    student_outputs, cached = read_cached_outputs(batch, outputs, ["logits"], temperature)
    is_labelled = inputs["labels"] != -100
    loss = float(teacher.head_outputs.loss(student_outputs, cached, temperature, batch))
    return loss, outputs.logits[is_labelled], teacher.predict(inputs)[0]["logits"][is_labelled]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("head", [T5, MLM])
def test_loss_is_the_divergence_over_top_classes_and_the_sum_of_others(make_model, head, temperature):
    teacher, student = Teacher([scale_logits(make_model(head), 3)]), scale_logits(make_model(head, seed=1), 3)
    loss, student_logits, teacher_logits = loss_by_cache(head, teacher, student, 5, temperature)
    positions = zip(student_logits, teacher_logits, strict=True)
    expected = sum(divergence_of_top_classes(*position, 5, temperature) for position in positions)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert loss < float(soft_label_loss(student_logits, teacher_logits, temperature)[0])


@pytest.mark.parametrize("head", [T5, MLM])
def test_loss_is_the_complete_one_if_other_classes_are_unlikely(make_model, head):
    teacher, student = Teacher([scale_logits(make_model(head), 60)]), scale_logits(make_model(head, seed=1), 3)
    loss, student_logits, teacher_logits = loss_by_cache(head, teacher, student, 60, 1.0)
    assert loss == pytest.approx(float(soft_label_loss(student_logits, teacher_logits, 1.0)[0]), rel=1e-3)


@pytest.mark.parametrize("head", [T5, MLM])
def test_loss_by_top_classes_of_an_equal_student_is_zero(make_model, head):
    loss, _, _ = loss_by_cache(head, Teacher([make_model(head)]), make_model(head), 5)
    assert loss == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_merged_logits_have_the_probabilities_of_all_classes(temperature):
    logits = 3 * torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0))
    top = logits.topk(3).indices
    merged = (merge_remaining_classes(logits, top, temperature) / temperature).softmax(-1)
    expected = (logits / temperature).softmax(-1)
    torch.testing.assert_close(merged[..., :3], expected.gather(-1, top))
    torch.testing.assert_close(merged[..., 3], 1 - expected.gather(-1, top).sum(-1))


def test_top_logits_are_cached_in_descending_order(make_model):
    data, _ = cache(MLM, Teacher([make_model(MLM)]), top_k=4)
    row = torch.tensor(data["teacher_logits"][0])[:, :4]
    assert torch.equal(row, row.sort(descending=True).values)


# ---- finding a cache again ----


def record_calls(teacher):
    """Return a list that grows with every call of the teacher."""
    calls, predict = [], teacher.predict
    teacher.predict = lambda *args: calls.append(1) or predict(*args)
    return calls


@pytest.fixture
def on_disk(tmp_path):
    """Return a function that gives a dataset on disk, as `datasets` loads it."""

    def save(head):
        if not (tmp_path / head).exists():
            Dataset.from_list(examples(head)).save_to_disk(tmp_path / head)
        return load_from_disk(tmp_path / head)

    return save


def count_calls(head, on_disk, model, **changes):
    """Return how often the teacher runs when its outputs are to be cached."""
    teacher = Teacher([model] if not isinstance(model, list) else model, changes.pop("weights", (1.0,)))
    calls = record_calls(teacher)
    cache(head, teacher, data=on_disk(head), **changes)
    return len(calls)


def test_cached_outputs_are_found_again(make_model, on_disk):
    assert count_calls(BERT, on_disk, make_model()) == 1
    assert count_calls(BERT, on_disk, make_model()) == 0
    assert count_calls(BERT, on_disk, make_model(), temperature=9.0) == 0  # logits do not depend on it


@pytest.mark.parametrize(
    ("model_changes", "changes"),
    [
        ({"seed": 1}, {}),
        ({"layer_norm_eps": 1e-3}, {}),
        ({}, {"top_k": 6}),
        ({}, {"top_k": None}),
        ({}, {"temperature": 3.0}),
        ({}, {"pads_left": True}),
    ],
    ids=["weights", "config", "more classes", "all classes", "temperature", "padding side"],
)
def test_teacher_runs_again_if_anything_changes(make_model, on_disk, model_changes, changes):
    settings = {"top_k": 5, "temperature": 2.0}
    assert count_calls(MLM, on_disk, make_model(MLM), **settings) == 1
    assert count_calls(MLM, on_disk, make_model(MLM, **model_changes), **{**settings, **changes}) == 1
    assert count_calls(MLM, on_disk, make_model(MLM), **settings) == 0


def test_teachers_run_again_with_other_weights(make_model, on_disk):
    models = [make_model(), make_model(seed=1)]
    assert count_calls(BERT, on_disk, models, weights=(0.5, 0.5)) == 1
    assert count_calls(BERT, on_disk, models, weights=(0.6, 0.4)) == 1
    assert count_calls(BERT, on_disk, models[::-1], weights=(0.5, 0.5)) == 1
    assert count_calls(BERT, on_disk, models, weights=(0.5, 0.5)) == 0


def test_teacher_runs_again_on_other_data(make_model, on_disk):
    teacher = Teacher([make_model()])
    cache(BERT, teacher, data=on_disk(BERT))
    calls = record_calls(teacher)
    cache(BERT, teacher, data=on_disk(BERT).select(range(1, 7)))
    assert len(calls) == 1


# ---- refusals ----


def test_masks_drawn_in_every_epoch_are_refused(make_model):
    collator = Collator()
    collator.mlm = True
    with pytest.raises(ValueError, match="one output per example, but the masked tokens are drawn in every epoch"):
        cache_teacher_outputs(Dataset.from_list(examples(MLM)), Teacher([make_model(MLM)]), collator, COLUMNS)


@pytest.mark.parametrize(
    ("head", "changes", "options", "message"),
    [
        (MLM, {"vocab_size": 1001}, {}, "would store 1001 numbers for every token: give cache_top_k=64"),
        (T5, {"vocab_size": 1001}, {}, "would store 1001 numbers for every token: give cache_top_k=64"),
        ("BertModel", {}, {}, "BertModel has no task head, so it has no outputs to cache"),
        (BERT, {}, {"top_k": 1}, "BertForSequenceClassification has 3 classes per example: leave it out"),
        ("BertForQuestionAnswering", {}, {"top_k": 1}, "BertForQuestionAnswering has 2 classes per example: leave it"),
        (
            "BertForTokenClassification",
            {},
            {"top_k": 2},
            "cache_top_k=2 is for many classes per token, but BertForTokenClassification has 3 classes per token: "
            "leave it out",
        ),
        (MLM, {}, {"top_k": 99}, "cache_top_k=99 is for many classes per token, but BertForMaskedLM has 100 classes"),
        ("ElectraForPreTraining", {"num_labels": 9}, {"top_k": 2}, "cache_top_k=2 is for many classes per token"),
    ],
)
def test_outputs_that_cannot_be_cached_are_refused(make_model, head, changes, options, message):
    teacher = Teacher([make_model(head, **changes)])
    with pytest.raises(ValueError, match=re.escape(message)):
        cache(head, teacher, **options)


def test_many_classes_per_example_are_cached(make_model):
    data, _ = cache(BERT, Teacher([make_model(num_labels=1200)]))
    assert len(data["teacher_logits"][0]) == 1200
