"""The stand-alone functions prune, quantize, measure and export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.data.label_names import complete_label_names
from hf_efficient.errors import UserError
from hf_efficient.exporters.export import export
from hf_efficient.field_checks import check_argument
from hf_efficient.measurement.comparison import measure, model_inputs
from hf_efficient.measurement.finite import check_finite_weights
from hf_efficient.measurement.runtimes import build_runner, check_runtime
from hf_efficient.measurement.target_costs import TARGET_COSTS, median_latencies_ms, warn_if_launch_bound
from hf_efficient.models.batches import Batch, check_batches
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.pruning.connection_criteria import CONNECTION_SAMPLES, squared_gradients
from hf_efficient.pruning.losses import Loss, task_or_sampled_loss
from hf_efficient.pruning.reconstruction import RECONSTRUCTION_SAMPLES, reconstruct_outputs
from hf_efficient.pruning.scoring import score_units, take_examples
from hf_efficient.pruning.selection import Scores, Selection, remove_units
from hf_efficient.pruning.sparsity import sparsify
from hf_efficient.pruning.target_search import TargetSearch
from hf_efficient.pruning.validation import check_prunable
from hf_efficient.quantization.calibration import InputStatistics
from hf_efficient.quantization.codebook import compare_with_uniform, quantize_codebook
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.quantization.int8 import calibrate, describe_float_parts, quantize_int8
from hf_efficient.quantization.torchao import quantize_torchao
from hf_efficient.quantization.validation import check_quantization

logger = logging.get_logger(__name__)

# Values of `latency_runtime` besides the runtimes: forms of the student alone.
STUDENT_FORMS = ("int8", "fastest")

__all__ = [
    "build_target_search",
    "check_pruning",
    "check_quantization",
    "describe_quantization",
    "export",
    "measure",
    "prune",
    "quantize",
    "select_units",
]


def quantize(
    model: PreTrainedModel,
    config: QuantizationConfig | None = None,
    calibration: Iterable[Mapping[str, torch.Tensor]] | None = None,
    statistics: Mapping[str, InputStatistics] | None = None,
) -> PreTrainedModel:
    """Return a quantized copy of `model`; `save_pretrained` writes it and `from_pretrained` loads it.

    The Linears of the layers and the embedding tables are quantized. Pooler and task head stay in float: they are
    small, and errors in them change predictions directly.

    | argument | meaning |
    | --- | --- |
    | config | scheme and modules; None: int8_static with calibration batches, int8_dynamic without |
    | calibration | batches (batch, tokens) of training data; int8_static needs them, the others are better with them |
    | statistics | instead of `calibration`: what was observed in quantization-aware training, by Linear |

    From calibration batches `int8_static` computes the ranges of activations. All int8 schemes round weights so that
    errors compensate each other on these batches; codebooks weigh the errors of weights by squared gradients, the
    diagonal of the Fisher information.

    Raises UserError if the model is quantized already, weights are NaN or infinite, no module of it would be
    quantized, calibration batches are missing for int8_static or given to torchao, or torchao is requested and not
    installed; UnsupportedModelError if the family of the model is unknown, except with torchao.
    """
    _check_model(model)
    if config is None:
        config = QuantizationConfig("int8_dynamic" if calibration is None else "int8_static")
    example = "a QuantizationConfig, such as QuantizationConfig('int8_dynamic')"
    check_argument("config", config, QuantizationConfig, example)
    if calibration is not None:
        calibration = check_batches("calibration", calibration)
    check_quantization(model, config)
    check_finite_weights(model, "the model")
    if config.needs_calibration and calibration is None and statistics is None:
        raise UserError(
            "scheme='int8_static' computes ranges of activations from data: give `calibration`, batches of training "
            "data, or scheme='int8_dynamic'"
        )
    if config.torchao and calibration is not None:
        raise UserError("torchao=True needs no calibration data: leave `calibration` out")
    if config.is_int8 and calibration is not None:
        statistics = calibrate(model, config, calibration)
    if config.embeddings_are_codebooks:
        importance = None
        if calibration is not None and not config.is_int8:
            importance = squared_gradients(model, calibration, task_or_sampled_loss())
        model = quantize_codebook(model, config, importance)
    if config.is_int8:
        model = quantize_torchao(model, config) if config.torchao else quantize_int8(model, config, statistics)
    complete_label_names(model.config)
    return model


def _check_model(model: Any) -> None:
    check_argument("model", model, PreTrainedModel, "a model of Transformers, as from_pretrained returns it")


def describe_quantization(model: PreTrainedModel, quantized: PreTrainedModel, config: QuantizationConfig) -> str:
    """Return one line on how `model` was quantized, for a report: what stays in float; size and error of codebooks."""
    comparison = compare_with_uniform(model, quantized)
    text = config.describe() + describe_float_parts(model, quantized, config)
    if comparison is None:
        return text
    return (
        f"{text}; the codebooks take {comparison['bits_per_weight']:.2f} bits per weight with a relative "
        f"squared error of {comparison['error']:.2%} (uniform quantization of the same size: "
        f"{comparison['uniform_error']:.2%})"
    )


def check_pruning(model: PreTrainedModel, config: PruningConfig) -> None:
    """Check that `model` can be pruned as `config` requests, before any work is done.

    Raises UserError if `config` requests nothing, a stack that `model` does not have or a runtime that is unknown or
    not installed, or if `model` is quantized; UnsupportedModelError if its architecture or task head is not supported.
    """
    check_prunable(model, config)
    if config.latency_runtime not in STUDENT_FORMS:
        check_runtime(config.latency_runtime)


def build_target_search(
    model: PreTrainedModel,
    config: PruningConfig,
    reference: PreTrainedModel | None = None,
    cost_file: Path | None = None,
) -> TargetSearch:
    """Return the search for the target of `config`, with its cost measured; arguments as for `prune`."""
    cost = None
    if config.target is not None:
        if config.target_speedup is not None and config.latency_runtime == "torch":
            warn_if_launch_bound(model, config.latency_batch_size, config.latency_sequence_length)
        cost = TARGET_COSTS[config.target[0]](
            batch_size=config.latency_batch_size,
            sequence_length=config.latency_sequence_length,
            new_tokens=config.latency_new_tokens,
            **_student_form(model, config),
        )
    return TargetSearch(model, config, cost, reference, cost_file)


def _student_form(model: PreTrainedModel, config: PruningConfig) -> dict[str, Any]:
    """Return the runtime that latencies are measured in and, where students are in another form, what runs these."""
    name = config.latency_runtime
    if name not in STUDENT_FORMS:
        return {"runtime": name}
    if name == "fastest" and config.target_speedup is not None:
        inputs = model_inputs(model, config.latency_batch_size, config.latency_sequence_length)
        latencies = median_latencies_ms(
            {"torch": build_runner("torch", model, inputs), "int8": int8_runner(model, inputs)}
        )
        name = min(latencies, key=lambda form: latencies[form])
        logger.info(f"latency_runtime='fastest': students are measured in {name}, which is the fastest here")
    return {"runtime": "torch", "run_student": int8_runner if name == "int8" else None}


def int8_runner(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> Callable[[], Any]:
    """Return the forward pass of `model` in int8, quantized for its speed: with the ranges of these inputs alone."""
    config = QuantizationConfig("int8_static")
    statistics = calibrate(model, config, [inputs], second_moments=False)
    return build_runner("torch", quantize(model, config, statistics=statistics), inputs)


def select_units(
    model: PreTrainedModel,
    config: PruningConfig,
    batches: Sequence[Batch] = (),
    reference: PreTrainedModel | None = None,
    loss: Loss | None = None,
) -> Selection:
    """Return the layers and units of `model` that pruning would keep; arguments as for `prune`."""
    search = build_target_search(model, config, reference)
    loss = task_or_sampled_loss(reference) if loss is None else loss
    return search.select_until_met(score_units(model, config, batches, loss))


def prune(
    model: PreTrainedModel,
    config: PruningConfig,
    dataloader: Iterable[Batch] = (),
    reference: PreTrainedModel | None = None,
    loss: Loss | None = None,
    scores: Scores | None = None,
    cost_file: Path | None = None,
) -> PreTrainedModel:
    """Return a smaller copy of `model`, which is not trained; `model` itself is not changed.

    | argument | meaning |
    | --- | --- |
    | dataloader | batches as tensors by name, for criterion and reconstruction; magnitude and random need none |
    | reference | the model that the target is a ratio of; None: `model` |
    | loss | sum of the losses of a batch's examples, shape (); None: `task_or_sampled_loss(reference)` |
    | scores | scores of the units; None: computed by the criterion of `config` |
    | cost_file | measured costs are written to it, and read from it for the same models and settings |

    The cost of the student is measured, latencies alternately with those of the reference, and the selection is
    repeated until the target is met. With batches, the outputs of the blocks are then reconstructed (`recovery`).
    Single connections are removed last.

    Raises UserError if `config` requests nothing, weights are NaN or infinite, or its target cannot be reached; the
    message says which can.
    Raises UnsupportedModelError if the architecture is not supported.
    """
    _check_model(model)
    check_argument("config", config, PruningConfig, "a PruningConfig, such as PruningConfig(target_speedup=2)")
    dataloader = check_batches("dataloader", dataloader)
    check_pruning(model, config)
    check_finite_weights(model, "the model")
    loss = task_or_sampled_loss(reference) if loss is None else loss
    batches = take_examples(dataloader, config.scoring_samples, model.device)
    student = model
    if config.removes_units:
        scores = score_units(model, config, batches, loss) if scores is None else scores
        selection = build_target_search(model, config, reference, cost_file).select_until_met(scores)
        student = remove_units(model, selection)
        if config.recovery and batches:
            calibration_batches = take_examples(batches, RECONSTRUCTION_SAMPLES, model.device)
            reconstruct_outputs(student, model, selection, calibration_batches)
    if config.removes_connections:
        connection_batches = take_examples(batches, CONNECTION_SAMPLES, model.device)
        student = sparsify(
            student, connection_batches, criterion=config.criterion, loss=loss, **config.connection_settings()
        )
    complete_label_names(student.config)
    return student
