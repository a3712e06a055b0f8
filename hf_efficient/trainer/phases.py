"""Pruning around training runs: prune, train, and again; with gates that close during training, or with rewinding."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from accelerate import Accelerator
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_utils import TrainOutput

from hf_efficient.errors import UserError
from hf_efficient.functions import build_target_search, prune
from hf_efficient.models import class_for, family_of
from hf_efficient.models.sentence_modules import copy_sentence_modules
from hf_efficient.pruning.callbacks import GateClosingCallback, GradualSparsityCallback
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.pruning.schedule import Phase, plan_phases
from hf_efficient.pruning.selection import Scores, remove_units
from hf_efficient.pruning.sparsity import KeepZerosCallback, remove_connections, zero_fraction
from hf_efficient.trainer.agreement_stopping import AgreementStopping
from hf_efficient.trainer.checkpoints import (
    CheckpointState,
    is_complete,
    last_complete_checkpoint,
    numbered,
    save_atomically,
)
from hf_efficient.trainer.scoring import Batches, PruningScorer

PHASE_NAME = re.compile(r"(_round|_cut)-\d+(\.replaced)?(\.partial)?|_costs-\d+(\.partial)?\.json")


def has_training_steps(args: TrainingArguments) -> bool:
    """Whether anything is trained: without epochs and steps, the model is pruned only."""
    return args.num_train_epochs > 0 or args.max_steps > 0


class PruningPhases:
    """Runs the phases of a pruning, each a stock training run on an ordinary, smaller model.

    A phase has a folder of its own in the output directory, `_round-N`, with the model that it starts from and its
    checkpoints. The folder appears when that model is complete, so a run is resumed from the last one.

    | argument | meaning |
    | --- | --- |
    | get_model | returns the model that is trained now |
    | install_model | replaces it, with optimizer and scheduler |
    | draw_batches | returns the batches to score the model on |
    | add_callback, remove_callback, pop_callback | of the trainer |
    | stopping | looks at the student in each phase, except while gates close |
    """

    gate_callback: GateClosingCallback | None = None

    def __init__(
        self,
        config: PruningConfig,
        args: TrainingArguments,
        accelerator: Accelerator,
        scorer: PruningScorer,
        *,
        get_model: Callable[[], PreTrainedModel],
        install_model: Callable[[PreTrainedModel], None],
        draw_batches: Callable[[], Batches],
        add_callback: Callable[[TrainerCallback], None],
        remove_callback: Callable[[TrainerCallback], None],
        pop_callback: Callable[[type[TrainerCallback]], Any],
        stopping: AgreementStopping,
    ) -> None:
        self.config, self.args, self.accelerator, self.scorer = config, args, accelerator, scorer
        self.get_model, self.install_model, self.draw_batches = get_model, install_model, draw_batches
        self.add_callback, self.remove_callback = add_callback, remove_callback
        self.pop_callback, self.stopping = pop_callback, stopping
        self.teacher: PreTrainedModel | None = None

    def run(
        self,
        teacher: PreTrainedModel | None,
        resume: str | bool | None,
        train: Callable[[str | None], TrainOutput],
        stages: list[str],
        describe_training: Callable[[TrainOutput], str],
        state: CheckpointState,
    ) -> TrainOutput | None:
        """Prune and train in the phases that the config plans; return the output of the last training run.

        `train` trains the installed model, resumed from the checkpoint that it is given. `describe_training`
        describes its output, and `stages` receives what was done, both for the report. `state` is saved with the model
        that a phase starts from.
        """
        self.teacher = teacher
        output: TrainOutput | None = None
        folder = Path(self.args.output_dir)
        epochs, steps = self.args.num_train_epochs, self.args.max_steps
        resumed_phase = last_complete_phase(folder) if resume else None
        if not resume and self.args.should_save and folder.exists():
            clear_phases(folder)
        self._check_resumed_phase(resumed_phase)
        try:
            for phase in plan_phases(self.config):
                phase_dir = folder / f"_round-{phase.number}"
                if resumed_phase is not None and phase.number < resumed_phase:
                    stages.append(f"{self.describe(phase)}, before an interruption")
                    continue
                is_resumed = phase.number == resumed_phase
                if not is_resumed:
                    self.prepare_phase(phase, phase_dir, state)
                self.install_model(self.load_model(phase_dir))
                if is_resumed:
                    state.load_state(phase_dir)
                checkpoint = last_complete_checkpoint(phase_dir) if is_resumed else None
                self.args.output_dir = str(phase_dir)
                self.args.num_train_epochs = epochs * phase.epoch_fraction
                self.args.max_steps = max(1, round(steps * phase.epoch_fraction)) if steps > 0 else steps
                # Earlier phases have drawn random numbers too, unless an interruption left them out.
                transformers.set_seed(self.args.seed + phase.number)
                with self.phase_callbacks(phase), self.select_models(phase):
                    description = self.describe(phase)
                    stages.append(f"{description}: {self.describe_structure()}" if phase.number else description)
                    if not has_training_steps(self.args):
                        continue
                    output = train(checkpoint)
                stages.append(describe_training(output))
        finally:
            self.args.output_dir, self.args.num_train_epochs, self.args.max_steps = str(folder), epochs, steps
        return output

    def _check_resumed_phase(self, number: int | None) -> None:
        """Raise UserError if the phase that is to be resumed is not one of those that the config plans."""
        planned = [phase.number for phase in plan_phases(self.config)]
        if number is not None and number not in planned:
            raise UserError(
                f"the run in output_dir was interrupted in round {number}, and the settings given now have the rounds "
                f"{', '.join(map(str, planned))}: resume with the settings of that run, or start again in another "
                "directory"
            )

    def prepare_phase(self, phase: Phase, folder: Path, state: CheckpointState) -> None:
        """Save into `folder` the model that the phase starts from.

        Every process scores its part of the data, the scores are averaged, and the main process prunes.
        """
        trained, config = self.get_model(), self.config
        self.remove_autocast_wrapper(trained)
        request = config.for_round(max(1, phase.number))
        previous_dir = folder.with_name(f"_round-{phase.number - 1}")
        pruned_dir = folder.with_name(f"_cut-{phase.number}")
        cost_file = folder.with_name(f"_costs-{phase.number}.json")
        rewinds = bool(phase.number) and config.rewind == "weights"
        batches = self.draw_batches() if phase.number else []
        was_pruned = pruned_dir.is_dir() and is_complete(pruned_dir, "config.json")  # before an interruption
        is_pruned = self.scorer.broadcast_from_main(was_pruned)
        needs_scores = phase.number and config.removes_units and not is_pruned
        scores = self.scores_for_pruning(request, batches) if needs_scores else None
        self.gate_callback = None
        all_batches = self.scorer.gather_batches(batches)
        if self.args.should_save and not is_pruned:
            model = self.load_model(previous_dir) if rewinds else trained
            if scores is not None and rewinds:
                search = build_target_search(trained, request.units_only(), self.teacher, cost_file)
                model = remove_units(model, search.select_until_met(scores))
            elif scores is not None:
                model = prune(
                    trained, request.units_only(), all_batches, self.teacher, scores=scores, cost_file=cost_file
                )
            save_atomically(model, pruned_dir)
        self.accelerator.wait_for_everyone()
        model = self.load_model(pruned_dir)
        if phase.number and config.removes_connections:
            model.to(self.args.device)
            connection_scores = self.scorer.score_connections(trained if rewinds else model, batches, self.teacher)
            remove_connections(model, connection_scores, **request.connection_settings())
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            save_atomically(model, folder, save_state=state.save_state)
            shutil.rmtree(pruned_dir)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def phase_callbacks(self, phase: Phase) -> Iterator[None]:
        """Add, while a phase is trained, the callbacks that close gates or keep connections at zero."""
        callbacks = self._build_callbacks(phase)
        for callback in callbacks:
            self.add_callback(callback)
        try:
            yield
        finally:
            for callback in callbacks:
                self.remove_callback(callback)
            if self.gate_callback is not None:
                self.gate_callback.close()

    @contextmanager
    def select_models(self, phase: Phase) -> Iterator[None]:
        """Let a phase select models by their metric as if it were a run of its own, and not while gates close.

        A checkpoint with open gates, or a stop before they are closed, would undo the removal.
        """
        self.stopping.round, self.stopping.is_paused = phase.number, phase.closes_gates
        loads_best = self.args.load_best_model_at_end
        stopping: list[EarlyStoppingCallback] = []
        while callback := self.pop_callback(EarlyStoppingCallback):
            callback.early_stopping_patience_counter = 0
            stopping.append(callback)
        if phase.closes_gates:
            self.args.load_best_model_at_end = False
        else:
            self._add_all(stopping)
        try:
            yield
        finally:
            self.args.load_best_model_at_end = loads_best
            if phase.closes_gates:
                self._add_all(stopping)

    def _add_all(self, callbacks: Sequence[TrainerCallback]) -> None:
        for callback in callbacks:
            self.add_callback(callback)

    def _build_callbacks(self, phase: Phase) -> list[TrainerCallback]:
        callbacks: list[TrainerCallback] = []
        if phase.closes_gates and self.config.removes_units:
            cost_file = Path(self.args.output_dir) / "costs.json" if self.args.should_save else None
            search = build_target_search(self.get_model(), self.config, self.teacher, cost_file)
            self.gate_callback = GateClosingCallback(
                choose=lambda progress, scores: self.scorer.broadcast_from_main(
                    search.select_from_table(self.config.at_progress(progress), scores)
                ),
                criterion=self.config.criterion,
                rescore=lambda: self.scorer.score_units(
                    self.get_model(), self.config, self.draw_batches(), self.teacher
                ),
                reduce=self.scorer.average_over_processes,
            )
            callbacks.append(self.gate_callback)
        if phase.closes_gates and self.config.weights:
            callbacks.append(
                GradualSparsityCallback(
                    self.config.weights,
                    self.config.connection_settings()["scope"],
                    rescore=lambda: self.scorer.score_connections(self.get_model(), self.draw_batches(), self.teacher),
                )
            )
        elif phase.number and self.config.removes_connections:
            callbacks.append(KeepZerosCallback())
        return callbacks

    def scores_for_pruning(self, request: PruningConfig, batches: Batches) -> Scores:
        """Return the scores to prune by: those collected while the gates closed, if there were gates."""
        if self.gate_callback is not None:
            return self.gate_callback.scores()
        return self.scorer.score_units(self.get_model(), request, batches, self.teacher)

    def load_model(self, folder: Path) -> PreTrainedModel:
        """Load the model in `folder` with the head, data type and attention of the current one."""
        model = self.get_model()
        model_class = class_for(model, transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False))
        attention = model.config._attn_implementation
        loaded = model_class.from_pretrained(folder, dtype=model.dtype, attn_implementation=attention)
        return copy_sentence_modules(model, loaded)

    def remove_autocast_wrapper(self, model: PreTrainedModel) -> None:
        """Remove what mixed precision put around `forward`: copies and measurements need the model itself."""
        self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def save_state(self, folder: Path) -> None:
        """Write the gates into a checkpoint, while they are applied."""
        if self.gate_callback is not None and self.gate_callback.is_open:
            self.gate_callback.save(str(folder), self.args.should_save)

    def load_state(self, folder: Path) -> None:
        """Read the gates of a checkpoint."""
        if self.gate_callback is not None:
            self.gate_callback.load(str(folder))

    # ---- descriptions for the report --------------------------------------------------------------------------------

    def describe(self, phase: Phase) -> str:
        """Return what the phase does."""
        config = self.config
        if phase.closes_gates:
            return f"gates closed by {config.criterion} during training"
        if not phase.number:
            return "trained before pruning"
        description = f"pruned by {config.criterion}, round {phase.number} of {config.rounds}"
        if config.rewind == "weights":
            return f"{description}, rewound to the initial weights"
        return f"{description}, outputs reconstructed by least squares" if self._reconstructs else description

    @property
    def _reconstructs(self) -> bool:
        return bool(self.config.recovery and self.config.removes_units)

    def describe_structure(self) -> str:
        """Return how many layers, heads and neurons remain."""
        model = self.get_model()
        structure = family_of(model).structure(model.config)
        layers = [layer for stack in structure.stacks.values() for layer in stack]
        heads = ", ".join(str(sum(len(kept) for kept in layer.heads.values())) for layer in layers)
        neurons = ", ".join(str(sum(layer.neurons.values())) for layer in layers)
        description = f"{len(layers)} layers remain, with {heads} heads and {neurons} neurons"
        if self.config.removes_connections:
            return f"{description}; {zero_fraction(model):.1%} of their connections are zero"
        return description


def last_complete_phase(folder: Path) -> int | None:
    """Return the number of the last phase whose folder is complete, or None."""
    numbers = {path: numbered(path, "_round") for path in folder.glob("_round-*")}
    complete = [number for path, number in numbers.items() if number is not None and is_complete(path, "config.json")]
    return max(complete, default=None)


def clear_phases(folder: Path, ignore_errors: bool = False) -> None:
    """Remove the folders and files of the phases of a run; `ignore_errors` keeps folders that cannot be removed."""
    for path in list(folder.iterdir()):
        if not PHASE_NAME.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors)
        else:
            path.unlink()
