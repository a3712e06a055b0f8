"""What the teacher says of every training example, computed once into the data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import PreTrainedModel

from hf_efficient.distillation.head_outputs import HeadOutputs
from hf_efficient.distillation.teacher import Teacher, predicts_tokens
from hf_efficient.errors import UserError

PREFIX = "teacher_"
TOP_TOKENS = "teacher_top_tokens"
MAX_CACHED_CLASSES = 1000
MAP_BATCH_SIZE = 2048

Collator = Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]


def cache_teacher_outputs(
    dataset: Dataset,
    teacher: Teacher,
    collator: Collator,
    columns: Sequence[str],
    top_k: int | None = None,
    temperature: float = 1.0,
    pads_left: bool = False,
    batch_size: int = 64,
) -> Dataset:
    """Return `dataset` with the teacher's answers to every example, which training then needs no teacher for.

    | argument | meaning |
    | --- | --- |
    | collator | makes a batch of tensors of examples, as for training |
    | columns | those that a batch is made of |
    | top_k | keep so many of the most likely answers a token; None: all |
    | pads_left | texts are padded on the left |
    | returns | columns "teacher_logits" and the like, (classes,) an example, or a row a token |

    With `top_k` a row is the logits of the most likely answers, in descending order, and one more for all the others,
    whose share of the softened distribution it has: both distributions keep their sum of 1, so that the divergence
    from a student, whose others are summed up likewise, is exact for those k + 1 events. The answers lie on disk, are
    mapped into memory, and are found again by a fingerprint of teacher, data and settings.

    Raises ValueError: the teacher answers nothing, masks are drawn anew in every epoch, or there is too much to keep.
    """
    answers = _check(teacher, collator, top_k)
    known = [name for name in columns if name in dataset.column_names]

    def answer(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        examples = [{name: rows[name][index] for name in known} for index in range(len(rows[known[0]]))]
        order = sorted(range(len(examples)), key=lambda index: len(examples[index].get("input_ids", ())))
        found: dict[str, list[Any]] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = {
                name: value.to(teacher.model.device)
                for name, value in collator([examples[index] for index in chosen]).items()
                if torch.is_tensor(value)
            }
            for name, values in _outputs_to_cache(teacher, answers, batch, top_k, temperature, pads_left).items():
                rows_of = found.setdefault(name, [None] * len(examples))
                for index, row in zip(chosen, values, strict=True):
                    rows_of[index] = row.cpu().numpy()
        return found

    settings = (known, teacher.token_ids, teacher.weights, top_k, temperature if top_k else None, pads_left)
    return map_with_cache(dataset, answer, list(teacher.models), settings)


def map_with_cache(
    dataset: Dataset,
    ask: Callable[[dict[str, list[Any]]], dict[str, list[Any]]],
    models: Sequence[PreTrainedModel],
    settings: Sequence[Any],
) -> Dataset:
    """Return `dataset` with the columns that `ask` makes of its rows by `models` and `settings`, kept on disk."""
    fingerprint = Hasher.hash([dataset._fingerprint, [_hash_model(model) for model in models], *settings])
    file = None
    if not dataset.cache_files:  # `datasets` would keep in memory what comes of data in memory
        folder = Path(datasets.config.HF_DATASETS_CACHE) / "teacher_answers"
        folder.mkdir(parents=True, exist_ok=True)
        file = str(folder / f"cache-{fingerprint}.arrow")
    return dataset.map(
        ask,
        batched=True,
        batch_size=MAP_BATCH_SIZE,
        new_fingerprint=fingerprint,
        cache_file_name=file,
        desc="asking the teacher once",
    )


def _check(teacher: Teacher, collator: Collator, top_k: int | None) -> HeadOutputs:
    answers = teacher.head_outputs
    if answers is None:
        raise UserError(f"{type(teacher.model).__name__} has no task head: there are no answers to keep")
    if getattr(collator, "mlm", False):
        raise UserError(
            "cache_teacher keeps one answer an example, but the tokens to guess are drawn anew in every epoch: leave "
            "it out"
        )
    classes = teacher.model.config.vocab_size if predicts_tokens(teacher.model) else teacher.model.config.num_labels
    if top_k is None and answers.per_token and classes > MAX_CACHED_CLASSES:
        raise UserError(
            f"cache_teacher would keep {classes} numbers for every token: give cache_top_k=64 to keep the most likely "
            "answers and the sum of the rest"
        )
    if top_k is not None and (not answers.per_token or answers.detects_replaced_tokens or top_k >= classes - 1):
        raise UserError(
            f"cache_top_k={top_k} keeps the most likely of many answers a token, {type(teacher.model).__name__} has "
            f"{classes} answers{'' if answers.per_token else ' an example'}: leave it out"
        )
    return answers


def _outputs_to_cache(
    teacher: Teacher,
    answers: HeadOutputs,
    batch: Mapping[str, torch.Tensor],
    top_k: int | None,
    temperature: float,
    pads_left: bool,
) -> dict[str, list[torch.Tensor]]:
    """Return, by column, a tensor for each example: one row, or as many as it has tokens that may count."""
    found, _ = teacher.predict(batch)
    if top_k is not None:
        logits = found.pop("logits").float()
        found[TOP_TOKENS] = logits.topk(top_k).indices
        found["logits"] = merge_remaining_classes(logits, found[TOP_TOKENS], temperature)
    columns = {name if name == TOP_TOKENS else PREFIX + name: value for name, value in found.items()}
    columns = {name: value if name == TOP_TOKENS else value.float() for name, value in columns.items()}
    if not answers.has_token_axis:
        return {name: list(value) for name, value in columns.items()}
    there = answers.padding_mask(batch)
    if pads_left:
        there = there.flip(-1)
    lengths = [int(row.nonzero().max()) + 1 if row.any() else 0 for row in there]  # padding at the end is not kept
    return {
        name: [row[len(row) - length :] if pads_left else row[:length] for row, length in zip(value, lengths, strict=True)]
        for name, value in columns.items()
    }


def merge_remaining_classes(logits: torch.Tensor, top: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the logits of the classes `top`, and one for all others together at that temperature.

    | argument | shape |
    | --- | --- |
    | logits | (..., classes) |
    | top | (..., k) |
    | returns | (..., k + 1), whose softmax at the temperature is that of all classes, the others summed up |
    """
    others = logits.float().scatter(-1, top, float("-inf"))
    rest = temperature * (others / temperature).logsumexp(-1, keepdim=True)
    return torch.cat([logits.float().gather(-1, top), rest], dim=-1)


