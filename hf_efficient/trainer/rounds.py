"""Pruning around stock training runs: prune, train, prune, train; with gates that close, or rewound to the start."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from accelerate.utils import broadcast_object_list, gather_object
from torch.utils.data import Subset
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput

from hf_efficient.distillation.teacher_cache import drop_teacher_columns
from hf_efficient.errors import UserError
from hf_efficient.functions import prune
from hf_efficient.models import family_of
from hf_efficient.models.inputs import select_inputs
from hf_efficient.pruning.callbacks import GateClosingCallback, GradualSparsityCallback
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.pruning.connection_criteria import CONNECTION_SAMPLES, ConnectionScores
from hf_efficient.pruning.criteria import CONNECTION_CRITERIA, WEIGHT_BASED_CRITERIA
from hf_efficient.pruning.losses import task_or_sampled_loss
from hf_efficient.pruning.schedule import Phase, plan_phases
from hf_efficient.pruning.scoring import score_units, take_examples
from hf_efficient.pruning.selection import Scores, remove_units
from hf_efficient.pruning.sparsity import KeepZerosCallback, remove_connections, zero_fraction
from hf_efficient.pruning.target_search import TargetSearch
from hf_efficient.pruning.validation import check_prunable
from hf_efficient.trainer.checkpoints import last_complete_checkpoint, save_atomically

Batches = list[dict[str, torch.Tensor]]
Found = TypeVar("Found")


class PruningRounds(Trainer):
    """A trainer whose `train_in_rounds` prunes its model before, between and while it trains it.

    Each phase is a stock training run in a folder of its own, `_round-N`, that holds the model it starts from and its
    checkpoints. A folder appears once the model in it is whole, so the last one tells where to go on.
    """

    pruning: PruningConfig
    teacher: Any
    train_dataset: Any
    stages: list[str]
    shards: bool
    _gates: GateClosingCallback | None = None

    def check_pruning(self) -> None:
        """Check what cannot work before any of the work is done."""
        if not self.pruning.active:
            return
        check_prunable(self.model, self.pruning)
        if not self.trains and (self.pruning.ramp or self.pruning.rewind):
            raise UserError("ramp and rewind happen while training, of which there is none: give num_train_epochs")
        if (
            self.shards
            and self.pruning.ramp
            and (self.pruning.weights or self.pruning.criterion in WEIGHT_BASED_CRITERIA)
        ):
            raise UserError(
                "ramp looks at single weights while they are trained (weights=..., and the criteria "
                f"{', '.join(WEIGHT_BASED_CRITERIA)}), which FSDP shares out: ask for rounds, or for criterion='fisher'"
            )
        if self.optimizer is not None:
            raise UserError(
                "an optimizer that holds the unpruned parameters cannot train the pruned ones: "
                "leave `optimizers` out and give `optimizer_cls_and_kwargs`"
            )
        if self.model_init is not None:
            raise UserError("model_init would undo the pruning at every round: give `model`")

    @property
    def trains(self) -> bool:
        """Whether there is any training: with no epochs and no steps, pruning is all that is done."""
        return self.args.num_train_epochs > 0 or self.args.max_steps > 0

    def train_in_rounds(self, resume: str | bool | None, *args: Any, **kwargs: Any) -> TrainOutput | None:
        """Prune and trains in the phases that the config asks for; `resume` goes on with what is there."""
        output: TrainOutput | None = None
        folder = Path(self.args.output_dir)
        epochs, steps = self.args.num_train_epochs, self.args.max_steps
        begun = last_complete_phase(folder) if resume else None
        if not resume and self.args.should_save:
            for stale in (*folder.glob("_round-*"), *folder.glob("_cut-*")):
                shutil.rmtree(stale)
            for stale in folder.glob("_costs-*"):
                stale.unlink()
        try:
            for phase in plan_phases(self.pruning):
                round_folder = folder / f"_round-{phase.number}"
                if begun is not None and phase.number < begun:
                    self.stages.append(f"{self._said(phase)}, before an interruption")
                    continue
                if begun is None or phase.number > begun:
                    self._prepare(phase, round_folder)
                self._install(self._load_pruned(round_folder))
                if phase.number == begun:
                    self._load_beside(round_folder)
                checkpoint = last_complete_checkpoint(round_folder) if phase.number == begun else None
                self.args.output_dir = str(round_folder)
                self.args.num_train_epochs = epochs * phase.share
                self.args.max_steps = max(1, round(steps * phase.share)) if steps > 0 else steps
                # What came before, and an interruption left out, has drawn random numbers too.
                transformers.set_seed(self.args.seed + phase.number)
                with self._acting(phase):
                    self.stages.append(f"{self._said(phase)}: {self._shape()}" if phase.number else self._said(phase))
                    if not self.trains:
                        continue
                    output = super().train(checkpoint, *args, **kwargs)
                self.stages.append(f"trained for {output.global_step} steps{self._from_teacher()}")
        finally:
            self.args.output_dir, self.args.num_train_epochs, self.args.max_steps = str(folder), epochs, steps
        return output

    def _prepare(self, phase: Phase, folder: Path) -> None:
        """Save into `folder` what the phase starts from.

        Every process scores its share of the data, the scores are averaged, and the first process cuts.
        """
        self._restore_forward(self.model)
        trained, config = self.model, self.pruning
        request = config.step(max(1, phase.number))
        before, staged = folder.with_name(f"_round-{phase.number - 1}"), folder.with_name(f"_cut-{phase.number}")
        costs = folder.with_name(f"_costs-{phase.number}.json")
        rewinds = bool(phase.number) and config.rewind == "weights"
        batches = self._scoring_batches() if phase.number else []
        is_cut = self._from_first((staged / "config.json").exists())  # before an interruption
        scores = self._final_scores(request, batches) if phase.number and config.removes_units and not is_cut else None
        self._gates = None
        batches_of_all = self._from_all(batches)
        if self.args.should_save and not is_cut:
            start = self._load_pruned(before) if rewinds else trained
            if scores is not None and rewinds:
                start = remove_units(
                    start, TargetSearch(trained, request.units_only(), self.teacher, costs).kept(scores)
                )
            elif scores is not None:
                start = prune(trained, request.units_only(), batches_of_all, self.teacher, scores=scores, costs=costs)
            save_atomically(start, staged)
        self.accelerator.wait_for_everyone()
        start = self._load_pruned(staged)
        if phase.number and config.removes_connections:
            start.to(self.args.device)
            weighed = self._connection_scores(trained if rewinds else start, batches)
            remove_connections(start, weighed, **request.connections())
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            save_atomically(start, folder, self._beside())
            shutil.rmtree(staged)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _acting(self, phase: Phase) -> Iterator[None]:
        """Lets act, while the phase is trained, what closes gates or keeps connections at zero."""
        callbacks: list[TrainerCallback] = []
        if phase.ramps and self.pruning.removes_units:
            file = Path(self.args.output_dir) / "costs.json" if self.args.should_save else None
            shapes = TargetSearch(self.model, self.pruning, self.teacher, file)
            self._gates = GateClosingCallback(
                choose=lambda due, scores: self._from_first(shapes.expected(self.pruning.at(due), scores)),
                criterion=self.pruning.criterion,
                rescore=lambda: self._scores(self.pruning, self._scoring_batches()),
                reduce=self._mean_over_processes,
            )
            callbacks.append(self._gates)
        if phase.ramps and self.pruning.weights:
            callbacks.append(
                GradualSparsityCallback(
                    self.pruning.weights,
                    self.pruning.connections()["scope"],
                    rescore=lambda: self._connection_scores(self.model, self._scoring_batches()),
                )
            )
        elif phase.number and self.pruning.removes_connections:
            callbacks.append(KeepZerosCallback())
        for callback in callbacks:
            self.add_callback(callback)
        try:
            yield
        finally:
            for callback in callbacks:
                self.remove_callback(callback)
            if self._gates is not None:
                self._gates.close()

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Also hears what the gradients say of the gates."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if self._gates is not None:
            self._gates.collect()
        return loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Also saves the gates, while there are any."""
        super()._save(output_dir, state_dict)
        if self._gates is not None and self._gates.is_open:
            self._gates.save(output_dir or self.args.output_dir, self.args.should_save)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Also loads the gates, while there are any."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._gates is not None:
            self._gates.load(resume_from_checkpoint)

    # ---- scores ----------------------------------------------------------------------------------------------------

    def _scoring_batches(self) -> Batches:
        """Return this process's share of the examples drawn, with the run's seed, from the training set."""
        if self.train_dataset is None:
            raise UserError("pruning scores units on training data: give the trainer a train_dataset")
        if hasattr(self.train_dataset, "__len__"):
            generator = torch.Generator().manual_seed(self.args.seed)
            chosen = torch.randperm(len(self.train_dataset), generator=generator)[: self.pruning.scoring_samples]
            batches = iter(self.get_test_dataloader(Subset(self.train_dataset, chosen.tolist())))
        else:
            count = -(-self.pruning.scoring_samples // self.args.per_device_train_batch_size)
            batches = itertools.islice(self.get_train_dataloader(), count)
        known = (select_inputs(self.model, drop_teacher_columns(batch)) for batch in batches)
        return take_examples(known, self.pruning.scoring_samples, self.args.device)

    def _final_scores(self, request: PruningConfig, batches: Batches) -> Scores:
        """Return the scores to prune by: those that the gates found while they closed, if there were any."""
        if self._gates is None:
            return self._scores(request, batches)
        return self._gates.scores()

    def _scores(self, request: PruningConfig, batches: Batches) -> Scores:
        loss = task_or_sampled_loss(self.teacher, self.args.seed)
        return score_units(self.model, request, batches, loss).map(self._mean_over_processes)

    def _connection_scores(self, model: PreTrainedModel, batches: Batches) -> ConnectionScores:
        loss = task_or_sampled_loss(self.teacher, self.args.seed)
        few = take_examples(batches, CONNECTION_SAMPLES, self.args.device)
        found = CONNECTION_CRITERIA[self.pruning.criterion](model, few, loss)
        return {name: self._mean_over_processes(scores) for name, scores in found.items()}

    def _mean_over_processes(self, values: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.accelerator.reduce(values.to(self.args.device), reduction="mean")
        return found

    def _from_all(self, batches: Batches) -> Batches:
        """Return the batches of all processes in the order of the data, as one process would have read them."""
        if self.args.world_size == 1:
            return batches
        shares = gather_object([batches])
        return [batch for turn in zip(*shares, strict=True) for batch in turn]

    def _from_first(self, found: Found) -> Found:
        """Return what the first process found: measured costs differ from process to process."""
        chosen = [found]
        if self.args.world_size > 1:
            broadcast_object_list(chosen)
        return chosen[0]

    # ---- models ----------------------------------------------------------------------------------------------------

    def _load_pruned(self, folder: Path) -> PreTrainedModel:
        """Load what a phase starts from; every process loads the same."""
        family = family_of(self.model)
        model_class = family.class_for(type(self.model), transformers.AutoConfig.from_pretrained(folder))
        attention = self.model.config._attn_implementation
        return model_class.from_pretrained(folder, dtype=self.model.dtype, attn_implementation=attention)

    def _install(self, model: PreTrainedModel) -> None:
        """Make `model` the one that is trained, evaluated and saved; forgetting one of these trains nothing."""
        self.accelerator.free_memory()
        if self.place_model_on_device:
            self._move_model_to_device(model, self.args.device)
        self.model = self.model_wrapped = self.callback_handler.model = model
        self.optimizer = self.lr_scheduler = None
        self._created_lr_scheduler = False
        model.config.use_cache = self.args.use_cache

    def _restore_forward(self, model: PreTrainedModel) -> None:
        """Take off what mixed precision put around `forward`, so that copies and measurements see the bare model."""
        self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)

    def _beside(self) -> Any:
        """Return what is trained beside the model and saved with it by `save_pretrained`, or None."""

    def _load_beside(self, folder: Path) -> None:
        """Load what `_beside` saved."""

    # ---- words -----------------------------------------------------------------------------------------------------

    def _said(self, phase: Phase) -> str:
        """Return what the phase does, for the report."""
        config = self.pruning
        if phase.ramps:
            return f"gates closed by {config.criterion} while training"
        if not phase.number:
            return "trained before pruning"
        said = f"pruned by {config.criterion}, round {phase.number} of {config.rounds}"
        if config.rewind == "weights":
            return f"{said}, rewound to the weights of the start"
        return f"{said}, corrected by least squares" if config.recovery and config.removes_units else said

    def _shape(self) -> str:
        """Return what is left of the model, for the report."""
        layers = [
            layer for stack in family_of(self.model).structure(self.model.config).stacks.values() for layer in stack
        ]
        heads = ", ".join(str(sum(len(kept) for kept in layer.heads.values())) for layer in layers)
        neurons = ", ".join(str(sum(layer.neurons.values())) for layer in layers)
        left = f"{len(layers)} layers are left, with {heads} heads and {neurons} neurons"
        zeros = zero_fraction(self.model)
        return f"{left}; {zeros:.1%} of their connections are zero" if self.pruning.removes_connections else left

    def _from_teacher(self) -> str:
        return ""


def last_complete_phase(folder: Path) -> int | None:
    """Return the number of the last phase whose folder is whole, or None."""
    numbers = [int(path.parent.name.rpartition("-")[2]) for path in folder.glob("_round-*/config.json")]
    return max(numbers, default=None)
