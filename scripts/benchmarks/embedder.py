"""A sentence embedder made faster by distillation on texts without labels: Spearman on STS-B, neighbours kept, speed.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/embedder.py EMBEDDER [--speedups 2 3] [--max_texts N] [-- FLAGS]

EMBEDDER is a folder of sentence-transformers, such as all-MiniLM-L6-v2. The training texts, in out/embedder/texts.txt,
are the different sentences of STS-B (training split), SST-2, Multi30k (English) and banking77, about 116,000. Each
student is one `hf-efficient compress` with the FLAGS: pruning, distillation, int8_static and exports, reported on the
test split of STS-B. Results, copied from compression_report.json of each run, in out/embedder/results.json.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from datasets import Dataset
from sst2 import ASSETS, OUT, Results

from hf_efficient import CompressionReport

FOLDER = OUT / "embedder"
TRAINING = (
    *("--num_train_epochs", "3", "--per_device_train_batch_size", "64", "--learning_rate", "2e-4"),
    *("--warmup_steps", "200", "--lr_scheduler_type", "cosine", "--save_strategy", "no", "--report_to", "none"),
    *("--max_length", "64", "--latency_batch_size", "8", "--latency_sequence_length", "64"),
    *("--scheme", "int8_static", "--export", "openvino"),
)
COPIED = ("metrics", "teacher_agreement", "retained_intervals", "latency_ms", "samples_per_second", "ratios")


def main() -> None:
    """Write the texts, and make and measure the students."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embedder", type=Path)
    parser.add_argument("--speedups", type=float, nargs="+", default=[2.0, 3.0])
    parser.add_argument("--max_texts", type=int)
    args, flags = parser.parse_known_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    texts = sorted(set(training_texts()) - set(test_texts()))
    random.Random(0).shuffle(texts)
    file = FOLDER / "texts.txt"
    file.write_text("\n".join(texts[: args.max_texts]) + "\n", encoding="utf-8")
    results = Results(FOLDER / "results.json")
    for speedup in args.speedups:
        output = FOLDER / f"{args.embedder.name}-{speedup:g}x"
        command = [sys.executable, str(Path(__file__).parents[1] / "compress.py"), "--task", "sentence-similarity"]
        command += ["--model_name_or_path", str(args.embedder), "--train_file", str(file), "--output_dir", str(output)]
        command += ["--test_file", str(ASSETS / "data/stsb/test.parquet"), "--dataset_title", "STS-B"]
        command += ["--target_speedup", str(speedup), *TRAINING, *(flag for flag in flags if flag != "--")]
        subprocess.run([*command, "--overwrite_output_dir"], check=True)
        for row in CompressionReport.load(output).models:
            results[f"{output.name} {row.role}"] = {name: asdict(row)[name] for name in COPIED}


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
