"""A sentence embedder made faster without labels, beside what else one could do: Spearman on STS-B, neighbours, speed.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/embedder.py [EMBEDDER] [--runs 2x "int8 alone"] [-- FLAGS]

| run | what |
| --- | --- |
| 2x, 3x, ... | `hf-efficient compress` with this target of latency: pruning, distillation, int8_static |
| int8 alone | int8_static of the embedder itself; nothing is trained |
| even layers | every second layer kept, and the same distillation: the recipe of sentence-transformers |
| static | token embeddings without a transformer, by model2vec; it must be installed |

Each but the last exports to int8 in ONNX Runtime and OpenVINO. EMBEDDER is a folder of sentence-transformers, by
default models/all-MiniLM-L6-v2 of the assets. The training texts, in out/embedder/texts.txt, are the different
sentences of STS-B (training split), SST-2, Multi30k (English) and banking77, about 116,000, without those of the test
split of STS-B, which is reported.

Results, copied from compression_report.json of each run, in results/embedder_NAME.json, with a table beside it.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from scipy.stats import spearmanr
from sst2 import ASSETS, OUT, PUBLISHED_DROPOUT, RESULTS, Results, figures_by_role, format_figure, run_compress
from transformers.utils import logging

from hf_efficient import CompressionReport
from hf_efficient.measurement.embeddings import neighbours_kept, normalize
from hf_efficient.measurement.environment import describe_environment, has_fast_bfloat16

FOLDER = OUT / "embedder"
TRAINING = (
    *("--num_train_epochs", "1", "--per_device_train_batch_size", "64", "--learning_rate", "2e-4", "--warmup_steps"),
    *("200", "--lr_scheduler_type", "cosine", "--bf16", str(has_fast_bfloat16() is True), "--save_strategy", "no"),
    *("--report_to", "none", *PUBLISHED_DROPOUT),
)
FORMS = (
    *("--max_length", "64", "--latency_batch_size", "8", "--latency_sequence_length", "64"),
    *("--scheme", "int8_static", "--export", "onnx", "openvino"),
)
RUNS = ("int8 alone", "2x", "3x", "even layers", "static")
STATIC_SIZE, STATIC_REPEATS = 256, 5


def main() -> None:
    """Write the texts, and make and measure what has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embedder", type=Path, nargs="?", default=ASSETS / "models" / "all-MiniLM-L6-v2")
    parser.add_argument("--runs", nargs="+", default=list(RUNS))
    parser.add_argument("--max_texts", type=int)
    args, flags = parser.parse_known_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    texts = sorted(set(training_texts()) - set(test_texts()))
    random.Random(0).shuffle(texts)
    (FOLDER / "texts.txt").write_text("\n".join(texts[: args.max_texts]) + "\n", encoding="utf-8")
    name = args.embedder.name.lower()
    results = Results(FOLDER / f"{name}.json")
    results["environment"] = describe_environment()
    for run in args.runs:
        if run not in results:
            results[run] = static(args.embedder) if run == "static" else compress(args.embedder, run, flags)
        RESULTS.mkdir(exist_ok=True)
        shutil.copyfile(results.path, RESULTS / f"embedder_{name}.json")
        table = RESULTS / f"embedder_{name}.md"
        table.write_text(render(args.embedder.name, results.values), encoding="utf-8")


def compress(embedder: Path, run: str, flags: list[str]) -> dict[str, Any]:
    """Return, by role, what the report of a run says of its models."""
    output = FOLDER / f"{embedder.name}-{run.replace(' ', '-')}"
    command = ["--task", "sentence-similarity", "--train_file", str(FOLDER / "texts.txt")]
    command += ["--test_file", str(ASSETS / "data/stsb/test.parquet"), "--dataset_title", "STS-B", *FORMS]
    if run == "even layers":
        command += ["--student_layers", "3", *TRAINING]
    elif run != "int8 alone":
        command += ["--target_speedup", run.removesuffix("x"), *TRAINING]
    command += [flag for flag in flags if flag != "--"]
    is_finished = (output / "compression_report.json").exists()
    report = CompressionReport.load(output) if is_finished else run_compress(embedder, output, *command)
    models = figures_by_role(report)
    for figures in models.values():
        figures["neighbours_kept"] = figures.pop("agreement")
        figures["texts_per_second"] = figures.pop("samples_per_second")
    minutes = None if report.training is None else report.training.seconds / 60
    return {"minutes": minutes, "stages": report.stages, "models": models}


