"""Measurements of sentence embeddings: pairs, spread and neighbours."""

from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

from hf_efficient.measurement import embeddings as embeddings_module
from hf_efficient.measurement.embeddings import (
    neighbours_kept,
    quantized_metrics,
    sentence_similarity_metrics,
    similarity_spread,
)

RNG = np.random.default_rng(0)
RANDOM = RNG.normal(size=(60, 16))


def test_neighbours_of_the_same_directions_are_all_kept():
    rotation = np.linalg.qr(RNG.normal(size=(16, 16)))[0]
    assert neighbours_kept(3 * RANDOM @ rotation, RANDOM) == 1.0


def test_neighbours_of_unrelated_embeddings_are_kept_by_chance():
    assert neighbours_kept(RNG.normal(size=(60, 8)), RANDOM) == pytest.approx(10 / 59, abs=0.08)


def test_neighbours_are_counted():
    circle = np.linspace(0, np.pi, 8)
    reference = np.stack([np.cos(circle), np.sin(circle)], axis=-1)
    moved = reference.copy()
    moved[0] = -reference[3]  # leaves its two neighbours, and those who had it
    assert neighbours_kept(reference, reference, count=2) == 1.0
    assert neighbours_kept(moved, reference, count=2) < 1.0


def test_other_texts_have_no_agreement():
    assert neighbours_kept(RANDOM, RANDOM[:50]) is None
    assert neighbours_kept(RANDOM[:3], RANDOM[:3]) is None


def test_spread_tells_collapsed_embeddings():
    assert not similarity_spread(RANDOM).has_collapsed
    assert similarity_spread(1 + 1e-3 * RANDOM).has_collapsed
    spread = similarity_spread(np.eye(4))
    assert (spread.mean, spread.std) == (0.0, 0.0)


def test_pairs_that_are_as_similar_as_their_scores_correlate_perfectly():
    angles = np.linspace(0.1, 1.5, 12)
    second = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    embeddings = np.stack([np.tile([1.0, 0.0], (12, 1)), second], axis=1)
    metrics = sentence_similarity_metrics(embeddings, np.cos(angles))
    assert metrics["spearman"] == pytest.approx(1.0)
    assert metrics["pearson"] == pytest.approx(1.0)


def test_without_scores_there_is_no_correlation():
    metrics = sentence_similarity_metrics(RANDOM[:, None], np.full(60, np.nan))
    assert list(metrics) == ["cosine_mean", "cosine_std"]


def test_quantized_embeddings_correlate_as_the_evaluator_of_sentence_transformers_says():
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    rng = np.random.default_rng(1)
    first = rng.normal(size=(120, 32)).astype(np.float32)
    first /= np.linalg.norm(first, axis=-1, keepdims=True)
    second = first + rng.uniform(0, 0.4, (120, 1)) * rng.normal(size=(120, 32))
    second = (second / np.linalg.norm(second, axis=-1, keepdims=True)).astype(np.float32)
    scores = (first * second).sum(-1)
    metrics = quantized_metrics(np.stack([first, second], axis=1), scores)
    assert 0.8 < metrics["spearman_binary"] < metrics["spearman_int8"] < 1
    vectors = dict(zip([*"ab"], [first, second], strict=True))

    class Encoder:
        similarity_fn_name, model_card_data = "cosine", None

        def encode(self, sentences, **options):
            from sentence_transformers.util.quantization import quantize_embeddings

            return quantize_embeddings(vectors[sentences[0]], options["precision"])

    evaluator = evaluation.EmbeddingSimilarityEvaluator(
        ["a"], ["b"], [0.5], precision="binary", main_similarity="cosine"
    )
    evaluator.scores, evaluator.store_metrics_in_model_card_data = scores, lambda *args, **kwargs: None
    expected = evaluator(Encoder())[evaluator.primary_metric]
    assert metrics["spearman_binary"] == pytest.approx(expected, rel=1e-3)  # ties are rounded differently


@pytest.mark.parametrize("installed", [None, "5.4.1"])
def test_embeddings_are_not_quantized_without_a_version_that_does_it(monkeypatch, installed):
    def version(name):
        if installed is None:
            raise PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(embeddings_module, "version", version)
    assert quantized_metrics(RANDOM.reshape(30, 2, 16), np.arange(30.0)) == {}
