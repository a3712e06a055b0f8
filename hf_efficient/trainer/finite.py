"""Losses, gradients and weights that must be finite: a run stops before it saves others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from hf_efficient.errors import NonFiniteLossError
from hf_efficient.measurement.finite import find_non_finite

LOSS, NORM = "the loss", "the norm of the gradients"


def waits_for_device(value: torch.Tensor) -> bool:
    """Whether reading `value` waits until its device has computed it."""
    return value.device.type != "cpu"


class FiniteChecks:
    """Stops a training at a loss or at gradients that are NaN or infinite.

    On a CPU it stops at once. Reading a tensor of another device would wait for it in every step, so the first value
    that is not finite is kept there, and looked at when `check` is called: at each log, and before anything is saved.
    """

    def __init__(self, args: TrainingArguments, accelerator: Accelerator) -> None:
        self.args, self.accelerator = args, accelerator
        # By what was watched: (2,) the first value that is not finite and its step, which is -1 as long as all are.
        self._first: dict[str, torch.Tensor] = {}

    def watch_loss(self, loss: torch.Tensor, step: int) -> None:
        """Watch the loss of a batch after so many steps."""
        self._watch(LOSS, loss, step)

    def watch_norm(self, norm: Any, step: int) -> None:
        """Watch the norm of the gradients of `step`; with a loss scaler infinite ones only mean a smaller scale."""
        if self.accelerator.scaler is None:
            # Of a model that FSDP shards it is a DTensor, the sum of which all processes compute together.
            self._watch(NORM, norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm), step)

    def _watch(self, name: str, value: torch.Tensor, step: int) -> None:
        value = value.detach().float().reshape(())
        first = self._first.get(name)
        if first is None:
            first = torch.full((2,), -1.0, device=value.device)
        is_first = (first[1] < 0) & ~torch.isfinite(value)
        self._first[name] = torch.where(is_first, torch.stack([value, torch.full_like(value, step)]), first)
        if not waits_for_device(value):
            self.check()

    def check(self) -> None:
        """Raise NonFiniteLossError if a loss or gradients since the last call were not finite."""
        watched, self._first = self._first, {}
        if not watched:
            return
        values = zip(torch.stack(list(watched.values())).tolist(), watched, strict=True)
        found = sorted((step, name == LOSS, value) for (value, step), name in values if step >= 0)
        for step, is_loss, value in found[:1]:  # the gradients of a step make the loss after it NaN
            name = LOSS if is_loss else NORM
            beside = "" if is_loss else ", while the loss is finite"
            raise NonFiniteLossError(
                f"{name} is {value} at step {step:.0f}{beside}: the weights are not saved and the last checkpoint "
                f"in {self.args.output_dir} is kept. {self._advice()}"
            )

    def check_weights(self, weights: Iterable[tuple[str, torch.Tensor]], step: int) -> None:
        """Raise NonFiniteLossError if a loss, gradients or `weights`, by name, are not finite after so many steps."""
        self.check()
        name = find_non_finite(weights)
        if name is not None:
            raise NonFiniteLossError(
                f"the weights of {name} are NaN or infinite after step {step}: they are not saved, and the last "
                f"checkpoint in {self.args.output_dir} is kept. {self._advice()}"
            )

    def _advice(self) -> str:
        return f"Try a smaller learning rate (now {self.args.learning_rate:g}), or train without mixed precision"
