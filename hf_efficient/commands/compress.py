"""The main job: data, teacher, trainer, report, card, push."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import PreTrainedModel, Seq2SeqTrainingArguments, TrainingArguments, set_seed
from transformers.utils import logging

from hf_efficient.commands.config import JobConfig
from hf_efficient.commands.output_dir import check_output_dir, clear_output_dir
from hf_efficient.commands.preparation import PreparedJob, create_student, prepare_job, trim_job_vocabulary
from hf_efficient.data.config import DataConfig
from hf_efficient.data.loading import load_splits
from hf_efficient.errors import UserError
from hf_efficient.exporters.export import check_export
from hf_efficient.functions import check_pruning
from hf_efficient.hub.publisher import push_output_dir
from hf_efficient.measurement.report import REPORT_NAME, CompressionReport
from hf_efficient.measurement.report_rows import with_ratios
from hf_efficient.quantization.validation import check_quantization
from hf_efficient.tasks import Task
from hf_efficient.trainer.checkpoints import save_atomically
from hf_efficient.trainer.evaluation import UntrimmedModel
from hf_efficient.trainer.trainer import EfficientSeq2SeqTrainer, EfficientTrainer

logger = logging.get_logger(__name__)


def compress(job: JobConfig) -> CompressionReport:
    """Make the job's model small, and writes it, its report, picture and card into `output_dir`.

    With nothing to compress it is plain fine-tuning. A model without the task's head is fine-tuned first. With
    `resume_from_checkpoint` an interrupted job goes on, and a finished one returns its report at once.

    Raises ValueError, TypeError: the settings or the data cannot work; nothing is written then.
    """
    args, output = job.training, Path(job.training.output_dir)
    # From a command line "True" and "False" arrive as if they were paths.
    said = {"true": True, "false": None}
    args.resume_from_checkpoint = said.get(str(args.resume_from_checkpoint).lower(), args.resume_from_checkpoint)
    if args.resume_from_checkpoint and (output / REPORT_NAME).exists():
        logger.warning(f"{output} holds a finished run: nothing is done")
        if args.push_to_hub and args.should_save:
            push_output_dir(output, args)
        return CompressionReport.load(output)
    check_output_dir(job, output)

    set_seed(args.seed)
    splits = load_splits(job.data, args.seed) if job.data.named or job.needs_dataset else DatasetDict()
    ready = prepare_job(job, splits)
    task, model, pruning = ready.task, ready.model, job.pruning
    if args.train_sampling_strategy == "random":
        # Batches of like lengths waste no time on padding.
        args.train_sampling_strategy = "group_by_length"
    if pruning.removes_anything:
        check_pruning(model, pruning)  # before a teacher is trained in vain
    for format in job.export.formats:
        check_export(model, format, job.export.quantization)
    if job.quantization.scheme is not None:
        check_quantization(model, job.quantization)
    _check_pruning_order(job, ready)
    trainer_class = _select_trainer_class(task, args, job)
    compresses = job.uses_distillation or pruning.removes_anything or pruning.vocabulary or job.quantization.scheme is not None
    first: tuple[str, ...] = ()
    if not ready.tuned and compresses and not job.model.teacher_name_or_path and not pruning.before_training:
        logger.warning(f"{job.model.model_name_or_path} has no head for {task.name}: it is fine-tuned first")
        if not args.resume_from_checkpoint and args.should_save:
            # Else the run that is replaced would pass for this one, were this one interrupted.
            (output / REPORT_NAME).unlink(missing_ok=True)
            shutil.rmtree(output / "_teacher", ignore_errors=True)
        model, first = _fine_tune_teacher(trainer_class, model, args, task, ready.for_trainer())
    untrimmed = None
    if pruning.vocabulary:
        whole = dataclasses.replace(ready, model=model)
        ready, token_ids = trim_job_vocabulary(whole)
        untrimmed = UntrimmedModel(model, token_ids, whole.data["evaluation"], whole.compute_metrics)
        model = ready.model

    teachers: Any = ready.teachers
    if job.model.creates_student:
        teachers = teachers or (None if untrimmed is not None else [model])
        set_seed(args.seed)  # the same student after an interruption
        model, made = create_student(job.model, model)
        first = (*first, made)

    trainer = trainer_class(
        model=model,
        args=args,
        teacher=teachers,
        distillation=job.distillation if job.uses_distillation else None,
        pruning=job.pruning,
        quantization=job.quantization,
        export=job.export,
        untrimmed=untrimmed,
        **ready.for_trainer(),
    )
    if job.model.overwrite_output_dir and not args.resume_from_checkpoint:
        if args.should_save:
            clear_output_dir(output, keep="_teacher" if first else "")
        trainer.accelerator.wait_for_everyone()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    found = trainer.report
    report = trainer.report = dataclasses.replace(
        found,
        task=task.pipeline,
        dataset=job.data.label if splits else None,
        metric=task.metric,
        models=with_ratios(found.models, task.metric),
        stages=(*first, *found.stages),
        configs={**found.configs, "data": _without_local_paths(job.data)},
    )
    if args.push_to_hub:
        trainer.push_to_hub(commit_message="Add compressed model")
    else:
        trainer.save_model()
        trainer.create_model_card()
    trainer.accelerator.wait_for_everyone()
    if args.should_save:
        for stage in (*output.glob("_round-*"), *output.glob("_cut-*"), output / "_tuning"):
            shutil.rmtree(stage, ignore_errors=True)
        for costs in output.glob("_costs-*"):
            costs.unlink()
    return report


def _check_pruning_order(job: JobConfig, ready: PreparedJob) -> None:
    """Raises ValueError: what is to be pruned before it is trained is trained already, or the other way round."""
    name, pruning = job.model.model_name_or_path, job.pruning
    if pruning.before_training and ready.tuned:
        raise UserError(
            f"before_training=True prunes what is not fine-tuned yet, {name} has a head for {ready.task.name}: "
            "leave it out, or give the pretrained model"
        )
    if pruning.before_training and job.model.distil and not job.model.teacher_name_or_path:
        raise UserError(
            "before_training=True leaves no trained model to learn from: name a teacher, or leave out --distil"
        )
    if not ready.tuned and not pruning.before_training and job.training.num_train_epochs == 0:
        raise UserError(
            f"{name} has no head for {ready.task.name}, and without training there will be none: fine-tune it first, "
            "by `hf-efficient compress` with no compression flag"
        )


def _select_trainer_class(task: Task, args: TrainingArguments, job: JobConfig) -> Any:
    """Return the trainer for the task. Raises ValueError: answers are to be written, and `args` say nothing of it."""
    if not task.writes:
        return EfficientTrainer
    if not isinstance(args, Seq2SeqTrainingArguments):
        raise UserError(f"{task.name} needs Seq2SeqTrainingArguments, not {type(args).__name__}")
    args.predict_with_generate = True
    if args.generation_max_length is None:
        args.generation_max_length = job.data.max_target_length
    return EfficientSeq2SeqTrainer


def _fine_tune_teacher(
    trainer_class: Any, model: PreTrainedModel, args: TrainingArguments, task: Task, common: Mapping[str, Any]
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Return the model fine-tuned as its own teacher, in `_teacher`, and what was done in words."""
    folder = Path(args.output_dir) / "_teacher"
    if args.resume_from_checkpoint and (folder / "config.json").exists():
        attention = model.config._attn_implementation
        again = task.auto_class.from_pretrained(folder, attn_implementation=attention)
        return again, ("fine-tuned on the same data first",)
    tuning = copy.copy(args)
    tuning.output_dir, tuning.push_to_hub = str(folder.with_name("_tuning")), False
    if not args.resume_from_checkpoint and args.should_save:
        shutil.rmtree(tuning.output_dir, ignore_errors=True)
    trainer = trainer_class(model=model, args=tuning, **{**common, "eval_dataset": None})
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if args.should_save:
        save_atomically(trainer.model, folder, common["processing_class"])
    trainer.accelerator.wait_for_everyone()
    return trainer.model, (f"fine-tuned on the same data first, {trainer.state.global_step} steps",)


def _without_local_paths(data: DataConfig) -> dict[str, Any]:
    """Return the data's settings without the paths of this machine."""
    values = dataclasses.asdict(data)
    return {name: Path(value).name if name.endswith("_file") and value else value for name, value in values.items()}
