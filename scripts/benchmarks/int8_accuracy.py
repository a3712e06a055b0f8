"""What int8 changes beside the latency: predictions, their dependence on the batch, and resident memory.

`int8_forms.py` calls these functions; as a script the module measures one model in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sst2 import Results, Sst2
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from hf_efficient.data.length_order import restore_order, sort_by_length
from hf_efficient.measurement.comparison import model_inputs
from hf_efficient.measurement.cost import folder_bytes
from hf_efficient.measurement.memory import MALLOC_SETTINGS, PROCESS_STATUS
from hf_efficient.models import int8_kernels

TRAINING_TEXTS, TEXTS_IN_BATCHES, BATCH_SIZE = 3000, 200, 20
NATIVE_FORMS = ("int8_static", "int8_dynamic")
NO_KERNELS = ", inputs in float"


@torch.inference_mode()
def logits(model: Any, sst2: Sst2, rows: Any, batch_size: int, sort: bool = True) -> torch.Tensor:
    """Return the logits (rows, 2) of `rows`, computed in batches of similar length if they are sorted."""
    columns = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows["input_ids"]]
    order = sort_by_length(columns) if sort else None
    ordered = columns if order is None else [columns[index] for index in order]
    batches = [sst2.collate(ordered[start : start + batch_size]) for start in range(0, len(ordered), batch_size)]
    outputs = torch.cat([model(**batch).logits.float() for batch in batches])
    return outputs if order is None else torch.from_numpy(restore_order(outputs.numpy(), order))


@contextmanager
def without_kernels() -> Iterator[None]:
    """Let int8 models that are loaded and used here compute with their inputs in float, as on a GPU."""
    select_kernel = int8_kernels.select_kernel
    int8_kernels.select_kernel = lambda: None  # type: ignore[assignment]
    try:
        yield
    finally:
        int8_kernels.select_kernel = select_kernel


def compare(outputs: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """Return the fraction of equal predictions, and the root mean square of the difference of the logits' margin."""
    margins, expected_margins = (values[:, 1] - values[:, 0] for values in (outputs, expected))
    return {
        "agreement": float((outputs.argmax(-1) == expected.argmax(-1)).float().mean()),
        "margin_noise": float((margins - expected_margins).square().mean().sqrt()),
    }


def measure_accuracy(results: Results, sst2: Sst2, forms: Mapping[str, Any], calibration_texts: int) -> None:
    """Measure the forms of `minilm-sst2` that have no results yet."""
    evaluation = sst2.data["evaluation"]
    train = sst2.data["train"].shuffle(seed=0).select(range(calibration_texts, calibration_texts + TRAINING_TEXTS))
    labels = torch.tensor(evaluation["labels"])

    def all_logits(model: Any) -> torch.Tensor:
        return torch.cat([logits(model, sst2, rows, 32) for rows in (evaluation, train)])

    expected = all_logits(sst2.teacher())
    for name, form in forms.items():
        if f"accuracy {name}" in results:
            continue
        outputs = all_logits(form)
        texts = evaluation.select(range(TEXTS_IN_BATCHES))
        alone, in_batches = (logits(form, sst2, texts, size, sort=False) for size in (1, BATCH_SIZE))
        differences = (alone - in_batches).abs().amax(-1)
        row = {
            "accuracy": float((outputs[: len(labels)].argmax(-1) == labels).float().mean()),
            **compare(outputs, expected),
            "batch_median": float(differences.median()),
            "batch_percentile_70": float(differences.quantile(0.7)),
            "batch_largest": float(differences.max()),
        }
        if name in NATIVE_FORMS:
            with without_kernels():
                form.float()  # unpacks the weights
                in_float = all_logits(form)
            form.float()
            row |= {
                f"without_kernels_{key}": value
                for key, value in {
                    **{f"to_float_{key}": value for key, value in compare(in_float, expected).items()},
                    **compare(in_float, outputs),
                }.items()
            }
        results[f"accuracy {name}"] = row


def measure_memory(results: Results, folders: Mapping[str, Path]) -> None:
    """Measure the resident memory of saved models, each in a process of its own."""
    for name, folder in folders.items():
        if f"memory {name}" in results:
            continue
        process = subprocess.run(
            [sys.executable, __file__, str(folder)],
            env={**os.environ, **MALLOC_SETTINGS},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        results[f"memory {name}"] = {**json.loads(process.stdout.splitlines()[-1]), "file": folder_bytes(folder)}


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    line = next(line for line in PROCESS_STATUS.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@torch.inference_mode()
def main() -> None:
    """Write what the model in the given folder adds to the resident memory: loaded, and after a batch of 8 x 64."""
    config = BertConfig(num_hidden_layers=1, hidden_size=384, intermediate_size=1536, num_attention_heads=12)
    config.vocab_size = 100
    warm = BertForSequenceClassification(config).eval()
    warm(**model_inputs(warm, 8, 64))  # what torch itself keeps is not counted
    del warm
    before = resident_bytes()
    model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
    loaded = resident_bytes()
    model(**model_inputs(model, 8, 64))
    sys.stdout.write(json.dumps({"loaded": loaded - before, "used": resident_bytes() - before}) + "\n")


if __name__ == "__main__":
    main()
