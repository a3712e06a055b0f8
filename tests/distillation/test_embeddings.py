"""Losses on sentence embeddings."""

import math

import pytest
import torch
from embedders import save_embedder
from torch.nn import functional as F

from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.distillation.distiller import Distiller
from hf_efficient.distillation.embeddings import similarity_error, similarity_order_loss, uniformity_loss
from hf_efficient.distillation.students import student_from_config
from hf_efficient.distillation.teacher import Teacher
from hf_efficient.models.sentence_files import AutoSentenceEmbedder

EMBEDDINGS = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
ROTATION = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]


@pytest.mark.parametrize("loss", [similarity_order_loss, similarity_error])
def test_similarities_do_not_depend_on_directions_sizes_or_lengths(loss):
    wider = torch.cat([3 * EMBEDDINGS @ ROTATION, torch.zeros(6, 4)], dim=1)
    value, count = loss(wider, EMBEDDINGS)
    assert float(value) == pytest.approx(0, abs=1e-5)
    assert count == 6
    assert float(loss(EMBEDDINGS.flip(0), EMBEDDINGS)[0]) > 0.01


def test_similarity_error_is_a_mean_over_the_other_texts():
    one, other = torch.eye(2), torch.ones(2, 2)  # similarities 0 and 1
    assert float(similarity_error(one, other)[0]) == pytest.approx(2.0)


@pytest.mark.parametrize("loss", [similarity_order_loss, similarity_error])
def test_a_single_text_has_no_similarities(loss):
    assert float(loss(EMBEDDINGS[:1], EMBEDDINGS[:1])[0]) == 0.0


def test_uniformity_is_lowest_for_spread_embeddings():
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(uniformity_loss(opposite)[0]) == pytest.approx(2 * -8.0)  # distance 2, squared, times 2
    assert float(uniformity_loss(torch.ones(4, 2))[0]) == pytest.approx(0.0, abs=1e-6)


@pytest.fixture
def teacher(tmp_path):
    return AutoSentenceEmbedder.from_pretrained(save_embedder(tmp_path / "model")).eval()


def batch():
    ids = torch.randint(5, 100, (5, 7), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def terms(teacher, student, **config):
    distiller = Distiller(Teacher([teacher]), DistillationConfig(hard_label_weight=0, hidden_weight=0, **config))
    distiller.prepare(student)
    with distiller.capture() as activations:
        outputs = student(**batch())
    return distiller, outputs, {term.name: term for term in distiller(batch(), outputs, activations)}


def test_a_copy_of_the_teacher_has_no_loss(teacher):
    _, _, found = terms(teacher, teacher)
    assert set(found) == {"soft_label_loss", "similarity_loss"}
    assert all(float(term.sum) == pytest.approx(0, abs=1e-5) for term in found.values())


def test_the_distance_of_embeddings_is_that_of_their_cosines(tmp_path, teacher):
    student = AutoSentenceEmbedder.from_pretrained(save_embedder(tmp_path / "student", seed=1)).eval()
    distiller, outputs, found = terms(teacher, student, uniformity_weight=0.1)
    cosines = F.cosine_similarity(outputs.sentence_embedding, teacher(**batch()).sentence_embedding)
    assert found["soft_label_loss"].sum.item() == pytest.approx((1 - cosines).sum().item(), rel=1e-5)
    assert int(distiller.counts(batch())["soft"]) == 5
    assert math.isfinite(float(found["uniformity_loss"].sum))


def test_prefixes_of_a_matryoshka_teacher_are_compared_too(tmp_path, teacher):
    teacher.config.matryoshka_dimensions = [8, 16, 32]
    student = AutoSentenceEmbedder.from_pretrained(save_embedder(tmp_path / "student", seed=1)).eval()
    _, outputs, found = terms(teacher, student)
    expected = teacher(**batch()).sentence_embedding
    distances = [
        (1 - F.cosine_similarity(outputs.sentence_embedding[:, :size], expected[:, :size])).sum() for size in (8, 16)
    ]
    assert float(found["matryoshka_loss"].sum) == pytest.approx(float(sum(distances) / 2), rel=1e-4)


def test_a_narrower_student_learns_through_a_projection(teacher):
    student = student_from_config(teacher, "hidden_size=16,num_attention_heads=2")
    assert student(**batch()).sentence_embedding.shape == (5, 16)
    distiller, _, found = terms(teacher, student)
    projection = distiller.projections["sentence_embedding"]
    assert projection.weight.shape == (32, 16)
    sum(term.weight * term.sum for term in found.values()).backward()
    assert projection.weight.grad.abs().sum() > 0
    assert student.embeddings.word_embeddings.weight.grad.abs().sum() > 0
