"""The main job: data, teacher, trainer, report, card, push."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from hf_efficient.data import (
    Columns,
    DataConfig,
    find_columns,
    label_names,
    label_numbers,
    labels_are_numbers,
    load_splits,
    tokenize,
)
from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.distillation.layers import student_of_config, student_of_layers
from hf_efficient.distillation.teacher import load_teacher, reads_token_types
from hf_efficient.exporting import ExportConfig, check_export
from hf_efficient.masking import masked_once
from hf_efficient.measurement.report import REPORT_NAME, CompressionReport
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.pruning.vocabulary import trim_vocabulary, used_tokens
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.reporting import Original
from hf_efficient.speedup import check_prunable
from hf_efficient.tasks import TASKS, Task, infer_task, task_named
from hf_efficient.trainer import EfficientTrainer

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class ModelConfig:
    """Which models the job is about."""

    model_name_or_path: str = field(metadata={"help": "The model to make small: a folder, or a name on the Hub."})
    teacher_name_or_path: list[str] | None = field(
        default=None,
        metadata={
            "help": "The model to learn from, or several that answer together; the model itself when left out.",
            "nargs": "+",
        },
    )
    student_layers: str | None = field(
        default=None,
        metadata={"help": "Keep this many layers, or these: 3, or 0,2,5, or encoder=4,decoder=1; then distil."},
    )
    student_config: str | None = field(
        default=None,
        metadata={"help": "Distil into a new model: hidden_size=128,num_hidden_layers=4,num_attention_heads=4."},
    )
    task: str | None = field(default=None, metadata={"help": f"One of {', '.join(TASKS)}; inferred when left out."})
    distil: bool | None = field(
        default=None,
        metadata={
            "help": "Learn from a teacher; on when one is named, or pruning or training for 8 bits is asked for."
        },
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace a model that output_dir already holds."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the model's repository."})

    def __post_init__(self) -> None:
        if self.student_layers and self.student_config:
            raise ValueError("student_layers and student_config each make the student: give one")
        if self.makes_student and self.distil is False:
            raise ValueError("a student that is made of a model learns from a teacher: leave out --distil False")

    @property
    def makes_student(self) -> bool:
        """Whether the student is a new model rather than the named one."""
        return bool(self.student_layers or self.student_config)


@dataclass(frozen=True)
class Job:
    """All settings of a compression."""

    models: ModelConfig
    data: DataConfig
    distillation: DistillationConfig
    pruning: PruningConfig
    quantization: QuantizationConfig
    training: TrainingArguments
    export: ExportConfig = field(default_factory=ExportConfig)

    @property
    def distils(self) -> bool:
        """Whether a teacher is learnt from."""
        if self.models.distil is not None:
            return self.models.distil
        if self.models.makes_student:
            return True
        if self.pruning.before_training:
            return self.models.teacher_name_or_path is not None
        return self.models.teacher_name_or_path is not None or self.pruning.active or self.quantization.aware

    @property
    def needs_data(self) -> bool:
        """Whether there is anything to learn, or to choose by data: quantizing and exporting alone need none."""
        trains = self.quantization.scheme is None or self.quantization.aware
        trains = trains and self.training.num_train_epochs > 0
        return trains or self.distils or self.pruning.active or self.pruning.vocabulary


def compress(job: Job) -> CompressionReport:
    """Makes the job's model small, and writes it, its report, picture and card into `output_dir`.

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
        return CompressionReport.load(output)
    _check_output(job, output)

    set_seed(args.seed)
    splits = load_splits(job.data, args.seed) if job.data.named or job.needs_data else DatasetDict()
    ready = _prepare(job, splits)
    task, model, pruning = ready.task, ready.model, job.pruning
    if args.train_sampling_strategy == "random":
        # Batches of like lengths waste no time on padding.
        args.train_sampling_strategy = "group_by_length"
    if pruning.active:
        check_prunable(model, pruning)  # before a teacher is trained in vain
    for format in job.export.formats:
        check_export(model, format, job.export.form)
    _check_schedule(job, ready)
    compresses = job.distils or pruning.active or pruning.vocabulary or job.quantization.scheme is not None
    first: tuple[str, ...] = ()
    if not ready.tuned and compresses and not job.models.teacher_name_or_path and not pruning.before_training:
        logger.warning(f"{job.models.model_name_or_path} has no head for {task.name}: it is fine-tuned first")
        model, first = _fine_tune(model, args, task, ready.for_trainer())
    original = None
    if pruning.vocabulary:
        data = ready.data["evaluation"]
        ready, token_ids = _trim(job, splits, dataclasses.replace(ready, model=model))
        original, model = Original(model, token_ids, data), ready.model

    teachers: Any = ready.teachers
    if job.models.makes_student:
        teachers = teachers or (None if original else [model])
        set_seed(args.seed)  # the same student after an interruption
        model, made = _student(job.models, model)
        first = (*first, made)

    trainer = EfficientTrainer(
        model=model,
        args=args,
        teacher=teachers,
        distillation=job.distillation if job.distils else None,
        pruning=job.pruning,
        quantization=job.quantization,
        export=job.export,
        original=original,
        **ready.for_trainer(),
    )
    if job.models.overwrite_output_dir and not args.resume_from_checkpoint:
        _clear(output, keep="_teacher" if first else "")
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    found = trainer.report
    report = trainer.report = dataclasses.replace(
        found,
        task=task.pipeline,
        dataset=job.data.label if splits else None,
        metric=task.metric,
        stages=(*first, *found.stages),
        configs={**found.configs, "data": _public(job.data)},
    )
    if args.push_to_hub:
        trainer.push_to_hub(commit_message="Add compressed model")
    else:
        trainer.save_model()
        trainer.create_model_card()
    for stage in output.glob("_round-*"):
        shutil.rmtree(stage)
    return report


