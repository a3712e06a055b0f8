"""Time and memory of reading and tokenizing a large CSV file, which the script writes.

python scripts/benchmarks/large_file.py [--rows 200000] [--words 20]
"""

from __future__ import annotations

import argparse
import csv
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from rich.console import Console

from hf_efficient.commands.demo_dataset import train_tokenizer
from hf_efficient.data.columns import Columns
from hf_efficient.data.config import DataConfig
from hf_efficient.data.loading import load_splits
from hf_efficient.tasks import TASKS
from hf_efficient.tasks.task import RowEncoder

WORDS = ("the", "film", "was", "good", "bad", "dull", "a", "lovely", "story", "null", "1.0", '"hit"', "end\n")
MEGABYTE = 2**20


@contextmanager
def measured(name: str) -> Iterator[None]:
    """Print the seconds of a part of the script, and the memory of the process at its highest until then."""
    before, start = peak_megabytes(), time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    Console().print(f"{name}: {seconds:.1f} s, peak memory {peak_megabytes():.0f} MB (before: {before:.0f} MB)")


def peak_megabytes() -> float:
    """Return the highest memory of this process until now, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE


def write_table(path: Path, rows: int, words: int) -> None:
    """Write a CSV file of random texts with two classes."""
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([" ".join(draw.choices(WORDS, k=words)), index % 2] for index in range(rows))


def main() -> None:
    """Write the file, read it and tokenize it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--words", type=int, default=20, help="words in a text")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        path = Path(folder) / "large.csv"
        write_table(path, args.rows, args.words)
        Console().print(f"{args.rows} rows, {path.stat().st_size / MEGABYTE:.0f} MB")
        config = DataConfig(train_file=str(path))
        with measured("reading"):
            splits = load_splits(config, seed=0)
        tokenizer = train_tokenizer(WORDS, 200)
        encoder = RowEncoder(Columns(("text",), "label"), tokenizer, config, {"0": 0, "1": 1})
        with measured("tokenizing"):
            TASKS["text-classification"].tokenize(splits, encoder)


if __name__ == "__main__":
    main()
