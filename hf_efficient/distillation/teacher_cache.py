"""The teacher's outputs for every training example, computed once and stored as columns of the dataset."""

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
from hf_efficient.distillation.teacher import INPUTS, PREFIX, Teacher, predicts_tokens
from hf_efficient.errors import UserError

TOP_TOKENS = "teacher_top_tokens"
MAX_CACHED_CLASSES = 1000
MAP_BATCH_SIZE = 2048

Collator = Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]
Rows = dict[str, list[Any]]


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
    """Return `dataset` with the teacher's outputs for every example, so that training does not run the teacher.

    | argument | meaning |
    | --- | --- |
    | collator | makes a batch of tensors from examples, as in training |
    | columns | names of the columns that a batch is made of |
    | top_k | number of the highest logits to store per token; None: all |
    | pads_left | the collator pads on the left |
    | returns | columns such as "teacher_logits": (classes,) per example, or (tokens, classes) |

    With `top_k`, the highest logits are stored in descending order, and one more that stands for all other classes: at
    the given temperature it has the sum of their probabilities. The same is done to the student's logits in training,
    so the divergence is the exact one between two distributions over k + 1 events.

    The columns are stored on disk and memory-mapped. A later call with the same teacher, data and settings finds them
    by their fingerprint.

    Raises UserError if the teacher has no task head, if masks are drawn in every epoch, or if there is too much to
    store.
    """
    head = _check_cacheable(teacher, collator, top_k)
    input_columns = [name for name in columns if name in dataset.column_names]

    def predict(rows: Rows) -> Rows:
        examples = [
            {name: rows[name][index] for name in input_columns} for index in range(len(rows[input_columns[0]]))
        ]
        by_length = sorted(range(len(examples)), key=lambda index: len(examples[index].get("input_ids", ())))
        outputs: Rows = {}
        for start in range(0, len(by_length), batch_size):
            indices = by_length[start : start + batch_size]
            batch = {
                name: value.to(teacher.model.device)
                for name, value in collator([examples[index] for index in indices]).items()
                if torch.is_tensor(value)
            }
            for name, values in _outputs_to_cache(teacher, head, batch, top_k, temperature, pads_left).items():
                column = outputs.setdefault(name, [None] * len(examples))
                texts = len(values) // len(indices)  # a row of sentence similarity may have two
                if texts > 1:
                    values = list(torch.stack(values).view(len(indices), texts, -1))
                for index, value in zip(indices, values, strict=True):
                    column[index] = value.cpu().numpy()
        return outputs

    settings = (input_columns, teacher.token_ids, teacher.weights, top_k, temperature if top_k else None, pads_left)
    return map_with_cache(dataset, predict, list(teacher.models), settings)


def map_with_cache(
    dataset: Dataset, function: Callable[[Rows], Rows], models: Sequence[PreTrainedModel], settings: Sequence[Any]
) -> Dataset:
    """Return `dataset` with the columns that `function` computes from its rows, stored on disk.

    They are found again by a fingerprint of the data, the weights and configs of `models`, and `settings`.
    """
    fingerprint = Hasher.hash([dataset._fingerprint, [_hash_model(model) for model in models], *settings])
    file = None
    if not dataset.cache_files:  # a dataset in memory: `datasets` would keep the result in memory too
        folder = Path(datasets.config.HF_DATASETS_CACHE) / "teacher_outputs"
        folder.mkdir(parents=True, exist_ok=True)
        file = str(folder / f"cache-{fingerprint}.arrow")
    return dataset.map(
        function,
        batched=True,
        batch_size=MAP_BATCH_SIZE,
        new_fingerprint=fingerprint,
        cache_file_name=file,
        desc="running the teacher",
    )


def _check_cacheable(teacher: Teacher, collator: Collator, top_k: int | None) -> HeadOutputs:
    head = teacher.head_outputs
    if head is None:
        raise UserError(
            f"{type(teacher.model).__name__} has no task head, so it has no outputs to cache: leave out cache_teacher"
        )
    if getattr(collator, "mlm", False):
        raise UserError(
            "cache_teacher stores one output per example, but the masked tokens are drawn in every epoch: leave it out"
        )
    classes = teacher.model.config.vocab_size if predicts_tokens(teacher.model) else teacher.model.config.num_labels
    if top_k is None and head.per_token and classes > MAX_CACHED_CLASSES:
        raise UserError(
            f"cache_teacher would store {classes} numbers for every token: give cache_top_k=64 to store the highest "
            "logits and the sum of the others"
        )
    if top_k is not None and (not head.per_token or head.detects_replaced_tokens or top_k >= classes - 1):
        raise UserError(
            f"cache_top_k={top_k} is for many classes per token, but {type(teacher.model).__name__} has {classes} "
            f"classes per {'token' if head.per_token else 'example'}: leave it out"
        )
    return head


