"""The stand-alone functions prune, quantize, measure and export."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.errors import UserError
from hf_efficient.exporters.export import export
from hf_efficient.measurement.comparison import measure
from hf_efficient.pruning.batches import Batch
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.pruning.connection_criteria import CONNECTION_SAMPLES, squared_gradients
from hf_efficient.pruning.losses import Loss, task_or_sampled_loss
from hf_efficient.pruning.reconstruction import RECONSTRUCTION_SAMPLES, reconstruct_outputs
from hf_efficient.pruning.scoring import score_units, take_examples
from hf_efficient.pruning.selection import Scores, Selection, remove_units
from hf_efficient.pruning.sparsity import sparsify
from hf_efficient.pruning.target_search import TargetSearch
from hf_efficient.pruning.validation import check_prunable
from hf_efficient.quantization.codebook import compare_with_uniform, quantize_codebook
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.quantization.int8 import quantize_int8
from hf_efficient.quantization.validation import check_quantization

__all__ = ["check_quantization", "describe_quantization", "export", "measure", "prune", "quantize", "select_units"]


def quantize(
    model: PreTrainedModel,
    config: QuantizationConfig | None = None,
    calibration: Iterable[Mapping[str, torch.Tensor]] | None = None,
) -> PreTrainedModel:
    """Return a quantized copy of `model` that `save_pretrained` writes and `from_pretrained` loads as it is.

    The Linears of the layers are quantized, and the embedding tables unless told otherwise; pooler and task head stay
    in float, for they are small and what they lose shows at once.

    `calibration` holds batches, (batch, tokens), by which a codebook weighs entries: by their squared gradients, the
    diagonal of the Fisher information. 8-bit schemes find their ranges without.

    Raises ValueError: the model is quantized already, or nothing of it would be. Raises TypeError: codebooks for an
    architecture whose family is unknown.
    """
    config = config or QuantizationConfig()
    check_quantization(model, config)
    if calibration is not None and config.scheme != "codebook":
        raise UserError(f"scheme={config.scheme!r} needs no calibration data: leave `calibration` out")
    if config.embeddings_are_codebooks:
        importance = None
        if calibration is not None:
            importance = squared_gradients(model, calibration, task_or_sampled_loss())
        model = quantize_codebook(model, config, importance)
    return quantize_int8(model, config) if config.is_int8 else model


def describe_quantization(model: PreTrainedModel, quantized: PreTrainedModel, config: QuantizationConfig) -> str:
    """Return, for a report, what was done to `model`, and what codebooks cost and lose."""
    found = compare_with_uniform(model, quantized)
    if found is None:
        return config.describe()
    return (
        f"{config.describe()}; codebooks hold {found['bits_per_weight']:.2f} bits a weight, with a squared error of "
        f"{found['error']:.2%} (rounded evenly in as much room: {found['uniform_error']:.2%})"
    )


logger = logging.get_logger(__name__)


def select_units(
    model: PreTrainedModel,
    config: PruningConfig,
    batches: Sequence[Batch] = (),
    reference: PreTrainedModel | None = None,
    loss: Loss | None = None,
) -> Selection:
    """Return which layers and units of `model` stay; arguments as for `prune`."""
    shapes = TargetSearch(model, config, reference)
    return shapes.kept(score_units(model, config, batches, loss or task_or_sampled_loss(reference)))


def prune(
    model: PreTrainedModel,
    config: PruningConfig,
    dataloader: Iterable[Batch] = (),
    reference: PreTrainedModel | None = None,
    loss: Loss | None = None,
    scores: Scores | None = None,
    costs: Path | None = None,
) -> PreTrainedModel:
    """Return a smaller copy of `model`, without training it; `model` itself stays as it is.

    | argument | meaning |
    | --- | --- |
    | dataloader | batches as tensors by name, which criterion and recovery look at; magnitude and random need none |
    | reference | the model that the target is a ratio of; None: `model` |
    | loss | sum of the losses of a batch's examples, (); None: the task's, or by the answers of `reference` |
    | scores | found already; None: by the criterion of `config` |
    | costs | a file that keeps measured costs, and gives them back for the same models and settings |

    A target is kept: the student's cost is measured (latency in turn with the reference's), and while it misses the
    choice is made again. What is left is fitted to what it wrote before (`recovery`), where there is data. Single
    connections go last.

    Raises ValueError: the config asks for nothing, or its target cannot be reached; the message says what can.
    Raises TypeError: the architecture is unknown.
    """
    check_prunable(model, config)
    loss = loss or task_or_sampled_loss(reference)
    batches = take_examples(dataloader, config.scoring_samples, model.device)
    student = model
    if config.removes_units:
        scores = scores or score_units(model, config, batches, loss)
        selection = TargetSearch(model, config, reference, costs).kept(scores)
        student = remove_units(model, selection)
        if config.recovery and batches:
            reconstruct_outputs(
                student, model, selection, take_examples(batches, RECONSTRUCTION_SAMPLES, model.device)
            )
    if config.removes_connections:
        few = take_examples(batches, CONNECTION_SAMPLES, model.device)
        student = sparsify(student, few, criterion=config.criterion, loss=loss, **config.connections())
    return student
