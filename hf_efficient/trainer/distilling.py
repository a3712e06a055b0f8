"""Training towards labels and a teacher, by a loss that is exact over accumulated batches and over processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.distillation.distiller import Distiller, LossTerm
from hf_efficient.distillation.head_outputs import get_head_outputs
from hf_efficient.distillation.teacher import Teacher
from hf_efficient.distillation.teacher_cache import drop_teacher_columns
from hf_efficient.errors import NonFiniteLossError, UserError
from hf_efficient.models.inputs import is_label, select_inputs
from hf_efficient.trainer.asking import Asking

TASK_UNIT = "hard"
Batch = dict[str, torch.Tensor | Any]


class Distilling(Asking):
    """A trainer whose loss may have parts that a `Distiller` finds, and is exact however it is accumulated.

    Each part is its sum over the batch divided by its count over the whole accumulation window and all processes, so
    the gradient of several batches is that of one large batch, whatever their lengths. Evaluation is the parent's.
    """

    # Our losses are already divided by the number of items in the whole accumulation window.
    loss_is_scaled_for_ga: bool | None = True

    distillation: DistillationConfig | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._window: dict[str, torch.Tensor] = {}
        self._logged: dict[str, torch.Tensor] = {}
        self._step_logged = 0
        if get_head_outputs(self.model) is None:
            self.loss_is_scaled_for_ga = None  # the loss of a head that is not known here is the parent's
        self.add_callback(ProjectionGradients(self))

    # ---- the teacher -----------------------------------------------------------------------------------------------

    def begin_distilling(
        self, teachers: list[PreTrainedModel], config: DistillationConfig, token_ids: torch.Tensor | None
    ) -> None:
        """Set up `distiller`, and asks the teachers for all answers at once if they are to be cached.

        Raises ValueError: what is to be compared cannot be seen, or be cached.
        """
        kinds = ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
        reentrant = any((getattr(self.args, kind, None) or {}).get("use_reentrant") for kind in kinds)
        if reentrant and (config.attention_weight or config.relation_weight):
            raise UserError(
                "reentrant checkpointing hides queries, keys and values from the loss: give "
                "gradient_checkpointing_kwargs={'use_reentrant': False}, or leave out those weights"
            )
        dtype = {"auto": torch.bfloat16 if self.args.bf16 else None}.get(
            config.teacher_dtype, getattr(torch, config.teacher_dtype, None)
        )
        # A model that was spread over devices stays where it is.
        models = [model if getattr(model, "hf_device_map", None) else model.to(self.args.device) for model in teachers]
        self.distiller = Distiller(Teacher(models, config.normalized_teacher_weights(len(models)), dtype, token_ids), config)
        self.distiller.prepare(self.model)
        if self.shards and self._projections:
            raise UserError(
                "FSDP shares out the model alone, not the projections learned beside it: take relation_weight, which "
                "compares across widths without any, or a student as wide as its teacher"
            )
        if config.targets != "gold":
            self._write_targets(self.distiller)
        if config.cache_teacher:
            self._cache_teacher(self.distiller)

    def _read(self, inputs: Mapping[str, Any]) -> Batch:
        """Return what the model reads of a batch."""
        return select_inputs(self.model, drop_teacher_columns(inputs))

    def prediction_step(
        self, model: torch.nn.Module, inputs: Batch, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Hands the model only what it reads."""
        return super().prediction_step(model, self._read(inputs), *args, **kwargs)

    # ---- the loss --------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Also counts what the losses of the whole accumulation window, on all processes, are divided by."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and not self._parent_is_exact:
            counts = [self._counts(batch) for batch in batches]
            total = torch.stack([torch.stack(list(count.values())) for count in counts]).sum(0).to(device)
            if self.args.world_size > 1:
                total = self.accelerator.gather(total[None]).sum(0)
            self._window = dict(zip(counts[0], total, strict=True))
        return batches, num_items

    @property
    def _parent_is_exact(self) -> bool:
        """Whether the parent's loss is what ours would be: it is not known here, or one process reads a step at once.

        Where answers are of tokens it may be the mean of none, which ours takes care of.
        """
        answers = get_head_outputs(self.model)
        at_once = self.args.world_size == 1 and self.args.gradient_accumulation_steps == 1
        return self.distiller is None and (answers is None or (at_once and not answers.per_token))

    def _counts(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return, by unit, the number of labels that the task's loss averages over, and what the distiller counts."""
        known = self._read(inputs)
        labels = known.get("labels")
        answers = get_head_outputs(self.model)
        if answers is not None and answers.detects_replaced_tokens:  # whose loss is the mean over what is no padding
            hard = answers.count(known)
        elif labels is None or labels.is_floating_point():
            hard = torch.tensor(next(iter(known.values())).shape[0])
        else:
            hard = labels.ne(-100).sum()
        counts = {TASK_UNIT: hard, **(self.distiller.counts(known) if self.distiller is not None else {})}
        return {unit: count.cpu() for unit, count in counts.items()}

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return the weighted sum of the task's loss and, with a distiller, the distances to the teacher."""
        known = self._read(inputs)
        if self.compute_loss_func is not None or not model.training or self._parent_is_exact:
            return super().compute_loss(model, known, return_outputs, num_items_in_batch)
        window = self._window or {u: n.to(self.args.device) for u, n in self._counts(known).items()}
        if self.distiller is None:
            hard, outputs = self._hard(model, known, 1.0)
            parts = [hard]
        else:
            parts, outputs = self._distilled(self.distiller, model, inputs, known)
        # DDP averages gradients over the processes, the window counts all of them.
        loss = torch.zeros((), device=self.args.device)
        for part in parts:
            value = part.sum * self.accelerator.num_processes / window[part.unit].clamp(min=1)
            loss = loss + part.weight * value
            if self.distiller is not None:
                self._logged[part.name] = self._logged.get(part.name, 0) + value.detach()
        return (loss, outputs) if return_outputs else loss

    def _distilled(
        self, distiller: Distiller, model: torch.nn.Module, inputs: Batch, known: Batch
    ) -> tuple[list[LossTerm], Any]:
        """Return the parts of the loss under a teacher, and what the student answered."""
        config, progress = distiller.config, self._progress()
        weight = config.value_at("hard_label_weight", progress)
        parts: list[LossTerm] = []
        with distiller.capture() as signals:
            if weight:
                hard, outputs = self._hard(model, known, weight)
                parts.append(hard)
            else:
                # What a decoder reads is made of the labels; other heads would compute a loss that nobody wants.
                answers = distiller.teacher.head_outputs
                reads_labels = answers is not None and answers.decoder_reads_labels
                outputs = model(**{n: v for n, v in known.items() if reads_labels or not is_label(n)})
        return [*parts, *distiller(inputs, outputs, signals, progress)], outputs

    def _hard(self, model: torch.nn.Module, inputs: Batch, weight: float) -> tuple[LossTerm, Any]:
        """Return the task's own loss, as a sum over what it is the mean of."""
        if not any(is_label(name) for name in inputs):
            raise UserError(
                f"the batches have no labels, only {', '.join(inputs)}: give labels, or learn from a teacher alone "
                "(hard_label_weight=0)"
            )
        here = self._counts(inputs)[TASK_UNIT]
        # Which tokens are hidden is drawn by lot, and now and then none is.
        if self._window and not self._window[TASK_UNIT] and not getattr(self.data_collator, "mlm", False):
            raise UserError(
                "none of the labels of a whole step counts, all of them are -100: are they cut off by max_length?"
            )
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if not here:  # the mean of nothing is not a number
            loss = sum(value.sum() for name, value in outputs.items() if name.endswith("logits")) * 0.0
        return LossTerm("hard_label_loss", weight, loss * here.to(loss.device), TASK_UNIT), outputs

    def _progress(self) -> float:
        return self.state.global_step / max(1, self.state.max_steps)

    def training_step(
        self, model: torch.nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Stops at a loss that is not finite, which the parent may hide from the log."""
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss is {loss.item()} at step {self.state.global_step}: the weights are not updated and the "
                f"last checkpoint in {self.args.output_dir} is kept. Try a smaller learning rate (now "
                f"{self.args.learning_rate:g}), or train without mixed precision"
            )
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the distillation loss, averaged over the steps since the last log."""
        if "loss" in logs and self._logged:
            steps = max(self.state.global_step - self._step_logged, 1)
            totals = {name: self.accelerator.reduce(total, "mean") for name, total in self._logged.items()}
            logs |= {name: float(total) / steps for name, total in totals.items()}
            self._logged, self._step_logged = {}, self.state.global_step
        super().log(logs, start_time)

    # ---- learned projections, which are no part of the model -------------------------------------------------------

    @property
    def _projections(self) -> list[torch.nn.Parameter]:
        return [] if self.distiller is None else list(self.distiller.projections.parameters())

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Also trains the projections of the distiller, with an optimizer that was given too."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = [parameter for parameter in self._projections if id(parameter) not in held]
        if missing:
            optimizer.add_param_group({"params": missing, "weight_decay": 0.0})
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Also saves the projections, into checkpoints alone: who loads the model has no use for them."""
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir)
        wanted = self.args.should_save and folder.name.startswith(PREFIX_CHECKPOINT_DIR)
        if wanted and self._projections and self.distiller is not None:
            self.distiller.save_projections(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Also loads the projections."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.distiller is not None:
            self.distiller.load_projections(resume_from_checkpoint)


class ProjectionGradients(TrainerCallback):
    """Does for the projections, which are no part of the model, what others do for the model's gradients.

    DDP averages over the processes those of the model that it wraps, and `Trainer` zeroes those of its model.
    """

    def __init__(self, trainer: Distilling) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Averages, before the step."""
        if args.world_size > 1:
            for parameter in self.trainer._projections:
                if parameter.grad is not None:
                    parameter.grad = self.trainer.accelerator.reduce(parameter.grad, reduction="mean")

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Zeroes, after the step."""
        for parameter in self.trainer._projections:
            parameter.grad = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins, or goes on from a checkpoint, with nothing logged, no gradient, and the same in all processes."""
        self.trainer._logged, self.trainer._step_logged = {}, state.global_step
        for parameter in self.trainer._projections:
            parameter.data.copy_(broadcast(parameter.data))
        self.on_optimizer_step(args, state, control)
