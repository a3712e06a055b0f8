"""Trainer callbacks that prune a model while it is trained."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_efficient.models import family_of
from hf_efficient.pruning.connection_criteria import ConnectionScores
from hf_efficient.pruning.gates import apply_gates
from hf_efficient.pruning.schedule import cubic_fraction
from hf_efficient.pruning.selection import Scores, Selection
from hf_efficient.pruning.sparsity import KeepZerosCallback, remove_connections, unwrap_parallel

GATES_NAME = "gates.safetensors"
NUM_UPDATES = 32
SCORE_DECAY = 0.5
GRADIENT_SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "fisher": lambda gradient: gradient.square() / 2,
    "taylor": torch.abs,
    "movement": torch.neg,
}


def _is_update_step(state: TrainerState) -> bool:
    """Whether the schedule makes an update after this step: `NUM_UPDATES` times per run, and at its end."""
    interval = max(1, state.max_steps // NUM_UPDATES)
    return state.global_step % interval == 0 or state.global_step >= state.max_steps


class GateClosingCallback(TrainerCallback):
    """Closes gates of units and layers while a model is trained, and reopens those that turn out to matter.

    | argument | meaning |
    | --- | --- |
    | choose | from the progress of the removal, in [0, 1], and scores to the selection whose gates are open |
    | criterion | scores of "fisher", "taylor" and "movement" are summed from the gradients of the training itself |
    | rescore | returns the scores of any other criterion, computed again for every update |
    | reduce | averages a tensor over the processes, so that all close the same gates |

    The progress follows the cubic schedule. Gradients are collected after every backward pass: the Trainer calls
    `on_substep_end` after those that only accumulate, and `on_pre_optimizer_step` after those that a step follows.
    `save` and `load` keep gates and sums in a checkpoint.

    Source: Zhu and Gupta 2017, "To prune, or not to prune", eq. 1, for units instead of connections; Sanh et al. 2020,
    "Movement Pruning", eq. 3.
    """

    def __init__(
        self,
        choose: Callable[[float, Scores], Selection],
        criterion: str,
        rescore: Callable[[], Scores],
        reduce: Callable[[torch.Tensor], torch.Tensor] = lambda values: values,
    ) -> None:
        self.choose, self.rescore, self.reduce = choose, rescore, reduce
        self.gradient_score = GRADIENT_SCORES.get(criterion)
        self.decays_scores = criterion != "movement"
        self.units: dict[str, torch.Tensor] = {}
        self.layers: dict[str, torch.Tensor] = {}
        self.sums: dict[str, torch.Tensor] = {}
        self._loaded: dict[str, torch.Tensor] = {}
        self._context: AbstractContextManager[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the gates are applied to the model."""
        return self._context is not None

    @property
    def _gates(self) -> dict[str, torch.Tensor]:
        return {**self.units, **self.layers}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Apply the gates: all open, or as a checkpoint holds them."""
        model = unwrap_parallel(kwargs["model"])
        family, device = family_of(model), next(model.parameters()).device
        self.units = {name: torch.ones(block.units) for name, block in family.blocks(model).items() if block.units}
        self.layers = {name: torch.ones(()) for name in family.layers(model)}
        for gates in (self.units, self.layers):
            for name, gate in gates.items():
                value = self._loaded.get(f"gate.{name}", gate).to(device)
                gates[name] = value.requires_grad_(self.gradient_score is not None)
                self.sums[name] = self._loaded.get(f"sum.{name}", torch.zeros_like(gate)).to(device)
        self._context = apply_gates(model, self.units, self.layers)
        self._context.__enter__()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Collect the gradients of a backward pass that no step follows."""
        self.collect()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Collect the gradients of the backward pass before a step; the gates are not clipped."""
        self.collect()

    def collect(self) -> None:
        """Add the scores of one backward pass to the sums, and clear the gradients of the gates."""
        if self.gradient_score is None:
            return
        for name, gate in self._gates.items():
            if gate.grad is not None:
                self.sums[name] += self.gradient_score(gate.grad)
                gate.grad = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close and open gates at the steps of an update."""
        if not _is_update_step(state):
            return
        progress = cubic_fraction(state.global_step, 0, state.max_steps, final=1.0)
        selection = self.choose(progress, self.scores())
        self._set_gates(selection)
        if self.decays_scores and state.global_step < state.max_steps:
            for total in self.sums.values():
                total *= SCORE_DECAY

    @torch.no_grad()
    def _set_gates(self, selection: Selection) -> None:
        """Open the gates of `selection` and close the others, with one copy to the device."""
        values = []
        for name, gate in self.units.items():
            value = torch.zeros(len(gate))
            value[list(selection.units[name])] = 1
            values.append(value)
        values.append(torch.tensor([float(name in selection.layers) for name in self.layers]))
        gates = list(self._gates.values())
        values_on_device = torch.cat(values).to(gates[0].device)
        for gate, value in zip(gates, torch.split(values_on_device, [gate.numel() for gate in gates]), strict=True):
            gate.copy_(value.view_as(gate))

    def scores(self) -> Scores:
        """Return the scores so far, on the CPU, the same in all processes."""
        if self.gradient_score is None:
            return self.rescore()
        flat = self.reduce(torch.cat([total.flatten() for total in self.sums.values()])).cpu()
        parts = torch.split(flat, [total.numel() for total in self.sums.values()])
        sums = dict(zip(self.sums, parts, strict=True))
        return Scores(
            units={name: sums[name] for name in self.units},
            layers={name: float(sums[name]) for name in self.layers},
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the gates from the model."""
        self.close()

    def close(self) -> None:
        """Remove the gates from the model, if they are applied."""
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None

    def save(self, folder: str, is_main_process: bool = True) -> None:
        """Write gates and sums to the folder of a checkpoint: called in all processes, written by the main one."""
        tensors = {f"gate.{name}": gate.detach() for name, gate in self._gates.items()}
        tensors |= {f"sum.{name}": self.reduce(total) for name, total in self.sums.items()}
        if is_main_process:
            save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, Path(folder) / GATES_NAME)

    def load(self, folder: str) -> None:
        """Read what `save` wrote, to be applied when training begins."""
        self._loaded = load_file(Path(folder) / GATES_NAME)


class GradualSparsityCallback(TrainerCallback):
    """Removes single connections while a model is trained, more and more by the cubic schedule.

    | argument | meaning |
    | --- | --- |
    | fraction | of the connections, in [0, 1), that are zero at the end |
    | scope | as for `remove_connections` |
    | rescore | returns the scores of the connections, computed again for every update |

    Connections that are zero stay zero. The weights of a checkpoint hold their zeros, so nothing else is saved.

    Source: Zhu and Gupta 2017, "To prune, or not to prune", eq. 1.
    """

    def __init__(self, fraction: float, scope: str | None, rescore: Callable[[], ConnectionScores]) -> None:
        self.fraction, self.scope, self.rescore = fraction, scope, rescore
        self.zeros = KeepZerosCallback()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the connections that are zero already."""
        self.zeros.record_zeros(kwargs["model"])

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the recorded connections to zero again."""
        self.zeros.restore_zeros()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove more connections at the steps of an update."""
        if not _is_update_step(state):
            return
        model = unwrap_parallel(kwargs["model"])
        target_fraction = cubic_fraction(state.global_step, 0, state.max_steps, self.fraction)
        remove_connections(model, self.rescore(), fraction=target_fraction, scope=self.scope)
        self.zeros.record_zeros(model)
