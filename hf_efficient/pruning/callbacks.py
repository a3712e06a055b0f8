"""Trainer callbacks that prune while a model is trained."""

from __future__ import annotations

from collections.abc import Callable
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
from hf_efficient.pruning.sparsity import KeepZerosCallback, remove_connections

GATES_NAME = "gates.safetensors"
NUM_UPDATES = 32
SCORE_DECAY = 0.5
GRADIENT_SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "fisher": lambda gradient: gradient.square() / 2,
    "taylor": torch.abs,
    "movement": torch.neg,
}


class GateClosingCallback(TrainerCallback):
    """Closes gates on units and layers while a model is trained, and opens those again that turn out to matter.

    | argument | meaning |
    | --- | --- |
    | choose | from the part of the removal that is due, in [0, 1], and scores to what stays open |
    | criterion | "fisher", "taylor" and "movement" are summed up from the gradients of training itself |
    | rescore | any other criterion's scores, computed anew at every update |
    | reduce | averages a tensor over the processes, so that all close the same gates |

    What is due rises by the cubic schedule over the run. `save` and `load` carry gates and sums through a checkpoint.

    Source: Zhu and Gupta 2017, eq. 1, for units instead of connections; movement by Sanh et al. 2020, eq. 3.
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
        self.forgets = criterion != "movement"
        self.units: dict[str, torch.Tensor] = {}
        self.layers: dict[str, torch.Tensor] = {}
        self.sums: dict[str, torch.Tensor] = {}
        self._loaded: dict[str, torch.Tensor] = {}
        self._context: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the gates in, open, or as a checkpoint holds them."""
        model = kwargs["model"]
        whole = getattr(model, "module", model)
        family, device = family_of(whole), next(whole.parameters()).device
        units = {name: torch.ones(block.units) for name, block in family.blocks(whole).items() if block.units}
        layers = {name: torch.ones(()) for name in family.layers(whole)}
        for gates in (units, layers):
            for name, gate in gates.items():
                value = self._loaded.get(f"gate.{name}", gate).to(device)
                gates[name] = value.requires_grad_(self.gradient_score is not None)
                self.sums[name] = self._loaded.get(f"sum.{name}", torch.zeros_like(gate)).to(device)
        self.units, self.layers = units, layers
        self._context = apply_gates(whole, units, layers)
        self._context.__enter__()

    @property
    def is_open(self) -> bool:
        """Whether the gates are in the model."""
        return self._context is not None

    def collect(self) -> None:
        """Add what a backward pass says of every gate to the sums."""
        if self.gradient_score is None:
            return
        for name, gate in {**self.units, **self.layers}.items():
            if gate.grad is not None:
                self.sums[name] += self.gradient_score(gate.grad)
                gate.grad = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Closes and opens gates, from time to time."""
        if state.global_step % max(1, state.max_steps // NUM_UPDATES) and state.global_step < state.max_steps:
            return
        due = cubic_fraction(state.global_step, 0, state.max_steps, final=1.0)
        selection = self.choose(due, self.scores())
        with torch.no_grad():
            for name, gate in self.units.items():
                gate.zero_()
                gate[list(selection.units[name])] = 1
            for name, gate in self.layers.items():
                gate.fill_(float(name in selection.layers))
        if self.forgets and state.global_step < state.max_steps:
            for total in self.sums.values():
                total *= SCORE_DECAY

    def scores(self) -> Scores:
        """Return the scores so far, the same on all processes."""
        if self.gradient_score is None:
            return self.rescore()
        found = {name: self.reduce(total) for name, total in self.sums.items()}
        return Scores(
            units={name: found[name] for name in self.units},
            layers={name: float(found[name]) for name in self.layers},
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the gates off."""
        self.close()

    def close(self) -> None:
        """Take the gates off, if they are on."""
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None

    def save(self, folder: str, writes: bool = True) -> None:
        """Write gates and sums beside a checkpoint's weights; all processes take part, and one of them `writes`."""
        tensors = {f"gate.{name}": gate.detach() for name, gate in {**self.units, **self.layers}.items()}
        tensors |= {f"sum.{name}": self.reduce(total) for name, total in self.sums.items()}
        if writes:
            save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, Path(folder) / GATES_NAME)

    def load(self, folder: str) -> None:
        """Read what `save` wrote, to be put in when training begins."""
        self._loaded = load_file(Path(folder) / GATES_NAME)


class GradualSparsityCallback(TrainerCallback):
    """Removes more and more single connections while a model is trained, by the cubic schedule.

    What is zero stays zero; a checkpoint's weights hold their zeros, so that nothing else has to be saved.

    Source: Zhu and Gupta 2017, "To prune, or not to prune", eq. 1.
    """

    def __init__(self, fraction: float, scope: str | None, rescore: Callable[[], ConnectionScores]) -> None:
        self.fraction, self.scope, self.rescore = fraction, scope, rescore
        self.zeros = KeepZerosCallback()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the zeros that are there."""
        self.zeros.record_zeros(kwargs["model"])

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keeps what is zero at zero."""
        self.zeros.restore_zeros()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove what is due, from time to time."""
        if state.global_step % max(1, state.max_steps // NUM_UPDATES) and state.global_step < state.max_steps:
            return
        model = kwargs["model"]
        due = cubic_fraction(state.global_step, 0, state.max_steps, self.fraction)
        remove_connections(getattr(model, "module", model), self.rescore(), fraction=due, scope=self.scope)
        self.zeros.record_zeros(model)
