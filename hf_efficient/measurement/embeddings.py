"""What is measured of sentence embeddings: similarities of pairs, their spread, and the nearest neighbours kept."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from hf_efficient.measurement.metrics import regression_metrics
from hf_efficient.measurement.row_metrics import RowMetric, regression_row_metrics

Array = NDArray[Any]

MEAN, STD = "cosine_mean", "cosine_std"
QUANTIZED_EMBEDDINGS = ("int8", "binary")
QUANTIZING_VERSION = 6
NEIGHBOURS = 10
MAX_TEXTS = 5000  # whose neighbours are compared: the similarities of all pairs take 100 MB
# Above this mean similarity, or below this spread, texts can hardly be told apart. Random texts have about 0.05 in
# most models and 0.75 in the E5 models; the spread is 0.1 and 0.03.
MAX_MEAN_SIMILARITY, MIN_SPREAD = 0.95, 0.01


@dataclass(frozen=True)
class SimilaritySpread:
    """Mean and standard deviation of the cosine similarities between different texts."""

    mean: float
    std: float

    @property
    def has_collapsed(self) -> bool:
        """Whether the embeddings of all texts are nearly the same."""
        return self.mean > MAX_MEAN_SIMILARITY or self.std < MIN_SPREAD

    def describe(self) -> str:
        """Return both in words."""
        return f"mean {self.mean:.3f}, standard deviation {self.std:.3f}"


def similarity_spread(embeddings: Array) -> SimilaritySpread:
    """Return mean and spread of the similarities of embeddings (texts, size), of at most `MAX_TEXTS` of them."""
    vectors = normalize(embeddings[:MAX_TEXTS])
    count = len(vectors)
    if count < 2:
        return SimilaritySpread(float("nan"), float("nan"))
    similarities = (vectors @ vectors.T)[np.triu_indices(count, k=1)]
    return SimilaritySpread(float(similarities.mean()), float(similarities.std()))


def neighbours_kept(embeddings: Array, reference: Array, count: int = NEIGHBOURS) -> float | None:
    """Return the share of the nearest neighbours in `reference` that are among the nearest in `embeddings`.

    | argument | shape | meaning |
    | --- | --- | --- |
    | embeddings, reference | (texts, size) | of the same texts, also of other sizes; at most `MAX_TEXTS` |
    | count | | how many neighbours of each text are compared; half of the texts at most |

    None if the texts are not the same, or fewer than four.
    """
    if len(embeddings) != len(reference) or len(embeddings) < 4:
        return None
    texts = min(len(embeddings), MAX_TEXTS)
    count = min(count, texts // 2)
    found, expected = (nearest_neighbours(each[:texts], count) for each in (embeddings, reference))
    kept = [len(np.intersect1d(*pair)) for pair in zip(found, expected, strict=True)]
    return float(np.mean(kept) / count)


def nearest_neighbours(embeddings: Array, count: int) -> Array:
    """Return the indices (texts, count) of the nearest other texts of each, by cosine similarity, in any order."""
    vectors = normalize(embeddings)
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -np.inf)
    return np.argpartition(-similarities, count - 1, axis=1)[:, :count]


def normalize(embeddings: Array) -> Array:
    """Return embeddings (..., size) of length 1."""
    vectors = np.asarray(embeddings, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def pair_similarities(embeddings: Array) -> Array:
    """Return the cosine similarity (rows,) of the two texts of each row of embeddings (rows, 2, size)."""
    vectors = normalize(embeddings)
    return (vectors[:, 0] * vectors[:, 1]).sum(-1)


def has_scores(embeddings: Array, scores: Array) -> bool:
    """Whether rows are pairs of texts with a score."""
    return embeddings.shape[1] == 2 and not np.isnan(scores).all()


def sentence_similarity_metrics(embeddings: Array, scores: Array) -> dict[str, float]:
    """Return the correlations of the similarities of pairs with their scores, and mean and spread of similarities.

    | argument | shape | meaning |
    | --- | --- | --- |
    | embeddings | (rows, texts, size) | of the one or two texts of each row |
    | scores | (rows,) | how similar the texts of a pair are; NaN: not known |

    "spearman_int8" and "spearman_binary" are those by the embeddings of 8 bits and of one bit a number, if
    sentence-transformers 6 is installed, which quantizes them. "cosine_mean" and "cosine_std" are those of the
    similarities of all texts to each other. Without scores there are no correlations.
    """
    metrics: dict[str, float] = {}
    if has_scores(embeddings, scores):
        metrics |= regression_metrics(pair_similarities(embeddings)[:, None], scores)
        metrics = {name: metrics[name] for name in ("spearman", "pearson")} | quantized_metrics(embeddings, scores)
    spread = similarity_spread(embeddings.reshape(-1, embeddings.shape[-1]))
    return metrics | {MEAN: spread.mean, STD: spread.std}


def quantized_metrics(embeddings: Array, scores: Array) -> dict[str, float]:
    """Return the Spearman correlations by the quantized embeddings (rows, 2, size); none without the package for it.

    The ranges of 8 bits are those of all the embeddings.
    """
    if not _can_quantize():
        return {}
    texts = embeddings.reshape(-1, embeddings.shape[-1])
    similarities = {
        name: pair_similarities(quantize(texts, name).reshape(*embeddings.shape[:2], -1))
        for name in QUANTIZED_EMBEDDINGS
    }
    return {
        f"spearman_{name}": float(spearmanr(scores, values).statistic)
        for name, values in similarities.items()
        if np.ptp(values)  # of constant values there is no correlation
    }


def _can_quantize() -> bool:
    """Whether sentence-transformers is installed, in a version that quantizes embeddings in the module used here."""
    try:
        return int(version("sentence-transformers").partition(".")[0]) >= QUANTIZING_VERSION
    except PackageNotFoundError:
        return False


def quantize(embeddings: Array, precision: str) -> Array:
    """Return the numbers of quantized embeddings (texts, size), those of one bit as 0 and 1."""
    from sentence_transformers.util.quantization import quantize_embeddings

    if precision == "binary":
        return np.unpackbits(quantize_embeddings(embeddings, "ubinary"), axis=-1)
    ranges = np.stack([embeddings.min(axis=0), embeddings.max(axis=0)])
    quantized: Array = quantize_embeddings(embeddings, precision, ranges=ranges)
    return quantized


def sentence_similarity_row_metrics(embeddings: Array, scores: Array) -> dict[str, RowMetric]:
    """Return the correlations of the similarities of pairs with their scores, as functions of the rows."""
    if not has_scores(embeddings, scores):
        return {}
    return regression_row_metrics(pair_similarities(embeddings)[:, None], scores)
