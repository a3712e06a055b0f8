"""Losses, gradients and weights that must be finite: a run stops before it saves others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainingArguments

from hf_efficient.errors import NonFiniteLossError
from hf_efficient.measurement.finite import find_non_finite


class FiniteChecks:
    """Stops a training at a loss or at gradients that are NaN or infinite.

    The norm of the gradients is read together with the loss of the next batch, which the CPU waits for anyway.
    """

    def __init__(self, args: TrainingArguments, accelerator: Accelerator) -> None:
        self.args, self.accelerator = args, accelerator
        self._norm: tuple[torch.Tensor, int] | None = None

    def watch_norm(self, norm: Any, step: int) -> None:
        """Keep the norm of the gradients of `step`; with a loss scaler infinite ones only mean a smaller scale."""
        if self.accelerator.scaler is None:
            self._norm = torch.as_tensor(norm).detach(), step

    def check_loss(self, loss: torch.Tensor, step: int) -> None:
        """Raise NonFiniteLossError if `loss`, or the gradients of the step before, are not finite."""
        norm = torch.zeros_like(loss) if self._norm is None else self._norm[0].to(loss)
        if torch.isfinite(loss + 0 * norm):
            self._norm = None
            return
        self.check_gradients()
        raise NonFiniteLossError(
            f"the loss is {loss.item()} at step {step}: the weights are not updated and the last checkpoint in "
            f"{self.args.output_dir} is kept. {self._advice()}"
        )

    def check_gradients(self) -> None:
        """Raise NonFiniteLossError if the gradients of the last step are not finite."""
        norm, self._norm = self._norm, None
        if norm is not None and not torch.isfinite(norm[0]):
            raise NonFiniteLossError(
                f"the norm of the gradients is {norm[0].item()} at step {norm[1]}, while the loss is finite: the "
                f"weights are not saved and the last checkpoint in {self.args.output_dir} is kept. {self._advice()}"
            )

    def check_weights(self, weights: Iterable[tuple[str, torch.Tensor]], step: int) -> None:
        """Raise NonFiniteLossError if gradients or `weights`, by name, are not finite after so many steps."""
        self.check_gradients()
        name = find_non_finite(weights)
        if name is not None:
            raise NonFiniteLossError(
                f"the weights of {name} are NaN or infinite after step {step}: they are not saved, and the last "
                f"checkpoint in {self.args.output_dir} is kept. {self._advice()}"
            )

    def _advice(self) -> str:
        return f"Try a smaller learning rate (now {self.args.learning_rate:g}), or train without mixed precision"