@dataclass(frozen=True)
class _Ready:
    """What a trainer works on; `tuned` says whether the model has the task's head already.

    `teachers` are those that were named.
    """

    task: Task
    columns: Columns
    numbers: Mapping[Any, int] | None
    tokenizer: PreTrainedTokenizerBase
    data: DatasetDict
    model: PreTrainedModel
    tuned: bool
    teachers: tuple[PreTrainedModel, ...]

    def for_trainer(self) -> dict[str, Any]:
        """Returns what every trainer of the job is given."""
        return {
            "train_dataset": self.data.get("train"),
            "eval_dataset": self.data.get("evaluation"),
            "processing_class": self.tokenizer,
            "data_collator": self.task.collator(self.tokenizer),
            "compute_metrics": self.task.compute_metrics,
            "preprocess_logits_for_metrics": self.task.reduce_logits,
        }


def _prepare(job: Job, splits: DatasetDict) -> _Ready:
    """Returns the model and the tokenized data, for the task that they are for."""
    name, remote = job.models.model_name_or_path, job.models.trust_remote_code
    config = AutoConfig.from_pretrained(name, trust_remote_code=remote)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=remote)
    named = job.models.teacher_name_or_path or ()
    told = AutoConfig.from_pretrained(named[0], trust_remote_code=remote) if named else config
    needs_labels = not job.distils or job.distillation.uses_labels
    task = task_named(job.models.task or "text-classification")
    columns = find_columns(splits, task, job.data, needs_labels) if splits else Columns((), None)
    if not job.models.task:
        task = infer_task(told, columns.label is not None and labels_are_numbers(splits, columns.label))
    tuned = (config.architectures or [""])[0].endswith(task.head)
    if not tuned and named and task.labelled:
        config.id2label, config.label2id, config.problem_type = told.id2label, told.label2id, told.problem_type
    if columns.label is None and task.labelled and not tuned and not named:
        raise ValueError(
            f"{name} has no head for {task.name} and the data has no labels to make one: give a fine-tuned model, or "
            "--label_column"
        )
    numbers = None
    if task.name == "regression":
        if not tuned and not named:
            config.num_labels, config.problem_type = 1, "regression"
    elif columns.label is not None:
        if not tuned and not named:
            names = label_names(splits, columns.label)
            config.id2label = dict(enumerate(names))
            config.label2id = {label: index for index, label in config.id2label.items()}
            config.problem_type = "single_label_classification"
        numbers = label_numbers(splits, columns.label, config)
    model = task.auto_class.from_pretrained(name, config=config, dtype=torch.float32, trust_remote_code=remote)
    answers = job.distils and job.distillation.uses_logits
    teachers = tuple(load_teacher(teacher, task.auto_class, answers, remote) for teacher in named)
    for teacher in named:
        _check_tokens(teacher, tokenizer, remote)
    types = any(map(reads_token_types, teachers)) or None
    data = tokenize(splits, columns, numbers, tokenizer, job.data.max_length, types) if splits else splits
    if splits and not task.labelled:
        data["evaluation"] = masked_once(data["evaluation"], tokenizer, job.training.seed)
    return _Ready(task, columns, numbers, tokenizer, data, model, tuned, teachers)


