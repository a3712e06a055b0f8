"""MarginMSE: differences between the scores of documents of the same query."""

import pytest
import torch
from reviews import tiny_config
from transformers import BertForSequenceClassification

from hf_efficient import DistillationConfig, UserError
from hf_efficient.distillation.distiller import Distiller
from hf_efficient.distillation.losses import margin_error
from hf_efficient.distillation.teacher import Teacher


def test_errors_of_pairs_of_documents_of_a_query():
    student, teacher = torch.tensor([[1.0], [3.0], [0.0], [5.0]]), torch.tensor([[0.0], [0.0], [7.0], [5.0]])
    total, count = margin_error(student, teacher, torch.tensor([4, 4, 9, 4]))
    # Rows 0, 1 and 3 are of one query: (1 - 3)^2, (1 - 0)^2 and (3 - 0)^2.
    assert (float(total), int(count)) == (14.0, 3)


def test_scores_that_are_all_higher_are_no_error_and_other_queries_have_no_pairs():
    scores = torch.randn(6, 1)
    total, count = margin_error(scores + 2, scores, torch.zeros(6, dtype=torch.long))
    assert float(total) == pytest.approx(0, abs=1e-9)
    assert int(count) == 15
    total, count = margin_error(scores, -scores, torch.arange(6))
    assert (float(total), int(count)) == (0.0, 0)


def reranker(**fields):
    torch.manual_seed(0)
    return BertForSequenceClassification(tiny_config(**{"num_labels": 1, **fields})).eval()


def test_distiller_has_the_term_with_its_count():
    teacher, student = reranker(), reranker()
    with torch.no_grad():
        student.classifier.weight.mul_(2)
    config = DistillationConfig(hard_label_weight=0, logits_weight=0, margin_weight=0.5)
    distiller = Distiller(Teacher([teacher], [1.0]), config)
    distiller.prepare(student)
    inputs = {"input_ids": torch.randint(5, 90, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.long)}
    batch = {**inputs, "query": torch.tensor([3, 3, 8, 8])}
    with torch.no_grad():
        outputs, expected = student(**inputs), teacher(**inputs)
    (term,) = distiller(batch, outputs, {})
    total, _ = margin_error(outputs.logits, expected.logits, batch["query"])
    assert (term.name, term.weight) == ("margin_loss", 0.5)
    torch.testing.assert_close(term.sum, total)
    assert float(total) > 0
    assert int(distiller.counts(batch)[term.unit]) == 2
    with pytest.raises(UserError, match="no column 'query': use the task text-ranking"):
        distiller(inputs, outputs, {})


def test_classifiers_have_no_margins():
    with pytest.raises(UserError, match="has no single output that is one"):
        Distiller(Teacher([reranker(num_labels=2)], [1.0]), DistillationConfig(margin_weight=1))
