"""Checks of `TrainingArguments`, and of what they need of data and callbacks, before any work is done."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback, Trainer, TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, has_length

from hf_efficient.distillation.head_outputs import get_head_outputs
from hf_efficient.errors import UserError

# `report_to` also takes these.
_REPORT_TO = ("all", "none")


def check_report_to(args: TrainingArguments | None) -> None:
    """Raise UserError if `report_to` names a package that is unknown or not installed."""
    available = get_available_reporting_integrations()
    for integration in [] if args is None else args.report_to:
        if isinstance(integration, str) and integration not in (*available, *_REPORT_TO):
            raise UserError(
                f"report_to={integration!r} is unknown or its package is not installed: give none, or one of "
                f"{', '.join(available) or 'the packages that Transformers supports, after installing it'}"
            )


def check_label_smoothing(args: TrainingArguments, model: Any) -> None:
    """Raise UserError if labels are to be smoothed that are no classes."""
    if not args.label_smoothing_factor:
        return
    problem, name = getattr(model.config, "problem_type", None), type(model).__name__
    head = get_head_outputs(model)
    has_one_output = name.endswith("ForSequenceClassification") and model.config.num_labels == 1
    reason = None
    if problem == "regression" or has_one_output:
        reason = "the labels of a regression are numbers"
    elif problem == "multi_label_classification":
        reason = "the classes of a multi-label model do not exclude each other"
    elif name.endswith("ForQuestionAnswering"):
        reason = "the labels of question answering are positions, for which the Trainer has no smoothing"
    elif head is not None and head.detects_replaced_tokens:
        reason = "a token that was replaced or not is no class"
    if reason is not None:
        raise UserError(
            f"label_smoothing_factor={args.label_smoothing_factor:g} smooths the labels of a classification, and "
            f"{reason}: leave it out"
        )


def check_run(trainer: Trainer, trains: bool) -> None:
    """Check what a run needs; `trains` says whether it has training steps.

    Raises UserError if there is no training data, or a callback or strategy has no metric to go by.
    """
    args, dataset = trainer.args, trainer.train_dataset
    if not trains:
        return
    if dataset is None or (has_length(dataset) and not len(dataset)):
        raise UserError(
            f"there is {'no' if dataset is None else 'an empty'} train_dataset: give data to train on (--train_file)"
        )
    stops_early = any(isinstance(callback, EarlyStoppingCallback) for callback in trainer.callback_handler.callbacks)
    evaluates = args.eval_strategy != IntervalStrategy.NO
    if stops_early and not (evaluates and args.metric_for_best_model):
        raise UserError(
            "EarlyStoppingCallback stops by a metric of evaluations: give metric_for_best_model, and eval_strategy="
            "'epoch' or 'steps'"
        )
    if args.save_strategy == SaveStrategy.BEST and not evaluates:
        raise UserError("save_strategy='best' needs evaluations: give eval_strategy='epoch' or 'steps'")


def check_selection_metric(args: TrainingArguments, metrics: Any) -> None:
    """Raise UserError if the metric that models are selected by is not one of `metrics`, those of an evaluation."""
    selects = args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST
    selects = selects or args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
    name = args.metric_for_best_model
    if not (selects and name and metrics and args.eval_strategy != IntervalStrategy.NO):
        return
    if f"eval_{name.removeprefix('eval_')}" not in metrics:
        known = [key.removeprefix("eval_") for key in metrics]
        raise UserError(f"metric_for_best_model={name!r} is not computed: give one of {', '.join(known)}")
