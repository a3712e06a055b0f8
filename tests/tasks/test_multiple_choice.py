import pytest

from hf_efficient.tasks import TASKS

SWAG = {"sent1": "the cat", "sent2": "it", "ending0": "ran", "ending1": "sat", "ending2": "lives", "ending3": "on"}


@pytest.mark.parametrize(
    ("row", "choice"), [(SWAG, "it ran"), ({"premise": "the cat", "choice1": "ran", "choice2": "sat"}, "ran")]
)
def test_each_choice_is_paired_with_its_context(make_splits, encode, tokenizer, row, choice):
    tokenized, _ = encode("multiple-choice", make_splits([{**row, "label": 1}]))
    example = tokenized["train"][0]
    assert len(example["input_ids"]) == len([name for name in row if name.startswith(("ending", "choice"))])
    assert example["input_ids"][0] == tokenizer("the cat", choice)["input_ids"]
    batch = TASKS["multiple-choice"].collator(tokenizer)([example, example])
    assert batch["input_ids"].shape[:2] == (2, len(example["input_ids"]))
    assert batch["labels"].tolist() == [1, 1]