def static(embedder: Path) -> dict[str, Any] | None:
    """Return the same of a static embedding, distilled by model2vec; None if that is not installed."""
    try:
        from model2vec.distill import distill
    except ImportError:
        logging.get_logger("hf_efficient").warning("static: model2vec is not installed")
        return None
    from sentence_transformers import SentenceTransformer

    start = time.perf_counter()
    model = distill(str(embedder), pca_dims=STATIC_SIZE)
    minutes = (time.perf_counter() - start) / 60
    rows = read("stsb", "test")
    texts = [*rows["sentence1"], *rows["sentence2"]]
    embeddings = normalize(model.encode(texts))
    reference = SentenceTransformer(str(embedder), device="cpu").encode(texts)
    durations = []
    for _ in range(STATIC_REPEATS):
        start = time.perf_counter()
        model.encode(texts)
        durations.append(time.perf_counter() - start)
    first, second = embeddings[: len(rows)], embeddings[len(rows) :]
    values = {
        "spearman": float(spearmanr((first * second).sum(-1), rows["label"]).statistic),
        "neighbours_kept": neighbours_kept(embeddings, reference),
        "texts_per_second": len(texts) / sorted(durations)[STATIC_REPEATS // 2],
    }
    return {"minutes": minutes, "models": {"model2vec": values}}


def render(name: str, results: Mapping[str, Any]) -> str:
    """Return the table of all runs."""
    environment = results["environment"]
    runs = {run: value for run, value in results.items() if run != "environment" and value is not None}
    lines = [
        f"# {name}",
        "",
        f"Test split of STS-B, 1,379 pairs. {environment['processor']}, {environment['threads']} threads; "
        f"{', '.join(environment['instructions'])}; torch {environment['packages']['torch']}. Latency at 8 x 64 "
        "tokens; texts a second: the texts of STS-B sorted by length, 8 in a batch. Neighbours: share of the 10 "
        "nearest by the teacher. Written by `scripts/benchmarks/embedder.py`.",
        "",
        "| run | form | Spearman | kept | neighbours | ms | speed | texts/s | smaller | minutes |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    is_first = True
    for run, value in runs.items():
        for role, row in value["models"].items():
            if role == "teacher" and not is_first:
                continue
            is_first = False
            cells = [
                "" if role == "teacher" else run,
                row.get("name", role),
                f"{row['spearman']:.4f}",
                format_figure(row.get("kept"), ".1%"),
                format_figure(row.get("neighbours_kept"), ".1%"),
                format_figure(row.get("latency_ms"), ".1f"),
                format_figure(row.get("speedup"), ".2f", "x"),
                format_figure(row.get("texts_per_second"), ",.0f"),
                format_figure(row.get("size"), ".1f", "x"),
                format_figure(value["minutes"] if role in ("student", "model2vec") else None, ".0f"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def training_texts() -> Iterator[str]:
    """Yield the sentences of all training splits, each on one line."""
    for path, columns in {"stsb": ("sentence1", "sentence2"), "sst2": ("sentence",), "banking77": ("text",)}.items():
        rows = read(path, "train")
        for column in columns:
            yield from (" ".join(text.split()) for text in rows[column])
    yield from (" ".join(pair["en"].split()) for pair in read("multi30k_en_de", "train")["translation"])


def test_texts() -> Iterator[str]:
    """Yield the sentences of STS-B that students are reported on."""
    rows = read("stsb", "test")
    yield from (" ".join(text.split()) for column in ("sentence1", "sentence2") for text in rows[column])


def read(name: str, split: str) -> Dataset:
    """Return the rows of a dataset in `HF_EFFICIENT_ASSETS`."""
    return Dataset.from_parquet(str(ASSETS / "data" / name / f"{split}.parquet"))


if __name__ == "__main__":
    main()
