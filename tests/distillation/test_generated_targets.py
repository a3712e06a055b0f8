import pytest
import torch
from datasets import Dataset
from transformers import GenerationConfig

from hf_efficient.distillation.generated_targets import generate_targets


@pytest.fixture
def teacher(make_model):
    model = make_model("T5ForConditionalGeneration", seed=3)
    model.generation_config = GenerationConfig.from_model_config(model.config)
    return model


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    texts = [[*torch.randint(2, 100, (size,), generator=generator).tolist(), 1] for size in (3, 7, 2, 5, 9)]
    return Dataset.from_dict(
        {"input_ids": texts, "attention_mask": [[1] * len(ids) for ids in texts], "labels": [[5, 1]] * 5}
    )


@pytest.mark.parametrize("num_beams", [1, 3])
def test_targets_are_those_generated_for_each_text_alone(teacher, rows, num_beams):
    targets = generate_targets(rows, teacher, num_beams=num_beams, max_length=9, batch_size=3)
    for before, after in zip(rows, targets, strict=True):
        ids = torch.tensor([before["input_ids"]])
        tokens = teacher.generate(input_ids=ids, num_beams=num_beams, max_length=9, do_sample=False)[0, 1:].tolist()
        expected = tokens[: tokens.index(1) + 1] if 1 in tokens else tokens
        assert after["labels"] == [token for token in expected if token != 0]
        assert after["input_ids"] == before["input_ids"]


def test_both_targets_are_those_of_the_data_and_then_generated_ones(teacher, rows):
    both = generate_targets(rows, teacher, "both", max_length=6)
    assert both["labels"][:5] == rows["labels"][:]
    assert both["labels"][5:] == generate_targets(rows, teacher, max_length=6)["labels"][:]
    assert both["input_ids"][:] == rows["input_ids"][:] * 2


def test_targets_are_generated_once(teacher, rows, monkeypatch):
    first = generate_targets(rows, teacher, max_length=6)["labels"][:]

    def fail(*_, **__):
        raise AssertionError("generated again")

    monkeypatch.setattr(teacher, "generate", fail)
    assert generate_targets(rows, teacher, max_length=6)["labels"][:] == first
    with pytest.raises(AssertionError, match="generated again"):
        generate_targets(rows, teacher, max_length=7)


def test_teacher_that_does_not_generate_is_refused(make_model, rows):
    with pytest.raises(
        ValueError, match="generates targets, which BertForSequenceClassification does not: leave it out"
    ):
        generate_targets(rows, make_model())
