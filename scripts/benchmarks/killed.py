"""Kills a whole compression at random moments: resumed, each ends with the same weights as the undisturbed one.

    python scripts/benchmarks/killed.py [--kills 10] [--seed 0]

A tiny BERT without a task head is fine-tuned, pruned in two rounds, distilled and stored in 8 bits. About five
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
    """Writes a model and data, and returns the command without its output folder."""
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


def weights(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of every tensor of all models that a run leaves; a file's header has no fixed order."""
    found = {}
    for name in WEIGHTS:
        for tensor, value in load_file(folder / name).items():
            found[f"{name} {tensor}"] = value.contiguous().view(torch.uint8).numpy().tobytes()
    return found


def main() -> None:
    """Runs once undisturbed, then kills and resumes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    command, draw = make_inputs(), random.Random(args.seed)
    whole = FOLDER / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    begun = time.perf_counter()
    subprocess.run([*command, "--output_dir", str(whole)], check=True, capture_output=True)
    seconds, expected = time.perf_counter() - begun, weights(whole)
    results = Results(FOLDER / "results.json")
    for number in range(args.kills):
        broken = FOLDER / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        how = signal.SIGTERM if number % 2 else signal.SIGKILL
        moment = draw.uniform(0.25, 1.0) * seconds
        process = subprocess.Popen(
            [*command, "--output_dir", str(broken)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(how)
            process.wait()
        left = sorted(str(path.relative_to(broken)) for path in broken.rglob("config.json")) if broken.exists() else []
        again = subprocess.run([*command, "--output_dir", str(broken)], capture_output=True, text=True)
        same = again.returncode == 0 and weights(broken) == expected
        results[f"kill {number}"] = {
            "signal": how.name,
            "after": moment / seconds,
            "was finished": process.returncode == 0,
            "models that were there": left,
            "same weights": same,
        }
        logging.get_logger("hf_efficient").warning(f"kill {number}: {results[f'kill {number}']}")
        if not same:
            raise SystemExit(f"other weights, or an error, after a kill at {moment:.1f} s\n{again.stderr[-3000:]}")


if __name__ == "__main__":
    main()
