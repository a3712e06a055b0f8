"""What a trainer asks of its teacher before it trains: answers to keep, texts to learn from."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import Trainer

from hf_efficient.distillation.distiller import Distiller
from hf_efficient.distillation.generated_targets import generate_targets
from hf_efficient.distillation.teacher_cache import PREFIX, TOP_TOKENS, TeacherOutputsCollator, cache_teacher_outputs
from hf_efficient.errors import UserError
from hf_efficient.models.inputs import TOKEN_TYPES, accepts_token_type_ids

DEFAULT_MAX_TARGET_LENGTH = 128


class Asking(Trainer):
    """A trainer whose teacher answers once, before training, where that is asked for."""

    distiller: Distiller | None = None
    train_dataset: Any
    data_collator: Any
    _gold: Any = None  # the training data before the teacher wrote its own targets

    def _write_targets(self, distiller: Distiller) -> None:
        """Lets the first teacher write what the student learns to write; one process does it for all."""
        teacher, config = distiller.teacher, distiller.config
        self._check_kept(f"targets={config.targets!r} keeps what the teacher writes")
        if teacher.token_ids is not None:
            raise UserError(
                f"targets={config.targets!r} would be in the teacher's tokens, of which the student has only some: "
                "leave out --vocabulary, or targets"
            )
        if self._gold is None:
            self._gold = self.train_dataset
        length = getattr(self.args, "generation_max_length", None) or DEFAULT_MAX_TARGET_LENGTH
        with self.args.main_process_first(desc="the teacher writes"):
            self.train_dataset = generate_targets(
                self._gold, teacher.models[0], config.targets, config.target_beams, length
            )

    def _cache_teacher(self, distiller: Distiller) -> None:
        """Asks the teacher once for every training example; one process does it, the others read the file."""
        config, answers = distiller.config, distiller.teacher.head_outputs
        self._check_kept("cache_teacher keeps what the teacher says")
        if answers is None or isinstance(self.data_collator, TeacherOutputsCollator):
            return
        pads_left = getattr(self.processing_class, "padding_side", "right") == "left"
        self._set_signature_columns_if_needed()
        with self.args.main_process_first(desc="asking the teacher"):
            self.train_dataset = cache_teacher_outputs(
                self.train_dataset,
                distiller.teacher,
                self.data_collator,
                self._signature_columns,
                top_k=config.cache_top_k,
                temperature=config.temperature,
                pads_left=pads_left,
            )
        self.data_collator = TeacherOutputsCollator(
            self.data_collator, answers.has_token_axis, of_labels=answers.decoder_reads_labels, pads_left=pads_left
        )

    def _check_kept(self, wish: str) -> None:
        """Raises ValueError: the training data is nothing that answers can be kept in."""
        if not isinstance(self.train_dataset, Dataset):
            raise UserError(
                f"{wish} in a datasets.Dataset, the training data is a {type(self.train_dataset).__name__}: leave it "
                "out, or load the data with `datasets`"
            )

    def _set_signature_columns_if_needed(self) -> None:
        """Lets the teacher's cached answers through to the loss, and what only the teacher reads."""
        super()._set_signature_columns_if_needed()
        if self.distiller is None:
            return
        teacher = self.distiller.teacher
        cached = [] if teacher.head_outputs is None else [*(PREFIX + name for name in teacher.head_outputs.outputs), TOP_TOKENS]
        read = [TOKEN_TYPES] if any(map(accepts_token_type_ids, teacher.models)) else []
        self._signature_columns += [name for name in (*cached, *read) if name not in self._signature_columns]
