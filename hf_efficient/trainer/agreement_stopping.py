"""Training that ends when agreement with the teacher no longer rises, with the best weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.utils import logging

from hf_efficient.data.length_order import sort_by_length
from hf_efficient.distillation.agreement import agreement_of, decide
from hf_efficient.distillation.distiller import Distiller
from hf_efficient.measurement.embeddings import neighbours_kept
from hf_efficient.measurement.training_curve import TrainingPoint
from hf_efficient.models.inputs import is_label
from hf_efficient.trainer.fsdp import uses_fsdp
from hf_efficient.trainer.loss import Batch, select_model_inputs

logger = logging.get_logger(__name__)

HELD_OUT_FRACTION, MIN_HELD_OUT_ROWS, MAX_HELD_OUT_ROWS = 0.05, 200, 2000
# The rows are looked at so many times in the planned training, but not more often than every few steps; training
# stops after so many looks without a new maximum. Those of its first half do not count: while the learning rate is
# high, agreement goes up and down, and it rises again when the rate falls.
LOOKS, MIN_STEPS, PATIENCE, MIN_PROGRESS = 24, 20, 5, 0.5
MAX_STORED_OUTPUTS = 20_000_000  # numbers
CURVE_NAME, WEIGHTS_NAME = "agreement_curve.json", "best_weights.safetensors"


class AgreementStopping(TrainerCallback):
    """Compares student and teacher on held-out training rows while the student is trained, and keeps the best weights.

    The weights before the first step are one of the candidates: a student that training made worse is not kept. The
    rows that are reported play no part. `curve` has a point for each look, of all rounds.

    It is active between `hold_out` and the end of the run, and not while gates close: their removal is not finished.
    """

    def __init__(self, trainer: Trainer, after_restoring: Callable[[torch.nn.Module], None]) -> None:
        self.trainer, self.after_restoring = trainer, after_restoring
        self.distiller: Distiller | None = None
        self.round, self.is_paused = 0, False
        self.curve: list[TrainingPoint] = []
        self._batches: list[tuple[Batch, torch.Tensor, dict[str, torch.Tensor] | None]] = []
        self._rows: Any = None
        self._best_weights: dict[str, torch.Tensor] | None = None

    # ---- held-out rows ----------------------------------------------------------------------------------------------

    def hold_out(self, dataset: Any, distiller: Distiller | None) -> Any:
        """Return the rows of the training data to train on, without those to look at; all of them if inactive.

        It is inactive without `stop_when_flat`, where models are selected by evaluations, with FSDP, and for training
        data that is streamed or too small.
        """
        self._rows, self.distiller, self.round, self.curve = None, distiller, 0, []
        args = self.trainer.args
        if distiller is None or not distiller.config.stop_when_flat or distiller.teacher.head_outputs is None:
            return dataset
        callbacks = self.trainer.callback_handler.callbacks
        selects = args.load_best_model_at_end or any(isinstance(each, EarlyStoppingCallback) for each in callbacks)
        if selects or uses_fsdp(self.trainer.accelerator) or not isinstance(dataset, Dataset):
            return dataset
        count = min(MAX_HELD_OUT_ROWS, int(HELD_OUT_FRACTION * len(dataset)))
        if count < MIN_HELD_OUT_ROWS:
            return dataset
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(args.seed)).tolist()
        self._rows = dataset.select(sorted(order[:count]))
        return dataset.select(sorted(order[count:]))

    @property
    def is_active(self) -> bool:
        """Whether the training that begins or runs is looked at."""
        return self._rows is not None and not self.is_paused

    def close(self) -> None:
        """Forget the held-out rows and the weights: nothing more is trained."""
        self._rows, self._batches, self._best_weights, self.distiller = None, [], None, None

    # ---- callbacks --------------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Look at the student as it is before training, unless a checkpoint is resumed."""
        if not self.is_active:
            return
        if not self._batches:
            self._prepare()
        if not state.global_step:
            self._best_weights = None
            self._look(model, 0)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Look at the student every few steps, and stop the training if agreement has not risen for some looks."""
        if not self.is_active:
            return
        interval = max(MIN_STEPS, math.ceil(state.max_steps / LOOKS))
        if state.global_step % interval and state.global_step < state.max_steps:
            return
        self._look(model, state.global_step)
        first = max(self.best_of_round().step + 1, MIN_PROGRESS * state.max_steps)
        if sum(point.step >= first for point in self.points_of_round()) >= PATIENCE:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Install the best weights."""
        if not self.is_active or self._best_weights is None:
            return
        if self.points_of_round()[-1] != self.best_of_round():
            assert self.distiller is not None
            model.load_state_dict(self._best_weights, strict=False)
            self.distiller.load_state_dict(self._best_weights, strict=False)
            self.after_restoring(model)
        self._best_weights = None

    # ---- the report -------------------------------------------------------------------------------------------------

    def points_of_round(self) -> list[TrainingPoint]:
        """Return the points of the training that runs, or ran last."""
        return [point for point in self.curve if point.round == self.round]

    def best_of_round(self) -> TrainingPoint:
        """Return the point with the highest agreement; of equal ones that with the lowest loss, and the first."""
        return max(self.points_of_round(), key=lambda point: (point.agreement, -(point.loss or 0.0)))

    def describe(self) -> str:
        """Return, to follow "trained for N steps" in the report, which weights are kept; empty if inactive."""
        points = self.points_of_round() if self.is_active else []
        if not points:
            return ""
        best, rows = self.best_of_round(), f"{len(self._rows):,} held-out training rows"
        if best == points[0]:
            return f"; training did not raise agreement with the teacher on {rows}: the untrained weights are kept"
        kept = f"the weights of step {best.step:,} are kept"
        change = f"{best.agreement:.1%} on {rows}, {points[0].agreement:.1%} before training"
        return f"; {kept}: agreement with the teacher is {change}"

    # ---- looking ----------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Make the batches of the held-out rows, and let the teacher predict them once."""
        assert self.distiller is not None
        head, trainer = self.distiller.teacher.head_outputs, self.trainer
        assert head is not None
        order = sort_by_length(self._rows)  # little padding in a batch
        ordered = self._rows if order is None else self._rows.select(order)
        rows = trainer._remove_unused_columns(ordered, "early stopping")
        loader = DataLoader(rows, batch_size=trainer.args.eval_batch_size, collate_fn=trainer.data_collator)
        stored = 0
        with torch.random.fork_rng():  # masks may be drawn, and the training must not depend on it
            batches = [dict(batch) for batch in loader]
        for batch in batches:
            inputs = trainer._prepare_inputs(batch)
            outputs, _ = self.distiller.teacher.predict(inputs)
            stored += sum(value.numel() for value in outputs.values())
            kept = {name: value.cpu() for name, value in outputs.items()} if stored <= MAX_STORED_OUTPUTS else None
            self._batches.append((batch, decide(head, outputs, inputs), kept))

    @torch.no_grad()
    def _look(self, model: Any, step: int) -> None:
        """Add a point to the curve, and keep the weights if it is the best of the round."""
        assert self.distiller is not None
        head = self.distiller.teacher.head_outputs
        assert head is not None
        was_training = model.training
        model.eval()
        decisions, losses, count = [], [], 0
        for batch, _, teacher_outputs in self._batches:
            inputs = self.trainer._prepare_inputs(batch)
            accepted = select_model_inputs(self.trainer.model, inputs)
            needs_labels = head.decoder_reads_labels
            outputs = model(**{name: value for name, value in accepted.items() if needs_labels or not is_label(name)})
            decisions.append(decide(head, outputs, inputs))
            if teacher_outputs is not None:
                moved = {name: value.to(outputs[name].device) for name, value in teacher_outputs.items()}
                losses.append(float(head.loss(self.distiller.comparable(outputs), moved, 1.0, inputs)))
                count += int(head.count(inputs))
        model.train(was_training)
        loss = sum(losses) / count if len(losses) == len(self._batches) and count else math.nan
        teacher_decisions = torch.cat([teacher for _, teacher, _ in self._batches])
        decided = torch.cat(decisions)
        if head.predicts_embeddings:
            agreement = neighbours_kept(decided.numpy(), teacher_decisions.numpy()) or 0.0
        else:
            agreement = agreement_of(head, decided, teacher_decisions)
        values = broadcast(torch.tensor([agreement, loss], device=self.trainer.args.device)).tolist()
        self.curve.append(TrainingPoint(self.round, step, values[0], None if math.isnan(values[1]) else values[1]))
        if self.best_of_round() == self.curve[-1]:
            projections = self.distiller.projections.state_dict(prefix="projections.")
            weights = {**model.state_dict(), **projections}
            self._best_weights = {name: value.detach().cpu().clone() for name, value in weights.items()}

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def save_state(self, folder: Path) -> None:
        """Write the curve and the best weights into a checkpoint."""
        if not self.is_active or not self.trainer.args.should_save:
            return
        points = [asdict(point) for point in self.curve]
        (folder / CURVE_NAME).write_text(json.dumps({"round": self.round, "points": points}), encoding="utf-8")
        if self._best_weights is not None:
            weights = {name: value.clone().contiguous() for name, value in self._best_weights.items()}
            save_file(weights, folder / WEIGHTS_NAME)

    def load_state(self, folder: Path) -> None:
        """Read what `save_state` wrote."""
        path = folder / CURVE_NAME
        if not path.exists():
            return
        saved = json.loads(path.read_text(encoding="utf-8"))
        self.round = saved["round"]
        self.curve = [TrainingPoint(**point) for point in saved["points"]]
        weights = folder / WEIGHTS_NAME
        self._best_weights = load_file(weights) if weights.exists() else None