def _outputs_to_cache(
    teacher: Teacher,
    head: HeadOutputs,
    batch: Mapping[str, torch.Tensor],
    top_k: int | None,
    temperature: float,
    pads_left: bool,
) -> dict[str, list[torch.Tensor]]:
    """Return, by column, a tensor for each example: one row, or one row per token without padding at the end."""
    outputs, _ = teacher.predict(batch)
    if top_k is not None:
        logits = outputs.pop("logits").float()
        outputs[TOP_TOKENS] = logits.topk(top_k).indices
        outputs["logits"] = merge_remaining_classes(logits, outputs[TOP_TOKENS], temperature)
    columns = {
        name if name == TOP_TOKENS else PREFIX + name: value if name == TOP_TOKENS else value.float()
        for name, value in outputs.items()
    }
    if not head.has_token_axis:
        return {name: list(value) for name, value in columns.items()}
    mask = head.padding_mask(batch)
    if pads_left:
        mask = mask.flip(-1)
    lengths = [int(row.nonzero().max()) + 1 if row.any() else 0 for row in mask]
    return {
        name: [
            row[len(row) - length :] if pads_left else row[:length] for row, length in zip(value, lengths, strict=True)
        ]
        for name, value in columns.items()
    }


def merge_remaining_classes(logits: torch.Tensor, top: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the logits of the classes `top`, and one that stands for all other classes at that temperature.

    | argument | shape |
    | --- | --- |
    | logits | (..., classes) |
    | top | (..., k) indices of classes |
    | returns | (..., k + 1); their softmax at the temperature is that of all classes, with the others summed up |
    """
    others = logits.float().scatter(-1, top, float("-inf"))
    merged = temperature * (others / temperature).logsumexp(-1, keepdim=True)
    return torch.cat([logits.float().gather(-1, top), merged], dim=-1)


def read_cached_outputs(
    inputs: Mapping[str, torch.Tensor],
    student_outputs: Mapping[str, torch.Tensor],
    names: Sequence[str],
    temperature: float,
) -> tuple[Mapping[str, torch.Tensor], dict[str, torch.Tensor]] | None:
    """Return the outputs of student and teacher to compare if the batch has cached outputs; otherwise None.

    If only the highest logits are cached, the student's other logits are merged as the teacher's are.
    """
    if any(PREFIX + name not in inputs for name in names):
        return None
    teacher_outputs = {name: inputs[PREFIX + name] for name in names}
    if TOP_TOKENS not in inputs:
        return student_outputs, teacher_outputs
    merged = merge_remaining_classes(student_outputs["logits"], inputs[TOP_TOKENS], temperature)
    return {"logits": merged}, teacher_outputs


def drop_teacher_columns(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch without the teacher's cached outputs, and without texts in its own tokens."""
    return {name: value for name, value in inputs.items() if not name.startswith(PREFIX)}


def _is_output(name: str) -> bool:
    """Whether a column holds outputs of the teacher, and not texts in its own tokens."""
    return name.startswith(PREFIX) and name.removeprefix(PREFIX) not in INPUTS


class TeacherOutputsCollator:
    """Makes the batches of `collator`, with the teacher's cached outputs.

    | argument | meaning |
    | --- | --- |
    | has_token_axis | the outputs have a row per token, and are padded to the length of the batch |
    | of_labels | these tokens are those of the labels, not of the inputs |
    | pads_left | the collator pads on the left |
    """

    def __init__(
        self, collator: Collator, has_token_axis: bool, of_labels: bool = False, pads_left: bool = False
    ) -> None:
        self.collator, self.has_token_axis, self.pads_left = collator, has_token_axis, pads_left
        self.token_column = "labels" if of_labels else "input_ids"

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch; cached outputs are (rows, classes), or (rows, tokens) and (rows, tokens, classes).

        Those of rows with several texts are (rows * texts, size), as the texts in the batch.
        """
        names = [name for name in examples[0] if _is_output(name)]
        without = [{name: value for name, value in each.items() if not _is_output(name)} for each in examples]
        batch = dict(self.collator(without))
        for name in names:
            rows = [torch.as_tensor(example[name]) for example in examples]
            if self.has_token_axis:
                batch[name] = self._pad(rows, batch[self.token_column].shape[-1])
            else:
                batch[name] = torch.stack(rows).flatten(0, -2)
        return batch

    def _pad(self, rows: list[torch.Tensor], length: int) -> torch.Tensor:
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
