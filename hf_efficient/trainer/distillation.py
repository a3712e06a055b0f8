"""Training with a teacher: its outputs in the training data, and projections trained with the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import broadcast
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.distillation.distiller import Distiller
from hf_efficient.distillation.dropout import has_dropout, replaced_dropout
from hf_efficient.distillation.generated_targets import generate_targets
from hf_efficient.distillation.teacher import PREFIX, Teacher, load_teacher
from hf_efficient.distillation.teacher_cache import TOP_TOKENS, TeacherOutputsCollator, cache_teacher_outputs
from hf_efficient.distillation.teacher_tokens import TEACHER_INPUTS
from hf_efficient.errors import UserError
from hf_efficient.models.inputs import QUERY, TOKEN_TYPES, accepts_token_type_ids, task_head_of
from hf_efficient.models.sentence_files import AutoSentenceEmbedder, append_projection
from hf_efficient.models.sentence_modules import EMBEDDING, attach_sentence_modules, find_sentence_modules
from hf_efficient.trainer.fsdp import uses_fsdp

logger = logging.get_logger(__name__)

DEFAULT_MAX_TARGET_LENGTH = 128  # tokens
TeacherLike: TypeAlias = PreTrainedModel | str | Sequence[PreTrainedModel | str] | None


def load_teachers(
    teachers: Sequence[PreTrainedModel | str], model: PreTrainedModel, config: DistillationConfig | None
) -> list[PreTrainedModel]:
    """Return the teachers; those given by name are loaded with the task head and the attention of `model`."""
    return [_load_teacher(teacher, model, config) for teacher in teachers]


def _load_teacher(
    teacher: PreTrainedModel | str, model: PreTrainedModel, config: DistillationConfig | None
) -> PreTrainedModel:
    if teacher is model:
        return copy.deepcopy(teacher)  # as it is now: the model itself will be trained
    if not isinstance(teacher, str):
        return teacher
    head = task_head_of(type(model).__name__)
    name = {"": "AutoModel", "ConditionalGeneration": "AutoModelForSeq2SeqLM"}.get(head, f"AutoModelFor{head}")
    is_embedder = find_sentence_modules(model) is not None
    auto_class = AutoSentenceEmbedder if is_embedder else getattr(transformers, name)
    requires_head = config is not None and config.uses_logits
    attention = model.config._attn_implementation
    return load_teacher(teacher, auto_class, requires_head, attn_implementation=attention)


class DistillationTraining:
    """The teacher of a training run: the distiller, the teacher's outputs in the training data, the projections.

    `distiller` is None before `setup` and after `close`. A checkpoint keeps the projections, which are no part of the
    model.
    """

    def __init__(self, config: DistillationConfig | None, args: TrainingArguments, accelerator: Accelerator) -> None:
        self.config, self.args, self.accelerator = config, args, accelerator
        self.distiller: Distiller | None = None
        self._original_train_dataset: Any = None  # before the teacher generated targets

    def setup(
        self, model: PreTrainedModel, teachers: Sequence[PreTrainedModel], token_ids: torch.Tensor | None = None
    ) -> Distiller | None:
        """Return the distiller of `model` and `teachers`, or None without a config.

        `token_ids` (new vocabulary size,) holds the teacher's id of each token of a model with a trimmed vocabulary.

        Raises UserError if an objective cannot be computed with these models or arguments.
        """
        if self.config is None:
            return None
        config = self.config
        _check_checkpointing(config, self.args)
        if config.student_dropout and not has_dropout(model):
            logger.warning(f"student_dropout={config.student_dropout:g} has no effect: the model is without dropout")
        dtype = _teacher_dtype(config, self.args, model)
        # A model that is spread over several devices stays where it is.
        placed = [
            model if getattr(model, "hf_device_map", None) is not None else model.to(self.args.device)
            for model in teachers
        ]
        weights = config.normalized_teacher_weights(len(placed))
        self.distiller = Distiller(Teacher(placed, weights, dtype, token_ids), config)
        self.distiller.prepare(model)
        if uses_fsdp(self.accelerator) and self.projection_parameters():
            raise UserError(
                "FSDP shards the model but not the projections that are trained with it: use relation_weight, which "
                "compares across widths without projections, or a student as wide as its teacher"
            )
        if config.keep_projection and self.args.load_best_model_at_end:
            raise UserError(
                "load_best_model_at_end loads the weights of an earlier step, and keep_projection would add the "
                "projection of the last one: leave out either; stop_when_flat keeps the best of both"
            )
        return self.distiller

    def close(self) -> None:
        """Drop the distiller: nothing more is trained."""
        self.distiller = None

    def on_model_changed(self, model: PreTrainedModel) -> None:
        """Map the layers of a model that replaces the student to those of the teacher."""
        if self.distiller is not None:
            self.distiller.prepare(model)

    def replace_dropout(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Return a context in which `model` is trained with the dropout of the config."""
        return replaced_dropout(model, None if self.config is None else self.config.student_dropout)

    # ---- training data ----------------------------------------------------------------------------------------------

    def add_generated_targets(self, dataset: Any) -> Any:
        """Return `dataset` with targets that the first teacher generates, if the config asks for them.

        One process generates, the others read its cache.
        """
        if self.distiller is None or self.distiller.config.targets == "gold":
            return dataset
        teacher, config = self.distiller.teacher, self.distiller.config
        _require_map_style_dataset(dataset, f"targets={config.targets!r}")
        if teacher.token_ids is not None:
            raise UserError(
                f"targets={config.targets!r} would be in the tokens of the teacher, and the student has only some of "
                "them: leave out --vocabulary, or targets"
            )
        if self._original_train_dataset is None:
            self._original_train_dataset = dataset
        length = getattr(self.args, "generation_max_length", None) or DEFAULT_MAX_TARGET_LENGTH
        with self.args.main_process_first(desc="generating targets"):
            return generate_targets(
                self._original_train_dataset, teacher.models[0], config.targets, config.target_beams, length
            )

    def add_teacher_outputs(
        self, dataset: Any, collator: Any, get_columns: Callable[[], list[str]], padding_side: str
    ) -> tuple[Any, Any]:
        """Return `dataset` and `collator` with the outputs of the teacher, if the config asks for a cache.

        One process runs the teacher, the others read its cache. `get_columns` returns the columns of a batch that are
        kept.
        """
        if self.distiller is None or not self.distiller.config.cache_teacher:
            return dataset, collator
        config, head = self.distiller.config, self.distiller.teacher.head_outputs
        _require_map_style_dataset(dataset, "cache_teacher=True")
        if head is None or isinstance(collator, TeacherOutputsCollator):
            return dataset, collator
        pads_left = padding_side == "left"
        with self.args.main_process_first(desc="caching the outputs of the teacher"):
            dataset = cache_teacher_outputs(
                dataset,
                self.distiller.teacher,
                collator,
                get_columns(),
                top_k=config.cache_top_k,
                temperature=config.temperature,
                pads_left=pads_left,
            )
        return dataset, TeacherOutputsCollator(
            collator, head.has_token_axis, of_labels=head.decoder_reads_labels, pads_left=pads_left
        )

    def columns(self) -> list[str]:
        """Return the columns of the data that only the distiller, or a teacher with its own tokenizer, reads."""
        if self.distiller is None:
            return list(TEACHER_INPUTS)
        teacher = self.distiller.teacher
        cached = [] if teacher.head_outputs is None else [PREFIX + name for name in teacher.head_outputs.outputs]
        token_types = [TOKEN_TYPES] if any(map(accepts_token_type_ids, teacher.models)) else []
        queries = [QUERY] if self.distiller.config.margin_weight else []
        return [*cached, *([TOP_TOKENS] if cached else []), *queries, *token_types, *TEACHER_INPUTS]

    def queries_of(self, dataset: Any) -> Sequence[int] | None:
        """Return the number of the query of each row, if the scores of documents of a query are compared."""
        compares = self.config is not None and self.config.margin_weight
        return dataset[QUERY][:] if compares and QUERY in getattr(dataset, "column_names", ()) else None

    # ---- projections ------------------------------------------------------------------------------------------------

    def projection_parameters(self) -> list[torch.nn.Parameter]:
        """Return the parameters of the projections between different widths; none without a distiller."""
        return [] if self.distiller is None else list(self.distiller.projections.parameters())

    def keep_projection(self, model: PreTrainedModel) -> None:
        """Give `model`, a sentence embedder, the learned projection of its embeddings, if the config asks for it."""
        modules = find_sentence_modules(model)
        if self.distiller is None or not self.distiller.config.keep_projection or modules is None:
            return
        projection: Any = self.distiller.projections[EMBEDDING]
        attach_sentence_modules(model, append_projection(modules, projection.weight))

    def add_to_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Let `optimizer` train the projections too, without weight decay."""
        present = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = [parameter for parameter in self.projection_parameters() if id(parameter) not in present]
        if missing:
            optimizer.add_param_group({"params": missing, "weight_decay": 0.0})

    def save_state(self, folder: Path) -> None:
        """Write the projections into a checkpoint, if there are any."""
        if self.distiller is not None and self.args.should_save:
            self.distiller.save_projections(folder)

    def load_state(self, folder: Path) -> None:
        """Read the projections from a checkpoint."""
        if self.distiller is not None:
            self.distiller.load_projections(folder)


class ProjectionGradients(TrainerCallback):
    """Averages and zeroes the gradients of the projections.

    DDP and `Trainer` do this for the parameters of the model only.
    """

    def __init__(self, distillation: DistillationTraining) -> None:
        self.distillation = distillation

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start with the same projections in all processes, and without gradients."""
        for parameter in self.distillation.projection_parameters():
            parameter.data.copy_(broadcast(parameter.data))
            parameter.grad = None

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Average the gradients over the processes."""
        if args.world_size > 1:
            for parameter in self.distillation.projection_parameters():
                if parameter.grad is not None:
                    parameter.grad = self.distillation.accelerator.reduce(parameter.grad, reduction="mean")

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Zero the gradients."""
        for parameter in self.distillation.projection_parameters():
            parameter.grad = None


