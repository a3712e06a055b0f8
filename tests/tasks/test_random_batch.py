import pytest
import torch

from hf_efficient.errors import UserError
from hf_efficient.tasks.random_batch import LABEL_FACTORIES, random_batch


@pytest.mark.parametrize(
    ("changes", "shape", "dtype"),
    [
        ({"num_labels": 3}, (4,), torch.int64),
        ({"num_labels": 1}, (4,), torch.float32),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, (4, 3), torch.float32),
    ],
)
def test_labels_fit_the_kind_of_classifier(make_model, changes, shape, dtype):
    batch = random_batch(make_model(**changes), 4, 9)
    assert batch["input_ids"].shape == (4, 9)
    assert (batch["labels"].shape, batch["labels"].dtype) == (shape, dtype)


@pytest.mark.parametrize("head", LABEL_FACTORIES)
def test_every_head_computes_a_loss(make_model, head):
    model = make_model(f"{'T5' if head == 'ConditionalGeneration' else 'Bert'}For{head}")
    assert model(**random_batch(model, 4, 9)).loss.isfinite()


def test_a_model_without_a_task_head_is_refused(make_model):
    with pytest.raises(UserError, match="BertModel has no task head with random labels: give --task, or a model with"):
        random_batch(make_model("BertModel"), 4, 9)
