"""Kill training runs at random moments, resume them, and compare the weights with those of an uninterrupted run.

    python scripts/benchmarks/killed.py [--kills 10] [--seed 0]

A tiny BERT without a task head is fine-tuned, pruned in two rounds with distillation, and quantized. About five
minutes. Results in out/killed/results.json.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from sst2 import OUT, Results
from transformers import BertConfig, BertModel, set_seed
from transformers.utils import logging

from hf_efficient.commands.demo_dataset import train_tokenizer

FOLDER = OUT / "killed"
WORDS = (("bad", "awful", "dull", "poor"), ("good", "great", "lovely", "fine"))
FLAGS = "--target_flops 2 --rounds 2 --multiple_of 4 --hidden_weight 1 --scheme int8_weight_only --compile False "
FLAGS += "--num_train_epochs 6 --save_steps 3 --learning_rate 5e-3 --report_to none --resume_from_checkpoint True"
WEIGHTS = ("model.safetensors", "_student/model.safetensors", "_teacher/model.safetensors")


def make_inputs() -> list[str]:
    """Write a model and data, and return the command without its output directory."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    set_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=200, max_position_embeddings=64, **sizes)).save_pretrained(FOLDER / "model")
    train_tokenizer([" ".join(("the film was", *WORDS[0], *WORDS[1]))], 200).save_pretrained(FOLDER / "model")
    for name, count in (("train", 64), ("dev", 24)):
        with (FOLDER / f"{name}.csv").open("w", newline="") as file:
            rows = [[f"the {WORDS[i % 2][i % 4]} film was {WORDS[i % 2][i * 7 % 4]}", i % 2] for i in range(count)]
            csv.writer(file).writerows([["sentence", "label"], *rows])
    script, data = Path(__file__).parents[1] / "compress.py", (("train_file", "train"), ("validation_file", "dev"))
    command = [sys.executable, str(script), "--model_name_or_path", str(FOLDER / "model"), *FLAGS.split()]
    return [*command, *(part for flag, name in data for part in (f"--{flag}", str(FOLDER / f"{name}.csv")))]


def read_weights(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every tensor of the saved models; the headers of equal files may differ in their order."""
    weights = {}
    for name in WEIGHTS:
        for tensor, value in load_file(folder / name).items():
            weights[f"{name} {tensor}"] = value.contiguous().view(torch.uint8).numpy().tobytes()
    return weights


def main() -> None:
    """Run once without interruption, then kill and resume."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    command, draw = make_inputs(), random.Random(args.seed)
    uninterrupted = FOLDER / "uninterrupted"
    shutil.rmtree(uninterrupted, ignore_errors=True)
    start_seconds = time.perf_counter()
    subprocess.run([*command, "--output_dir", str(uninterrupted)], check=True, capture_output=True)
    seconds, expected = time.perf_counter() - start_seconds, read_weights(uninterrupted)
    results = Results(FOLDER / "results.json")
    for number in range(args.kills):
        interrupted = FOLDER / "interrupted"
        shutil.rmtree(interrupted, ignore_errors=True)
        kill_signal = signal.SIGTERM if number % 2 else signal.SIGKILL
        moment = draw.uniform(0.25, 1.0) * seconds
        process = subprocess.Popen(
            [*command, "--output_dir", str(interrupted)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(kill_signal)
            process.wait()
        existing_models = (
            sorted(str(path.relative_to(interrupted)) for path in interrupted.rglob("config.json"))
            if interrupted.exists()
            else []
        )
        resumed = subprocess.run([*command, "--output_dir", str(interrupted)], capture_output=True, text=True)
        same = resumed.returncode == 0 and read_weights(interrupted) == expected
        results[f"kill {number}"] = {
            "signal": kill_signal.name,
            "after": moment / seconds,
            "was finished": process.returncode == 0,
            "models that were there": existing_models,
            "same weights": same,
        }
        logging.get_logger("hf_efficient").warning(f"kill {number}: {results[f'kill {number}']}")
        if not same:
            raise SystemExit(
                f"the resumed run failed or has other weights: killed at {moment:.1f} s\n{resumed.stderr[-3000:]}"
            )


if __name__ == "__main__":
    main()
