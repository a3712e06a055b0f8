"""A job from its configuration to its result: data, teacher, student, report, model card, push."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from rich.console import Console
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from hf_efficient.commands.arguments import JobFlags
from hf_efficient.commands.config import JobConfig
from hf_efficient.commands.output_dir import (
    check_output_dir,
    check_same_run,
    create_output_dir,
    explain_write_errors,
    is_finished,
    recover_output_dir,
    run_in,
)
from hf_efficient.commands.preparation import PreparedJob, create_student, prepare_job, trim_job_vocabulary
from hf_efficient.commands.run_manifest import settings_of_job
from hf_efficient.commands.training_arguments import build_training_arguments
from hf_efficient.commands.training_defaults import complete_training
from hf_efficient.data.loading import load_splits
from hf_efficient.errors import UserError
from hf_efficient.exporters.export import check_export
from hf_efficient.functions import check_pruning
from hf_efficient.hub.publisher import push_output_dir
from hf_efficient.hub.usage import loading_code
from hf_efficient.measurement.formatting import printable
from hf_efficient.measurement.report import CompressionReport
from hf_efficient.measurement.report_rows import with_ratios
from hf_efficient.quantization.validation import check_quantization
from hf_efficient.tasks.inference import reads_plain_text
from hf_efficient.tasks.task import Task
from hf_efficient.trainer.checkpoints import is_complete, save_atomically
from hf_efficient.trainer.evaluation import UntrimmedModel
from hf_efficient.trainer.trainer import EfficientSeq2SeqTrainer, EfficientTrainer

logger = logging.get_logger(__name__)

# From a command line these arrive as texts, as if they were paths.
RESUME_VALUES = {"true": True, "false": None}


def build_job_config(flags: JobFlags) -> JobConfig:
    """Return the configuration that the flags of a command line describe."""
    return JobConfig(
        model=flags.model,
        data=flags.data,
        distillation=flags.distillation,
        pruning=flags.pruning,
        quantization=flags.quantization,
        training=build_training_arguments(flags.training),
        export=flags.export,
        given_arguments=frozenset(flags.training),
    )


def run_and_print(flags: JobFlags) -> None:
    """Run the job that the flags describe, and print what was measured and where the result is."""
    config = build_job_config(flags)
    report, output_dir = compress(config), Path(config.training.output_dir)
    print_report(report)
    console = Console()
    console.print(f"Model, card, report and picture: {printable(str(output_dir))}", markup=False, soft_wrap=True)
    if config.training.should_save and (code := loading_code(report, output_dir)):
        console.print("Load it by:", *code, sep="\n", markup=False, highlight=False, soft_wrap=True)


def print_report(report: CompressionReport) -> None:
    """Print the summary of `report`, its stages and its table."""
    console, report = Console(), report.with_names(printable)
    if summary := report.summary():
        console.print(summary, markup=False)
    for number, stage in enumerate(report.stages, start=1):
        console.print(f"{number}. {stage}", markup=False)
    console.print(report.table())


def compress(config: JobConfig, progress: TrainerCallback | None = None) -> CompressionReport:
    """Compress the model of `config`, and write it, its report, picture and card into `output_dir`.

    `progress` shows the progress of the training, instead of the progress bars or printed logs of Transformers.

    Without anything to compress it is plain fine-tuning. A model without the head of the task is fine-tuned first.
    With `resume_from_checkpoint` an interrupted job is resumed, and a finished one returns its report.

    Raises UserError if the settings or the data cannot work; nothing is written in that case.
    """
    args, output_dir = config.training, Path(config.training.output_dir)
    resume = str(args.resume_from_checkpoint).lower()
    args.resume_from_checkpoint = RESUME_VALUES.get(resume, args.resume_from_checkpoint)
    with args.main_process_first(local=False, desc="the end of what a killed run had begun"):
        if args.process_index == 0:
            recover_output_dir(output_dir)
    if args.resume_from_checkpoint and is_finished(output_dir):
        return _finished_report(output_dir, args)
    check_output_dir(config, output_dir)

    set_seed(args.seed)
    has_data = config.data.is_given or config.needs_dataset
    plain_text = reads_plain_text(config.model.task, config.model.model_name_or_path)
    splits = load_splits(config.data, args.seed, plain_text) if has_data else DatasetDict()
    prepared = prepare_job(config, splits)
    config = dataclasses.replace(config, distillation=prepared.fit_distillation(config.distillation))
    task = prepared.task
    if args.train_sampling_strategy == "random":
        args.train_sampling_strategy = "group_by_length"  # batches of similar lengths have little padding
    _check_techniques(config, prepared)
    trainer_class = _select_trainer_class(task, args, config)
    if "train" in prepared.tokenized_splits:
        config = complete_training(config, prepared.model, len(prepared.tokenized_splits["train"]))
    create_output_dir(output_dir)
    settings, is_resumed = settings_of_job(config, splits), bool(args.resume_from_checkpoint)
    if is_resumed:
        check_same_run(output_dir, settings)
    owner = run_in(output_dir, settings, is_resumed) if args.process_index == 0 else nullcontext()
    with explain_write_errors(output_dir), owner:
        return _run_job(config, prepared, trainer_class, has_data=len(splits) > 0, progress=progress)


def _run_job(
    config: JobConfig, prepared: PreparedJob, trainer_class: Any, has_data: bool, progress: TrainerCallback | None
) -> CompressionReport:
    """Train, measure and save what is prepared, and return the report."""
    args, task = config.training, prepared.task
    stages: tuple[str, ...] = ()
    if _needs_fine_tuning(config, prepared):
        logger.warning(f"{config.model.model_name_or_path} has no head for {task.name}: it is fine-tuned first")
        model, stages = _fine_tune_teacher(trainer_class, prepared, config)
        prepared = dataclasses.replace(prepared, model=model)
    untrimmed = None
    if config.pruning.vocabulary:
        trimmed, token_ids, split_words = trim_job_vocabulary(prepared)
        evaluated, compute_metrics = prepared.tokenized_splits["evaluation"], prepared.compute_metrics
        untrimmed = UntrimmedModel(prepared.model, token_ids, evaluated, compute_metrics, split_words)
        prepared = trimmed
    model, teachers = prepared.model, prepared.teachers
    if config.model.creates_student:
        if not teachers and untrimmed is None:
            teachers = (model,)
        set_seed(args.seed)  # the same student when the job is resumed
        model, description = create_student(config.model, model)
        stages = (*stages, description)

    trainer = _create_trainer(
        trainer_class,
        model=model,
        args=args,
        teacher=teachers,
        distillation=config.distillation if config.uses_distillation else None,
        pruning=config.pruning,
        quantization=config.quantization,
        export=config.export,
        untrimmed=untrimmed,
        **prepared.trainer_kwargs(),
    )
    if progress is not None:
        trainer.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
        trainer.add_callback(progress)
    trainer.complete_report = partial(_complete_report, config=config, prepared=prepared, stages=stages)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if args.push_to_hub:
        trainer.push_to_hub(commit_message="Add compressed model")
    else:
        trainer.create_model_card()
    trainer.accelerator.wait_for_everyone()
    report: CompressionReport = trainer.report
    return report


def _finished_report(output_dir: Path, args: TrainingArguments) -> CompressionReport:
    """Return the report of a finished job, after pushing its result if that is requested."""
    logger.warning(f"{output_dir} contains a finished run: there is nothing to resume")
    if args.push_to_hub and args.should_save:
        push_output_dir(output_dir, args)
    return CompressionReport.load(output_dir)


def _check_techniques(config: JobConfig, prepared: PreparedJob) -> None:
    """Raise UserError if the model cannot be pruned, exported or quantized as requested."""
    if config.pruning.removes_anything:
        check_pruning(prepared.model, config.pruning)
    for format in config.export.formats:
        check_export(prepared.model, format, config.export.quantization)
    if config.quantization.scheme is not None:
        check_quantization(prepared.model, config.quantization)
    _check_pruning_order(config, prepared)


def _check_pruning_order(config: JobConfig, prepared: PreparedJob) -> None:
    """Raise UserError if `before_training` and what the model is trained for contradict each other."""
    name, pruning = config.model.model_name_or_path, config.pruning
    if pruning.before_training and prepared.is_fine_tuned:
        raise UserError(
            f"before_training=True prunes a model before fine-tuning, and {name} has a head for {prepared.task.name}: "
            "leave it out, or give the pretrained model"
        )
    if pruning.before_training and config.model.distil and not config.model.teacher_name_or_path:
        raise UserError(
            "before_training=True leaves no trained model as teacher: give --teacher_name_or_path, or leave out "
            "--distil"
        )
    if not prepared.is_fine_tuned and not pruning.before_training and config.training.num_train_epochs == 0:
        raise UserError(
            f"{name} has no head for {prepared.task.name}, and nothing is trained: fine-tune it first, by "
            "`hf-efficient compress` without a flag that compresses"
        )


def _select_trainer_class(task: Task, args: TrainingArguments, config: JobConfig) -> Any:
    """Return the trainer for the task. Raises UserError if text is generated and `args` have no settings for it."""
    if not task.generates:
        return EfficientTrainer
    if not isinstance(args, Seq2SeqTrainingArguments):
        raise UserError(f"{task.name} needs Seq2SeqTrainingArguments, not {type(args).__name__}")
    args.predict_with_generate = True
    if args.generation_max_length is None:
        args.generation_max_length = config.data.max_target_length
    return EfficientSeq2SeqTrainer


def _create_trainer(trainer_class: Any, **kwargs: Any) -> Any:
    """Return a trainer. Raises UserError if a training argument is refused, or a package that it needs is missing."""
    try:
        return trainer_class(**kwargs)
    except UserError:
        raise
    except (ValueError, ImportError) as error:
        raise UserError(" ".join(str(error).split())) from error


def _needs_fine_tuning(config: JobConfig, prepared: PreparedJob) -> bool:
    """Whether a teacher has to be trained before the model can be compressed."""
    has_teacher = prepared.is_fine_tuned or config.model.teacher_name_or_path is not None
    return config.compresses and not has_teacher and not config.pruning.before_training


def _fine_tune_teacher(
    trainer_class: Any, prepared: PreparedJob, config: JobConfig
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Return the model, fine-tuned as its own teacher and saved in `_teacher`, and a description for the report."""
    args, output_dir = config.fine_tuning or config.training, Path(config.training.output_dir)
    directory = output_dir / "_teacher"
    if args.resume_from_checkpoint and directory.is_dir() and is_complete(directory, "config.json"):
        attention = prepared.model.config._attn_implementation
        model = type(prepared.model).from_pretrained(directory, attn_implementation=attention)
        return model, ("fine-tuned on the same data first",)
    teacher_args = copy.copy(args)
    teacher_args.output_dir, teacher_args.push_to_hub = str(output_dir / "_tuning"), False
    teacher_args.hub_model_id = args.hub_model_id or output_dir.resolve().name
    kwargs: Mapping[str, Any] = prepared.trainer_kwargs()
    trainer = _create_trainer(trainer_class, model=prepared.model, args=teacher_args, **kwargs)
    if args.push_to_hub:
        trainer.init_hf_repo()  # a push that the Hub refuses is refused before anything is trained
    trainer.complete_report = partial(_complete_report, config=config, prepared=prepared, stages=())
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if args.should_save:
        save_atomically(trainer.model, directory, kwargs["processing_class"])
    trainer.accelerator.wait_for_everyone()
    return trainer.model, (f"fine-tuned on the same data first, {trainer.state.global_step} steps",)


def _complete_report(
    report: CompressionReport, config: JobConfig, prepared: PreparedJob, stages: tuple[str, ...]
) -> CompressionReport:
    """Return the trainer's report with the task, the dataset and the stages before the trainer's."""
    task, has_data = prepared.task, len(prepared.raw_splits) > 0
    title = config.data.evaluation_title if task.has_optional_labels else config.data.title
    return dataclasses.replace(
        report,
        task=task.pipeline,
        dataset=title if has_data else None,
        metric=task.metric,
        models=with_ratios(report.models, task.metric),
        stages=(*stages, *report.stages),
        configs={**report.configs, "data": config.data.public_values(), "metrics": prepared.metric_settings},
    )
