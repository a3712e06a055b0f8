"""The losses of a sentence embedder on the labels of its texts."""

import pytest
import torch
from torch.nn import functional as F

from hf_efficient.trainer.pair_loss import CONTRASTIVE_TEMPERATURE, contrastive_loss, score_error


def embeddings(rows, texts, size=8):
    return torch.randn(rows, texts, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("texts", [2, 3])
def test_contrastive_loss_is_that_of_sentence_transformers(texts):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    states = embeddings(6, texts)
    reference = losses.MultipleNegativesRankingLoss(None, scale=1 / CONTRASTIVE_TEMPERATURE)
    expected = reference.compute_loss_from_embeddings([states[:, index] for index in range(texts)], None)
    torch.testing.assert_close(contrastive_loss(states), expected)


def test_copies_of_the_positive_are_no_negatives():
    states = embeddings(2, 2)
    assert float(contrastive_loss(states)) > 0.01
    states[1] = states[0]
    assert float(contrastive_loss(states)) == pytest.approx(0, abs=1e-5)


def test_scores_that_are_not_known_do_not_count():
    states = embeddings(3, 2)
    cosine = F.cosine_similarity(states[1, 0], states[1, 1], dim=0)
    loss = score_error(states, torch.tensor([torch.nan, 0.5, torch.nan]))
    torch.testing.assert_close(loss, (cosine - 0.5) ** 2)
    assert score_error(embeddings(3, 1), torch.full((3,), torch.nan)).isnan()
