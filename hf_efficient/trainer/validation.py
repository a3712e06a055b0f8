"""Checks of a trainer's arguments, made before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import Trainer, TrainingArguments
from transformers.utils import logging

from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.errors import UserError
from hf_efficient.exporters.export import check_export
from hf_efficient.functions import check_pruning
from hf_efficient.measurement.environment import has_fast_bfloat16, processor_name
from hf_efficient.models import is_quantized
from hf_efficient.pruning.criteria import WEIGHT_BASED_CRITERIA
from hf_efficient.quantization.validation import check_quantization
from hf_efficient.trainer.argument_checks import check_label_smoothing
from hf_efficient.trainer.fsdp import check_fsdp_config, uses_fsdp
from hf_efficient.trainer.phases import has_training_steps
from hf_efficient.trainer.techniques import Techniques

logger = logging.get_logger(__name__)


def check_arguments(trainer: Trainer, techniques: Techniques, teachers: Sequence[Any]) -> None:
    """Check the configs of the techniques against each other and against the arguments of a stock `trainer`.

    Raises UserError if arguments contradict each other or something needed is missing, UnsupportedModelError if a
    technique does not support the architecture of the model.
    """
    warn_of_slow_precision(trainer.args)
    check_label_smoothing(trainer.args, trainer.model)
    check_fsdp_config(trainer.accelerator, trainer.model)
    if techniques.pruning.removes_anything:
        _check_pruning(trainer, techniques)
    if teachers and techniques.distillation is None:
        raise UserError("a teacher is given without distillation: add distillation=DistillationConfig()")
    if techniques.distillation is not None:
        _check_distillation(trainer, techniques.distillation)
    if techniques.quantizes:
        _check_quantization(trainer, techniques)
    _check_exports(trainer, techniques)


def warn_of_slow_precision(args: TrainingArguments) -> None:
    """Log a warning if bfloat16 is requested on a processor that has no instructions for it."""
    requested = [f"{name}=True" for name in ("bf16", "bf16_full_eval") if getattr(args, name)]
    if requested and has_fast_bfloat16(args.device) is False:
        logger.warning_once(
            f"{' and '.join(requested)}: {processor_name()} has neither AMX nor AVX512-BF16, so products of matrices "
            "take 6 to 9 times as long in bfloat16 as in float32 (measured with AVX2): leave it out"
        )


def _check_distillation(trainer: Trainer, distillation: DistillationConfig) -> None:
    if trainer.compute_loss_func is not None:
        raise UserError("compute_loss_func would replace the distillation loss: give one of the two")
    if trainer.model_init is not None and distillation.uses_intermediate_outputs:
        raise UserError(
            "model_init makes another model after the layers of this one were mapped to those of the teacher: give "
            "`model`"
        )


def _check_pruning(trainer: Trainer, techniques: Techniques) -> None:
    pruning = techniques.pruning
    check_pruning(trainer.model, pruning)
    if (pruning.ramp or pruning.rewind) and not has_training_steps(trainer.args):
        raise UserError("ramp and rewind need training, and num_train_epochs is 0: give num_train_epochs or max_steps")
    reads_weights = pruning.weights or pruning.criterion in WEIGHT_BASED_CRITERIA
    if pruning.ramp and reads_weights and uses_fsdp(trainer.accelerator):
        raise UserError(
            "ramp reads single weights during training (weights=..., and the criteria "
            f"{', '.join(WEIGHT_BASED_CRITERIA)}), and FSDP shards them: use rounds, or criterion='fisher'"
        )
    if trainer.optimizer is not None or trainer.lr_scheduler is not None:
        raise UserError(
            "an optimizer of the parameters before pruning cannot train those after it: leave `optimizers` out and "
            "give `optimizer_cls_and_kwargs`"
        )
    if trainer.model_init is not None:
        raise UserError("model_init would undo the pruning in every round: give `model`")


def _check_quantization(trainer: Trainer, techniques: Techniques) -> None:
    if not is_quantized(trainer.model):
        check_quantization(trainer.model, techniques.quantization)
    if techniques.quantization.needs_calibration and trainer.train_dataset is None:
        raise UserError(
            "scheme='int8_static' takes the ranges of activations from training data, and there is none: give "
            "train_dataset (--train_file), or scheme='int8_dynamic'"
        )
    if techniques.quantization.aware and trainer.model_init is not None:
        raise UserError("model_init makes another model, without fake quantization: give `model`")


def _check_exports(trainer: Trainer, techniques: Techniques) -> None:
    export = techniques.export
    for format in export.formats:
        check_export(trainer.model, format, export.quantization)
        if export.needs_calibration(format) and trainer.train_dataset is None:
            raise UserError(
                "OpenVINO's int8 takes the ranges of activations from training data, and there is none: give "
                "train_dataset, or export_quantization='int8_weight_only'"
            )
