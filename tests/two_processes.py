"""Run by two processes: prunes and trains, and prints from each what it ended with."""

import hashlib
import json
import os
import sys

import torch
from trainers import build

from hf_efficient import DistillationConfig, PruningConfig
from hf_efficient.models import family_of


def main(folder: str, changes: dict) -> None:
    trainer = build(
        folder,
        techniques={
            "pruning": PruningConfig(scoring_samples=16, multiple_of=4, **changes),
            "distillation": DistillationConfig(),
        },
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
    )
    trainer.train()
    weights = torch.cat([weight.flatten() for weight in trainer.model.state_dict().values()])
    found = {
        "rank": int(os.environ["RANK"]),
        "structure": family_of(trainer.model).structure(trainer.model.config).to_dict(),
        "weights": hashlib.sha256(weights.numpy().tobytes()).hexdigest(),
        "accuracy": trainer.report.row("student").metrics["accuracy"],
    }
    with open(f"{folder}/found-{found['rank']}.json", "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
