"""Run by two processes: prunes, distils and trains, and prints from each what it ended with."""

import hashlib
import json
import os
import sys

import torch
from trainers import build, classifier
from transformers import TrainerCallback

from hf_efficient import DistillationConfig, PruningConfig
from hf_efficient.distillation.layers import student_of_config
from hf_efficient.models import family_of


class Projections(TrainerCallback):
    """Remembers the learned projections, which the trainer lets go of with its teacher."""

    weights = torch.zeros(0)

    def on_train_end(self, args, state, control, **kwargs):
        parameters = self.trainer.distiller.projections.parameters()
        self.weights = torch.cat([weight.detach().flatten() for weight in parameters] or [self.weights])


def digest(weights):
    return hashlib.sha256(weights.numpy().tobytes()).hexdigest()


def main(folder: str, changes: dict) -> None:
    teaching, narrow = changes.pop("teaching", {}), changes.pop("narrow", None)
    techniques = {"distillation": DistillationConfig(**teaching)}
    if changes:
        techniques["pruning"] = PruningConfig(scoring_samples=16, multiple_of=4, **changes)
    teacher = classifier()
    if narrow:
        techniques["teacher"] = teacher
    trainer = build(
        folder,
        model=student_of_config(teacher, narrow) if narrow else teacher,
        techniques=techniques,
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
    )
    projections = Projections()
    projections.trainer = trainer
    trainer.add_callback(projections)
    trainer.train()
    found = {
        "rank": int(os.environ["RANK"]),
        "structure": family_of(trainer.model).structure(trainer.model.config).to_dict(),
        "weights": digest(torch.cat([weight.flatten() for weight in trainer.model.state_dict().values()])),
        "projections": (len(projections.weights), digest(projections.weights)),
        "accuracy": trainer.report.row("student").metrics["accuracy"],
    }
    with open(f"{folder}/found-{found['rank']}.json", "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
