"""Kill, fill the disk and interrupt at every file operation of a run, repeat the attacks of a review; write a table.

    python scripts/benchmarks/faults.py [--points N] [--only kills disk interrupts attacks]

A tiny BERT is fine-tuned, pruned in two rounds with distillation, quantized to int8 and exported to ONNX, over the
finished result of another run. It is killed in each state of the folder that differs from those before, the disk is
full from each write on, and Ctrl-C is pressed in each of the states. Afterwards the run is started again, and must end
with the same weights, the same export and the same files as a run that was not disturbed. `--points` takes so many
points of each kind, at equal distances. Results in out/faults/results.json; `--publish` writes a summary and a table
to scripts/benchmarks/results/.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fault_attacks import FAULTS, attacks
from fault_inputs import input_attacks
from fault_points import (
    FileOperations,
    convert_once,
    hash_of_folder,
    make_inputs,
    read_weights,
    run,
    snapshot,
)
from sst2 import OUT, Results
from transformers import AutoModelForSequenceClassification

from hf_efficient.cli import main as main_of_command
from hf_efficient.commands.run_manifest import RunManifest
from hf_efficient.files.replacing import NEW_MODEL_NAME

FOLDER = OUT / "faults"
PUBLISHED = Path(__file__).parent / "results" / "faults"
RESUME = ["--resume_from_checkpoint", "True"]
OVERWRITE = ["--overwrite_output_dir"]
KINDS = ("kills", "disk", "interrupts", "attacks")
# The faults that points of each kind repeat.
FAULTS_OF_KINDS = {"kills": (4, 7), "disk": (10,), "interrupts": (18,)}
TEXTS_OF_KINDS = {
    "kills": "killed in {taken} of {possible} states of the folder: {ok} end like a run undisturbed",
    "disk": "disk full at {taken} of {possible} writes: a sentence, and {ok} end like a run undisturbed",
    "interrupts": "Ctrl-C at {taken} of {possible} moments: a sentence, and {ok} end like a run undisturbed",
}


class Scenario:
    """An older result, the run over it, and what an undisturbed run gives."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.command = folder, make_inputs(folder / "inputs")
        self.old, self.expected = folder / "old", folder / "expected"
        self.states, self.writes = folder / "states", folder / "writes.txt"
        self.log = folder / "log.txt"

    def prepare(self) -> None:
        """Write the older result and the undisturbed one."""
        if not self.expected.exists():
            for path in (self.old, self.states):
                shutil.rmtree(path, ignore_errors=True)
            self.writes.unlink(missing_ok=True)
            command = [*self.command, "--output_dir", str(self.old)]
            classifier = str(self.folder / "inputs" / "classifier")
            command[command.index("--model_name_or_path") + 1] = classifier
            command[command.index("--learning_rate") + 1] = "1e-3"
            self._run(command)
            target = self.folder / "running"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(self.old, target)
            self._run([*self.command, "--output_dir", str(target), *OVERWRITE], partial(self._keep_states, target))
            target.rename(self.expected)
        self.old_weights, self.weights = read_weights(self.old), read_weights(self.expected)
        self.names = _names(self.expected)
        self._warm_up()

    def _warm_up(self) -> None:
        """Run once in this process, so that its forks neither import nor convert anything that is known."""
        convert_once()
        with tempfile.TemporaryDirectory() as folder:
            if main_of_command([*self.command, "--output_dir", folder]):
                raise SystemExit("the undisturbed run in this process failed")
            if read_weights(Path(folder)) != self.weights:
                raise SystemExit("two undisturbed runs give different weights")
        gc.collect()
        gc.freeze()  # what is here is not searched for garbage in each fork

    def _run(self, command: list[str], prepare: Callable[[], None] = lambda: None) -> None:
        status = run(command, self.log, prepare)
        if status:
            raise SystemExit(f"the undisturbed run ended with {status}:\n{self.log.read_text()[-3000:]}")

    def _keep_states(self, target: Path) -> None:
        """Keep every different state of the folder and the numbers of the writes, in the process of the run."""
        seen: set[str] = set()

        def keep(number: int) -> None:
            if operations.is_write:
                with self.writes.open("a") as file:
                    file.write(f"{number:04}\n")
            if (digest := hash_of_folder(target)) not in seen:
                seen.add(digest)
                snapshot(target, self.states / f"{number:04}")

        operations = FileOperations(target, keep)
        operations.install()

    def model_in(self, folder: Path) -> str:
        """Say which model `from_pretrained` loads from `folder`: "old", "new", "new, to be moved" or what is wrong."""
        new = folder / NEW_MODEL_NAME
        place = new if not (folder / "config.json").exists() and new.exists() else folder
        try:
            AutoModelForSequenceClassification.from_pretrained(place)
        except (OSError, ValueError, RuntimeError) as error:
            return f"{type(error).__name__}: {str(error)[:200]}"
        weights = {name: value for name, value in read_weights(place).items() if name.startswith("model.")}
        for title, expected in (("old", self.old_weights), ("new", self.weights)):
            if weights == {name: value for name, value in expected.items() if name.startswith("model.")}:
                return title if place == folder else f"{title}, to be moved"
        return "other weights"

    def restart(self, folder: Path) -> dict[str, Any]:
        """Start the run again in `folder` and say how it ended."""
        manifest, old = RunManifest.load(folder), RunManifest.load(self.old)
        has_begun = manifest is not None and old is not None and manifest.settings != old.settings
        how = RESUME if has_begun else OVERWRITE
        status = run([*self.command, "--output_dir", str(folder), *how], self.log)
        text, names = self.log.read_text(errors="replace"), _names(folder)
        result: dict[str, Any] = {"resumed": has_begun, "status": status, "same": read_weights(folder) == self.weights}
        result["files"] = sorted(map(str, names ^ self.names))
        if status or "Traceback" in text:
            result["output"] = text[-1500:]
        result["ok"] = status == 0 and result["same"] and not result["files"]
        return result


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def kill(scenario: Scenario, state: str) -> dict[str, Any]:
    """Go on from a state that a killed process left."""
    target = scenario.folder / "running"
    shutil.rmtree(target, ignore_errors=True)
    snapshot(scenario.states / state, target)
    model = scenario.model_in(target)
    result = scenario.restart(target)
    is_whole = model in ("old", "new", "new, to be moved")
    return {"model": model, **result, "ok": result["ok"] and is_whole}


