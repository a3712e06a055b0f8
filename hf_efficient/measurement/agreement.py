"""How often two models predict the same class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def agreement(classes: NDArray[np.int64] | None, reference: NDArray[np.int64] | None) -> float | None:
    """Return the fraction of equal classes; None if they are not known, or not those of the same examples."""
    if classes is None or reference is None or classes.shape != reference.shape or not len(classes):
        return None
    return float((classes == reference).mean())
