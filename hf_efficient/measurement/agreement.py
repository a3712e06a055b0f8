"""How often two models predict the same class, or have the same texts as the nearest ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_efficient.measurement.embeddings import neighbours_kept

IGNORED_LABEL = -100


def predicted_classes(predictions: Any, labels: Any) -> NDArray[np.int64] | None:
    """Return the class that a model predicts for each label, of the tokens those that have one.

    | argument | shape |
    | --- | --- |
    | predictions | (examples, classes), or (examples, tokens, classes): logits |
    | labels | (examples,), or (examples, tokens); -100 where there is none |

    None if `predictions` are no logits of such labels: numbers of a regression, generated tokens, positions.
    """
    if not (isinstance(predictions, np.ndarray) and isinstance(labels, np.ndarray)):
        return None
    if predictions.shape[:-1] != labels.shape or predictions.shape[-1] < 2 or predictions.dtype.kind != "f":
        return None
    classes: NDArray[np.int64] = predictions.argmax(-1)[labels != IGNORED_LABEL]
    return classes


def comparable_predictions(predictions: Any, labels: Any) -> NDArray[Any] | None:
    """Return what `agreement` compares: classes, see `predicted_classes`, or the sentence embeddings (texts, size).

    Embeddings are predictions (rows, texts, size) with one label a row. None if `predictions` are neither.
    """
    if isinstance(predictions, np.ndarray) and predictions.ndim == 3 and np.ndim(labels) == 1:
        return predictions.reshape(-1, predictions.shape[-1])
    return predicted_classes(predictions, labels)


def agreement(predictions: NDArray[Any] | None, reference: NDArray[Any] | None) -> float | None:
    """Return the fraction of equal classes, or of the nearest neighbours that are kept, see `neighbours_kept`.

    None if the predictions are not known, or not those of the same examples.
    """
    if predictions is None or reference is None or len(predictions) != len(reference) or not len(predictions):
        return None
    if predictions.ndim == 2:
        return neighbours_kept(predictions, reference)
    return float((predictions == reference).mean())