def disturb(scenario: Scenario, number: int, kind: str) -> dict[str, Any]:
    """Disturb a run at one of its file operations, then start it again."""
    target = scenario.folder / "running"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(scenario.old, target)

    def interrupt(operation: int) -> None:
        if kind == "interrupts" and operation == number:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
            os.kill(os.getpid(), signal.SIGINT)

    operations = FileOperations(target, interrupt, number if kind == "disk" else None)
    status = run([*scenario.command, "--output_dir", str(target), *OVERWRITE], scenario.log, operations.install)
    text = scenario.log.read_text(errors="replace")
    is_sentence = "Traceback" not in text and status == (130 if kind == "interrupts" else 2)
    first = {"first status": status, "message": text.strip().splitlines()[-1][-300:] if text.strip() else ""}
    if not is_sentence:
        first["first output"] = text[-2500:]
    model = scenario.model_in(target)
    result = {**first, "model": model, **scenario.restart(target)}
    is_whole = model in ("old", "new", "new, to be moved")
    return {**result, "ok": result["ok"] and is_sentence and is_whole}


def main() -> None:
    """Take the points that were not measured before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, help="points of each kind; attacks are all made")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--again", action="store_true", help="repeat the points that failed before")
    parser.add_argument("--publish", action="store_true", help="write a summary and the table to results/")
    args = parser.parse_args()
    scenario, results = Scenario(FOLDER), Results(FOLDER / "results.json")
    scenario.prepare()
    states = sorted(path.name for path in scenario.states.iterdir())
    writes = scenario.writes.read_text().split()
    all_attacks = {**attacks(scenario), **input_attacks(scenario)}
    possible = {"kills": states, "disk": writes, "interrupts": states, "attacks": sorted(all_attacks)}
    for kind in args.only:
        total = len(possible[kind])
        count = total if kind == "attacks" else min(args.points or total, total)
        for point in (possible[kind][number * total // count] for number in range(count)):
            name = f"{kind} {point}"
            if name in results and (results[name]["ok"] or not args.again):
                continue
            start = time.perf_counter()
            if kind == "attacks":
                result = all_attacks[point]()
            else:
                result = kill(scenario, point) if kind == "kills" else disturb(scenario, int(point), kind)
            results[name] = {**result, "seconds": round(time.perf_counter() - start, 1)}
            sys.stdout.write(f"{name}: {'ok' if results[name]['ok'] else results[name]}\n")
            sys.stdout.flush()
    if args.publish:
        published = summary(results.values, {kind: len(points) for kind, points in possible.items()})
        PUBLISHED.with_suffix(".json").write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")
        PUBLISHED.with_suffix(".md").write_text(table(published), encoding="utf-8")


def summary(results: dict[str, Any], possible: dict[str, int]) -> dict[str, Any]:
    """Return how the points of each kind ended, the failed ones in full, and all attacks."""
    kinds: dict[str, Any] = {}
    for kind in KINDS:
        points = {name: result for name, result in results.items() if name.startswith(f"{kind} ")}
        ok = sum(result["ok"] for result in points.values())
        kinds[kind] = {"possible": possible[kind], "taken": len(points), "ok": ok}
        kinds[kind]["seconds"] = round(sum(result["seconds"] for result in points.values()))
        if kind == "attacks":
            kinds[kind]["points"] = points
            continue
        # What `from_pretrained` loads after the fault, before the run is started again.
        kinds[kind]["models"] = Counter(result["model"] for result in points.values())
        kinds[kind]["resumed"] = sum(result["resumed"] for result in points.values())
        kinds[kind]["failed"] = {name: result for name, result in points.items() if not result["ok"]}
    return kinds


def table(published: dict[str, Any]) -> str:
    """Return the table of the faults as Markdown: what was done, what happened before, what happens now."""
    rows = ["| # | what was done | before | now |", "| --- | --- | --- | --- |"]
    for number, (done, before) in FAULTS.items():
        texts = []
        for name, result in published["attacks"]["points"].items():
            if name.startswith(f"attacks {number} "):
                texts.append(result["now"] if result["ok"] else f"**fails**: {name}")
        for kind, numbers in FAULTS_OF_KINDS.items():
            if number in numbers and published[kind]["taken"]:
                texts.append(TEXTS_OF_KINDS[kind].format(**published[kind]))
        rows.append(f"| {number} | {done} | {before} | {'; '.join(dict.fromkeys(texts)) or 'not measured'} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
