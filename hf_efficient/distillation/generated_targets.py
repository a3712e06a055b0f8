"""What the teacher writes, in the place of the targets that people wrote."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from hf_efficient.distillation.teacher_cache import map_with_cache
from hf_efficient.errors import UserError


def generate_targets(
    dataset: Dataset,
    teacher: PreTrainedModel,
    targets: str = "teacher",
    num_beams: int = 1,
    max_length: int = 128,
    batch_size: int = 64,
) -> Dataset:
    """Return `dataset`, columns "input_ids" and "labels", with the teacher's own texts for labels.

    | targets | returns |
    | --- | --- |
    | teacher | as many rows, with what the teacher writes |
    | both | twice as many: the rows as they are, then those with what the teacher writes |

    The texts lie on disk and are found again by a fingerprint of teacher, data and settings.

    Source: Kim and Rush 2016, "Sequence-Level Knowledge Distillation", section 3.2.

    Raises ValueError: the teacher does not write.
    """
    if not (teacher.can_generate() and teacher.config.is_encoder_decoder):
        raise UserError(
            f"targets={targets!r} trains on what the teacher writes, {type(teacher).__name__} writes nothing: leave "
            "it out"
        )
    special = {teacher.config.pad_token_id, teacher.config.decoder_start_token_id}
    end = teacher.generation_config.eos_token_id

    def write(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = [torch.tensor(ids) for ids in rows["input_ids"]]
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        found: list[Any] = [None] * len(texts)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            lengths = torch.tensor([len(texts[index]) for index in chosen])
            ids = pad_sequence(
                [texts[index] for index in chosen], batch_first=True, padding_value=teacher.config.pad_token_id
            )
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            written = teacher.generate(
                input_ids=ids.to(teacher.device),
                attention_mask=mask.to(teacher.device),
                max_length=max_length,
                num_beams=num_beams,
                do_sample=False,
            )
            for index, tokens in zip(chosen, written.tolist(), strict=True):
                found[index] = _trim_generated(tokens[1:], special, end)
        return {"labels": found}

    # What people wrote is not looked at: other texts of theirs change nothing.
    said = map_with_cache(dataset, write, [teacher], ("written", num_beams, max_length))
    return said if targets == "teacher" else concatenate_datasets([dataset, said])


def _trim_generated(tokens: list[int], special: set[int | None], end: Any) -> list[int]:
    """Return what was written up to its end, without what fills up a batch."""
    ends = {end} if isinstance(end, int) else set(end or ())
    last = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return [token for token in tokens[:last] if token not in special] + tokens[last : last + 1]