def _teacher_dtype(config: DistillationConfig, args: TrainingArguments, model: PreTrainedModel) -> torch.dtype | None:
    """Return the data type of the teacher; None: that of its weights."""
    if config.teacher_dtype != "auto":
        dtype: torch.dtype = getattr(torch, config.teacher_dtype)
        return dtype
    if args.bf16:
        return torch.bfloat16
    # T5 overflows in float16.
    return torch.float16 if args.fp16 and not model.config.is_encoder_decoder else None


def _check_checkpointing(config: DistillationConfig, args: TrainingArguments) -> None:
    names = ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
    is_reentrant = any((getattr(args, name, None) or {}).get("use_reentrant") for name in names)
    if is_reentrant and (config.attention_weight or config.relation_weight):
        raise UserError(
            "reentrant checkpointing hides queries, keys and values from the loss: give "
            "gradient_checkpointing_kwargs={'use_reentrant': False}, or leave out attention_weight and relation_weight"
        )


def _require_map_style_dataset(dataset: Any, setting: str) -> None:
    if not isinstance(dataset, Dataset):
        raise UserError(
            f"{setting} stores outputs of the teacher in a datasets.Dataset, and the training data is a "
            f"{type(dataset).__name__}: leave it out, or load the data with `datasets`"
        )