def read_cached_outputs(
    inputs: Mapping[str, torch.Tensor], student: Mapping[str, torch.Tensor], names: Sequence[str], temperature: float
) -> tuple[Mapping[str, torch.Tensor], dict[str, torch.Tensor]] | None:
    """Return what to compare of student and teacher when the batch holds the teacher's answers; else None."""
    if any(PREFIX + name not in inputs for name in names):
        return None
    theirs = {name: inputs[PREFIX + name] for name in names}
    if TOP_TOKENS not in inputs:
        return student, theirs
    return {"logits": merge_remaining_classes(student["logits"], inputs[TOP_TOKENS], temperature)}, theirs


def drop_teacher_columns(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch without the teacher's cached answers, as a model takes it."""
    return {name: value for name, value in inputs.items() if not name.startswith(PREFIX)}


class TeacherOutputsCollator:
    """Makes batches as `collator` does, with the teacher's cached answers beside.

    | argument | meaning |
    | --- | --- |
    | has_token_axis | answers have a row a token, and are padded to as many as the batch has |
    | of_labels | those tokens are the labels, not the inputs |
    | pads_left | texts are padded on the left |
    """

    def __init__(self, collator: Collator, has_token_axis: bool, of_labels: bool = False, pads_left: bool = False) -> None:
        self.collator, self.has_token_axis, self.pads_left = collator, has_token_axis, pads_left
        self.tokens = "labels" if of_labels else "input_ids"

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch; answers are (rows, classes), or (rows, tokens) and (rows, tokens, classes)."""
        names = [name for name in examples[0] if name.startswith(PREFIX)]
        batch = dict(self.collator([drop_teacher_columns(example) for example in examples]))
        for name in names:
            rows = [torch.as_tensor(example[name]) for example in examples]
            batch[name] = self._padded(rows, batch[self.tokens].shape[-1]) if self.has_token_axis else torch.stack(rows)
        return batch

    def _padded(self, rows: list[torch.Tensor], length: int) -> torch.Tensor:
        padded = rows[0].new_zeros(len(rows), length, *rows[0].shape[1:])
        for index, row in enumerate(rows):
            padded[index, length - len(row) if self.pads_left else 0 :][: len(row)] = row
        return padded


def _hash_model(model: PreTrainedModel) -> str:
    """Return a hash of the class, config and weights of `model`."""
    digest = hashlib.sha256(f"{type(model).__name__}{model.config.to_json_string()}".encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