def _check_tokens(teacher: str, tokenizer: PreTrainedTokenizerBase, remote: bool) -> None:
    """Raises ValueError: the teacher called so was taught other tokens than the tokenizer makes."""
    try:
        taught = AutoTokenizer.from_pretrained(teacher, trust_remote_code=remote).get_vocab()
    except OSError:
        logger.warning(f"teacher {teacher!r} comes without a tokenizer: it is taken to read the student's tokens")
        return
    vocabulary = tokenizer.get_vocab()
    if taught != vocabulary:
        other = next((token for token, index in vocabulary.items() if taught.get(token) != index), "one more")
        raise ValueError(
            f"the tokenizer of the teacher {teacher!r} differs from the student's ({len(taught)} tokens and "
            f"{len(vocabulary)}, not the same for {other!r}): they must share one"
        )


def _student(models: ModelConfig, teacher: PreTrainedModel) -> tuple[PreTrainedModel, str]:
    """Returns the student that the flags make of `teacher`, and what it is in words."""
    if models.student_layers:
        return student_of_layers(teacher, models.student_layers), f"student: layers {models.student_layers} of it"
    return student_of_config(teacher, str(models.student_config)), f"student: new, with {models.student_config}"


def _trim(job: Job, splits: DatasetDict, ready: _Ready) -> tuple[_Ready, torch.Tensor]:
    """Returns the model, its tokenizer and the data with only the tokens of the training data, and their old ids."""
    texts = itertools.chain.from_iterable(splits["train"][name] for name in ready.columns.texts)
    small = trim_vocabulary(ready.model, ready.tokenizer, used_tokens(texts, ready.tokenizer))
    types = any(map(reads_token_types, ready.teachers)) or None
    data = tokenize(splits, ready.columns, ready.numbers, small.tokenizer, job.data.max_length, types)
    return dataclasses.replace(ready, model=small.model, tokenizer=small.tokenizer, data=data), small.token_ids


def _check_schedule(job: Job, ready: _Ready) -> None:
    """Raises ValueError: what is to be pruned before it is trained is trained already, or the other way round."""
    name, pruning = job.models.model_name_or_path, job.pruning
    if pruning.before_training and ready.tuned:
        raise ValueError(
            f"before_training=True prunes what is not fine-tuned yet, {name} has a head for {ready.task.name}: "
            "leave it out, or give the pretrained model"
        )
    if pruning.before_training and job.models.distil and not job.models.teacher_name_or_path:
        raise ValueError(
            "before_training=True leaves no trained model to learn from: name a teacher, or leave out --distil"
        )
    if not ready.tuned and not pruning.before_training and job.training.num_train_epochs == 0:
        raise ValueError(
            f"{name} has no head for {ready.task.name}, and without training there will be none: fine-tune it first, "
            "by `hf-efficient compress` with no compression flag"
        )


def _fine_tune(
    model: PreTrainedModel, args: TrainingArguments, task: Task, common: Mapping[str, Any]
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Returns the model fine-tuned as its own teacher, in `_teacher`, and what was done in words."""
    folder = Path(args.output_dir) / "_teacher"
    if args.resume_from_checkpoint and (folder / "config.json").exists():
        return task.auto_class.from_pretrained(folder), ("fine-tuned on the same data first",)
    tuning = copy.copy(args)
    tuning.output_dir, tuning.push_to_hub = str(folder), False
    trainer = EfficientTrainer(model=model, args=tuning, **{**common, "eval_dataset": None})
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    return trainer.model, (f"fine-tuned on the same data first, {trainer.state.global_step} steps",)


def _check_output(job: Job, output: Path) -> None:
    """Raises ValueError: `output` holds a model, or a half finished run, that nobody said to replace or continue."""
    held = [name for name in ("config.json", REPORT_NAME) if (output / name).exists()]
    begun = [path.name for path in output.glob("_*")] + [path.name for path in output.glob("checkpoint-*")]
    if job.models.overwrite_output_dir or job.training.resume_from_checkpoint or not (held or begun):
        return
    raise ValueError(
        f"output_dir={str(output)!r} already holds {'a model' if held else 'a run that was begun'} "
        f"({', '.join(held or sorted(begun))}): name another folder, give --overwrite_output_dir to replace it, or "
        "--resume_from_checkpoint True to go on"
    )


def _clear(output: Path, keep: str) -> None:
    """Removes what an earlier run left to resume from; the model itself is replaced once the new one is there."""
    for path in [*output.glob("_*"), *output.glob("checkpoint-*")]:
        if path.name != keep:
            shutil.rmtree(path)


def _public(data: DataConfig) -> dict[str, Any]:
    """Returns the data's settings without the paths of this machine."""
    values = dataclasses.asdict(data)
    return {name: Path(value).name if name.endswith("_file") and value else value for name, value in values.items()}
