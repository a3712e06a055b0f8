"""Run by two processes, or by one: prunes, distils and trains, and writes from each what it ended with."""

import hashlib
import json
import os
import sys

import accelerate.state
import torch
from accelerate import DistributedType
from trainers import build, classifier, losses, rows, t5
from transformers import TrainerCallback

from hf_efficient import DistillationConfig, PruningConfig, QuantizationConfig
from hf_efficient.distillation.students import student_from_config
from hf_efficient.models import family_of


class Projections(TrainerCallback):
    """Remembers the learned projections, which the trainer lets go of with its teacher."""

    weights = torch.zeros(0)

    def on_train_end(self, args, state, control, **kwargs):
        distiller = self.trainer.distillation_training.distiller
        parameters = [] if distiller is None else distiller.projections.parameters()
        self.weights = torch.cat([weight.detach().flatten() for weight in parameters] or [self.weights])


def failing(step, number):
    """Returns the training step, which fails the `number`th time."""
    left = [number]

    def run(*args, **kwargs):
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("this process has had enough")
        return step(*args, **kwargs)

    return run


def share_out_on_a_processor():
    """Lets accelerate shard models on a processor: torch can, but there accelerate leaves `fsdp` out in silence."""
    init = accelerate.state.AcceleratorState.__init__

    def with_plugin(self, *args, fsdp_plugin=None, **kwargs):
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
        if self.__dict__.get("fsdp_plugin") is not None:
            self.distributed_type = DistributedType.FSDP

    accelerate.state.AcceleratorState.__init__ = with_plugin


class Sharded(TrainerCallback):
    """Remembers of which class the weights were while they were trained."""

    weights = ""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights = type(next(model.parameters()).data).__name__


def digest(weights):
    return hashlib.sha256(weights.numpy().tobytes()).hexdigest()


def main(folder: str, changes: dict) -> None:
    teaching, narrow = changes.pop("teaching", {}), changes.pop("narrow", None)
    batch, fails, streams = changes.pop("batch", 4), changes.pop("fails", None), changes.pop("streams", False)
    names = ("shards", "saves", "resume", "writes")
    shards, saves, resume, writes = (changes.pop(name, False) for name in names)
    if shards:
        share_out_on_a_processor()
    techniques = {} if teaching is None else {"distillation": DistillationConfig(**teaching)}
    if rounding := changes.pop("rounding", None):
        techniques["quantization"] = QuantizationConfig(rounding, aware=True, compile=False)
    if changes:
        techniques["pruning"] = PruningConfig(scoring_samples=16, multiple_of=4, **changes)
    teacher = t5() if writes else classifier()
    if narrow:
        techniques["teacher"] = teacher
    trainer = build(
        folder,
        model=student_from_config(teacher, narrow) if narrow else teacher,
        data=rows().to_iterable_dataset() if streams else None,
        techniques=techniques,
        num_train_epochs=2,
        # Each process reads on its own: batches of several lengths cannot be dealt out by one.
        **({"max_steps": 8, "accelerator_config": {"dispatch_batches": False}} if streams else {}),
        **({"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": ["BertLayer"]}} if shards else {}),
        **({"save_strategy": "epoch"} if saves else {}),
        per_device_train_batch_size=batch,
        learning_rate=1e-2,
    )
    rank = int(os.environ.get("RANK", 0))
    if fails and rank == 1:
        trainer.training_step = failing(trainer.training_step, fails)
    projections = Projections()
    projections.trainer = trainer
    sharded = Sharded()
    trainer.add_callback(projections)
    trainer.add_callback(sharded)
    trainer.train(resume_from_checkpoint=resume)
    whole = "quantized" if "quantization" in techniques else "student" if techniques else "model"
    values = [weight.dequantize() for weight in trainer.model.state_dict().values()]
    weights = torch.cat([weight.flatten() for weight in values])
    found = {
        "rank": rank,
        "losses": losses(trainer),
        "structure": family_of(trainer.model).structure(trainer.model.config).to_dict(),
        "weights": digest(weights),
        "norms": [float(weight.float().norm()) for weight in values],
        "projections": (len(projections.weights), digest(projections.weights)),
        "trained as": sharded.weights,
        "zeros": int((weights == 0).sum()),
        "accuracy": trainer.report.row(whole).metrics["accuracy"],
    }
    with open(f"{folder}/found-{found['rank']}.json", "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
