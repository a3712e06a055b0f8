"""Quantization-aware training, and what quantization observes of the training data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_efficient.models import is_quantized
from hf_efficient.quantization.calibration import InputStatistics
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.quantization.fake_quantization import (
    disable_fake_quantization,
    enable_fake_quantization,
    set_input_statistics,
)
from hf_efficient.quantization.int8 import calibrate
from hf_efficient.trainer.scoring import Batches

RANGES_NAME = "activation_ranges.json"
# The ranges follow the weights during the first part of training, so many times, and are fixed in the rest of it.
CALIBRATIONS = 8
CALIBRATED_FRACTION = 0.8


class QuantizationTraining(TrainerCallback):
    """Trains with fake quantization, and knows the ranges of activations that it trained with.

    `draw_batches` returns batches of training data, the same in all processes.
    """

    def __init__(self, config: QuantizationConfig, draw_batches: Callable[[], Batches]) -> None:
        self.config, self.draw_batches = config, draw_batches
        self.statistics: dict[str, InputStatistics] | None = None
        self._batches: Batches | None = None

    def on_model_changed(self, model: PreTrainedModel) -> None:
        """Let a model that is trained from now on round as int8 will, if the config requests it."""
        if self.config.aware and not is_quantized(model):
            enable_fake_quantization(model, self.config)

    def on_weights_replaced(self, model: Any) -> None:
        """Compute the ranges of activations again after the weights of a trained model were replaced."""
        if self.config.aware and self.config.needs_calibration:
            self._calibrate(model)

    def close(self, model: PreTrainedModel) -> None:
        """Let `model` compute in float again."""
        disable_fake_quantization(model)
        self._batches = None

    def calibration_batches(self) -> Batches | None:
        """Return the batches that the trained model is quantized with; None if it needs none."""
        is_known = self.config.torchao or self.config.aware or not self.config.is_int8
        return None if is_known else self._draw()

    def _draw(self) -> Batches:
        with torch.random.fork_rng():  # the order of the training data does not depend on it
            return self.draw_batches()

    # ---- callbacks --------------------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Compute the ranges of activations, or set those of the checkpoint that training is resumed from."""
        if not (self.config.aware and self.config.needs_calibration):
            return
        if state.global_step and self.statistics is not None:
            set_input_statistics(model, self.config, self.statistics)
        else:
            self._calibrate(model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Compute the ranges again, several times in the first part of training."""
        if self.config.aware and self.config.needs_calibration:
            interval = max(1, round(state.max_steps * CALIBRATED_FRACTION / CALIBRATIONS))
            if state.global_step % interval == 0 and state.global_step <= state.max_steps * CALIBRATED_FRACTION:
                self._calibrate(model)

    def _calibrate(self, model: PreTrainedModel) -> None:
        if self._batches is None:
            self._batches = self._draw()
        self.statistics = calibrate(model, self.config, self._batches, second_moments=False)
        set_input_statistics(model, self.config, self.statistics)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def save_state(self, folder: Path) -> None:
        """Write the ranges into a checkpoint."""
        if self.statistics is not None:
            values = {name: dataclasses.asdict(each) for name, each in self.statistics.items()}
            (folder / RANGES_NAME).write_text(json.dumps(values), encoding="utf-8")

    def load_state(self, folder: Path) -> None:
        """Read the ranges of a checkpoint."""
        path = folder / RANGES_NAME
        if path.exists():
            values = json.loads(path.read_text(encoding="utf-8"))
            self.statistics = {
                name: InputStatistics(**{**fields, "outliers": tuple(fields["outliers"])})
                for name, fields in values.items()
            }
