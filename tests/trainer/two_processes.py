"""Run by two processes: trains with several settings, one after the other, and writes the results of each.

Usage: two_processes.py FOLDER JSON, with JSON from the name of a run to its settings. Each process writes
FOLDER/<name>/result-<rank>.json, with the error alone if the run was refused. Of the settings, those that `train` does
not name are fields of `PruningConfig`.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import accelerate.state
import torch
from accelerate import DistributedType
from trainers import build, classifier, collate, losses, rows, stop, t5, without_report
from transformers import TrainerCallback

from hf_efficient import DistillationConfig, PruningConfig, QuantizationConfig
from hf_efficient.distillation.students import student_from_config
from hf_efficient.errors import UserError
from hf_efficient.models import family_of


class TrainingRecorder(TrainerCallback):
    """Records the class of the sharded weights, and the projections, which the trainer drops with its distiller."""

    def __init__(self, distillation_training):
        self.distillation_training = distillation_training
        self.weight_class, self.projections = "", torch.zeros(0)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weight_class = type(next(model.parameters()).data).__name__

    def on_train_end(self, args, state, control, **kwargs):
        parameters = [weight.detach().flatten() for weight in self.distillation_training.projection_parameters()]
        self.projections = torch.cat([torch.zeros(0), *parameters])


def fail_at(training_step, number):
    """Return a training step that fails when it is called for the `number`th time."""
    calls = iter(range(1, 10_000))

    def step(*args, **kwargs):
        if next(calls) == number:
            raise RuntimeError("this process has failed on purpose")
        return training_step(*args, **kwargs)

    return step


def let_accelerate_shard_on_cpus():
    """Make accelerate use FSDP on CPUs too: torch supports it, but accelerate ignores `fsdp` there."""
    init = accelerate.state.AcceleratorState.__init__

    def init_with_plugin(self, *args, fsdp_plugin=None, **kwargs):
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
        if self.__dict__.get("fsdp_plugin") is not None:
            self.distributed_type = DistributedType.FSDP

    accelerate.state.AcceleratorState.__init__ = init_with_plugin


def hash_weights(weights):
    return hashlib.sha256(weights.numpy().tobytes()).hexdigest()


def prediction_error(trainer):
    """Return how far predictions on a number of rows that no batch size divides are from those of each row alone."""
    data = rows(13, seed=4)
    predictions = torch.as_tensor(trainer.predict(data).predictions)
    with torch.inference_mode():
        alone = torch.cat([trainer.model(**collate([row])).logits for row in data])
    assert predictions.shape == alone.shape
    return float((predictions - alone).abs().max())


def build_run(
    folder,
    distillation=None,
    student_sizes=None,
    fake_quantization=None,
    generates=False,
    batch_size=4,
    streams=False,
    shards=False,
    saves=False,
    **pruning,
):
    """Build a trainer of two epochs."""
    techniques = {} if distillation is None else {"distillation": DistillationConfig(**distillation)}
    if fake_quantization:
        techniques["quantization"] = QuantizationConfig(fake_quantization, aware=True, compile=False)
    if pruning:
        techniques["pruning"] = PruningConfig(scoring_samples=16, multiple_of=4, **pruning)
    model = t5() if generates else classifier()
    if student_sizes:
        techniques["teacher"] = model
        model = student_from_config(model, student_sizes)
    changes = {"num_train_epochs": 2, "per_device_train_batch_size": batch_size, "learning_rate": 1e-2}
    if streams:  # each process reads by itself: one process cannot distribute batches of different lengths
        changes |= {"max_steps": 8, "accelerator_config": {"dispatch_batches": False}}
    if shards:
        changes |= {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": ["BertLayer"]}}
    if saves:
        changes |= {"save_strategy": "epoch"}
    data = rows().to_iterable_dataset() if streams else None
    return without_report(build(folder, model=model, data=data, techniques=techniques, **changes))


def train(folder, resumes=False, fails_at=None, stops_at=None, **settings):
    """Train and return the result.

    The second process fails at the step `fails_at`, if it is given. All processes stop at `stops_at`, and resume.
    """
    rank = int(os.environ.get("RANK", 0))
    if stops_at is not None:
        stop(build_run(folder, **settings), stops_at)
    checkpoint = sorted(path.name for path in Path(folder).rglob("checkpoint-4/*"))
    trainer = build_run(folder, **settings)
    if fails_at is not None and rank == 1:
        trainer.training_step = fail_at(trainer.training_step, fails_at)
    recorder = TrainingRecorder(trainer.distillation_training)
    trainer.add_callback(recorder)
    trainer.train(resume_from_checkpoint=resumes or stops_at is not None)
    weights = [weight.dequantize() for weight in trainer.model.state_dict().values()]
    all_weights = torch.cat([weight.flatten() for weight in weights])
    return {
        "checkpoint": checkpoint,
        "losses": losses(trainer),
        "structure": family_of(trainer.model).structure(trainer.model.config).to_dict(),
        "weights": hash_weights(all_weights),
        "norms": [float(weight.float().norm()) for weight in weights],
        "projections": (len(recorder.projections), hash_weights(recorder.projections)),
        "weight class": recorder.weight_class,
        "zeros": int((all_weights == 0).sum()),
        "prediction error": prediction_error(trainer),
        "accuracy": trainer.evaluator.evaluate("student", trainer.model)["accuracy"],
    }


def main(folder: str, runs: dict) -> None:
    if any(settings.get("shards") for settings in runs.values()):
        let_accelerate_shard_on_cpus()
    for name, settings in runs.items():
        path = Path(folder) / name
        path.mkdir(exist_ok=True)
        try:
            result = train(path, **settings)
        except UserError as error:
            result = {"error": str(error)}
        (path / f"result-{os.environ['RANK']}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
