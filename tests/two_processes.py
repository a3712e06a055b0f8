"""Run by two processes, or by one: prunes, distils and trains, and writes from each what it ended with."""

import hashlib
import json
import os
import sys

import torch
from trainers import build, classifier, losses, rows
from transformers import TrainerCallback

from hf_efficient import DistillationConfig, PruningConfig, QuantizationConfig
from hf_efficient.distillation.layers import student_of_config
from hf_efficient.models import family_of


class Projections(TrainerCallback):
    """Remembers the learned projections, which the trainer lets go of with its teacher."""

    weights = torch.zeros(0)

    def on_train_end(self, args, state, control, **kwargs):
        distiller = self.trainer.distiller
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


def digest(weights):
    return hashlib.sha256(weights.numpy().tobytes()).hexdigest()


def main(folder: str, changes: dict) -> None:
    teaching, narrow = changes.pop("teaching", {}), changes.pop("narrow", None)
    batch, fails, streams = changes.pop("batch", 4), changes.pop("fails", None), changes.pop("streams", False)
    techniques = {} if teaching is None else {"distillation": DistillationConfig(**teaching)}
    if rounding := changes.pop("rounding", None):
        techniques["quantization"] = QuantizationConfig(rounding, aware=True, compile=False)
    if changes:
        techniques["pruning"] = PruningConfig(scoring_samples=16, multiple_of=4, **changes)
    teacher = classifier()
    if narrow:
        techniques["teacher"] = teacher
    trainer = build(
        folder,
        model=student_of_config(teacher, narrow) if narrow else teacher,
        data=rows().to_iterable_dataset() if streams else None,
        techniques=techniques,
        num_train_epochs=2,
        # Each process reads on its own: batches of several lengths cannot be dealt out by one.
        **({"max_steps": 8, "accelerator_config": {"dispatch_batches": False}} if streams else {}),
        per_device_train_batch_size=batch,
        learning_rate=1e-2,
    )
    rank = int(os.environ.get("RANK", 0))
    if fails and rank == 1:
        trainer.training_step = failing(trainer.training_step, fails)
    projections = Projections()
    projections.trainer = trainer
    trainer.add_callback(projections)
    trainer.train()
    whole = "quantized" if "quantization" in techniques else "student" if techniques else "model"
    found = {
        "rank": rank,
        "losses": losses(trainer),
        "structure": family_of(trainer.model).structure(trainer.model.config).to_dict(),
        "weights": digest(torch.cat([w.dequantize().flatten() for w in trainer.model.state_dict().values()])),
        "projections": (len(projections.weights), digest(projections.weights)),
        "accuracy": trainer.report.row(whole).metrics["accuracy"],
    }
    with open(f"{folder}/found-{found['rank']}.json", "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
