"""What the teacher says of every training example, computed once into the data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import PreTrainedModel

from hf_efficient.distillation.distiller import TEACHER_LOGITS, Distiller

CHUNK = 2048


def cache_teacher_logits(
    dataset: Dataset,
    distiller: Distiller,
    collate: Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]],
    columns: list[str],
    batch_size: int = 64,
) -> Dataset:
    """Returns `dataset` with the column "teacher_logits", which training then needs no teacher for.

    | argument | meaning |
    | --- | --- |
    | collate | makes a batch of tensors of examples, as for training |
    | columns | those that the teacher reads |
    | returns | the logits of each example, (classes,), on disk, found again by a fingerprint of teacher and data |

    Raises ValueError: the teacher answers with logits for every token, which are too large to keep.
    """
    teacher: PreTrainedModel = distiller.teacher
    known = [name for name in columns if name in dataset.column_names and "label" not in name]

    def answer(rows: dict[str, list[Any]]) -> dict[str, list[list[float]]]:
        examples = [{name: rows[name][index] for name in known} for index in range(len(rows[known[0]]))]
        order = sorted(range(len(examples)), key=lambda index: len(examples[index]["input_ids"]))
        found: list[list[float]] = [[]] * len(examples)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = {name: value.to(teacher.device) for name, value in collate([examples[i] for i in chosen]).items()}
            logits = distiller.ask(batch).float().cpu()
            if logits.dim() != 2:
                raise ValueError(
                    f"cache_teacher keeps one row of logits an example, {type(teacher).__name__} has "
                    f"{logits.dim() - 1} dimensions of them: leave it out"
                )
            for index, row in zip(chosen, logits.tolist(), strict=True):
                found[index] = row
        return {TEACHER_LOGITS: found}

    fingerprint = Hasher.hash([dataset._fingerprint, _digest(teacher), known, distiller.token_ids])
    return dataset.map(
        answer, batched=True, batch_size=CHUNK, new_fingerprint=fingerprint, desc="asking the teacher once"
    )


def _digest(model: PreTrainedModel) -> str:
    """Returns a hash of the class, config and weights of `model`."""
    digest = hashlib.sha256(f"{type(model).__name__}{model.config.to_json_string()}".encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
