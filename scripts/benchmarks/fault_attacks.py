"""The faults that a review found, with what happened then, and attacks that repeat those of them that need a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fault_points import read_weights, run
from filelock import FileLock
from safetensors.torch import load_file, save_file

from hf_efficient.commands.run_manifest import LOCK_NAME
from hf_efficient.hub.files import collect_files
from hf_efficient.measurement.report import REPORT_NAME

RESUME, OVERWRITE = ["--resume_from_checkpoint", "True"], ["--overwrite_output_dir"]
# By the number of the review: what was done, and what happened.
FAULTS = {
    1: ("killed in round 2, resumed with `--rounds 1`", "the unpruned model is written, as pruned"),
    2: ("resumed with other fractions or another model", "goes on, and reports the new settings"),
    3: ("`--learning_rate 1e38`, a gradient that is NaN", "NaN weights are saved as the result"),
    4: ("killed while a round is written", "can never be resumed"),
    5: ("overwriting a folder that holds files of the user", "files of the user are deleted"),
    6: ("overwriting by a job that is impossible", "the good result is gone"),
    7: ("killed while the model is saved over an older one", "at 3 of 7 points no model loads"),
    8: ("a tokenizer with code, `yes \\|`", "the code runs"),
    9: ("a link in a folder that is pushed", "its target is uploaded"),
    10: ("weights cut short, disk full", "raw errors, no earlier checkpoint is tried"),
    11: ("a model with NaN weights is quantized", "a NaN model is written"),
    12: ("temperatures of 1e4 and more", "rounding errors as a loss"),
    13: ("configurations with impossible structures", "load in silence, or raw errors"),
    14: ("folders called `$x^$`, models called `[/red]`", "no report after all the training"),
    15: ("HTML and quotes in names", "unescaped in the card"),
    16: ("two jobs in one folder", "both write"),
    17: ("damaged reports, credentials in a pushed folder", "raw errors; uploaded"),
    18: ("wrong types, Ctrl-C, a folder that is read-only", "accepted; a traceback; found after all the work"),
}


def attacks(scenario: Any) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the attacks, by the number of the fault and a name."""
    target, log = scenario.folder / "attacked", scenario.log
    model = scenario.folder / "inputs" / "classifier"
    quantize = ["quantize", "--model_name_or_path", str(model), "--output_dir", str(target), "--compile", "False"]
    quantize += ["--scheme", "int8_weight_only"]

    def begin(source: Path | None) -> None:
        shutil.rmtree(target, ignore_errors=True)
        if source is not None:
            shutil.copytree(source, target)

    def in_round_2() -> Path:
        states = sorted(scenario.states.iterdir())
        return next(path for path in states if any((path / "_round-2").glob("checkpoint-*/trainer_state.json")))

    def is_refused(arguments: list[str], *texts: str) -> dict[str, Any]:
        status, before = run(arguments, log), read_weights(target)
        output = log.read_text(errors="replace")
        ok = status == 2 and all(text in output for text in texts) and "Traceback" not in output
        return {"ok": ok and read_weights(target) == before, "status": status, "now": "refused, nothing is lost"}

    def resumed_with(*changes: str) -> dict[str, Any]:
        begin(in_round_2())
        return is_refused(
            [*scenario.command, "--output_dir", str(target), *RESUME, *changes], "cannot be resumed, since"
        )

    def large_learning_rate() -> dict[str, Any]:
        begin(None)
        command = [*scenario.command, "--output_dir", str(target), "--max_steps", "1", "--learning_rate", "1e38"]
        result = is_refused(command, "NaN or infinite")
        return {**result, "ok": result["ok"] and not (target / "model.safetensors").exists()}

    def files_of_the_user() -> dict[str, Any]:
        begin(scenario.old)
        files = [
            target / name for name in ("_notes/a", "_private.txt", "openvino/b", "checkpoint-best/c", "x.partial")
        ]
        for path in files:
            path.parent.mkdir(exist_ok=True)
            path.write_text("mine")
        status = run([*quantize, *OVERWRITE], log)
        kept = [path.name for path in files if path.exists() and path.read_text() == "mine"]
        return {"ok": status == 0 and len(kept) == len(files), "status": status, "now": "all files are kept"}

    def impossible_target() -> dict[str, Any]:
        begin(scenario.old)
        names = (REPORT_NAME, "README.md", "_student/model.safetensors", "onnx/model.onnx")
        before = [(target / name).read_bytes() for name in names]
        prune = [flag for flag in scenario.command if flag not in ("--heads", "--neurons", "0.5")]
        prune[prune.index("--model_name_or_path") + 1] = str(model)
        result = is_refused(
            [*prune, "--output_dir", str(target), *OVERWRITE, "--target_flops", "1000"], "cannot be reached"
        )
        return {**result, "ok": result["ok"] and before == [(target / name).read_bytes() for name in names]}

    def link() -> dict[str, Any]:
        begin(scenario.old)
        secret = scenario.folder / "secret.txt"
        secret.write_text("secret")
        (target / "notes.txt").symlink_to(secret)
        return {"ok": "notes.txt" not in collect_files(target), "now": "skipped with a warning"}

    def weights_cut_short() -> dict[str, Any]:
        begin(in_round_2())
        newest = max((target / "_round-2").glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
        content = (newest / "model.safetensors").read_bytes()
        (newest / "model.safetensors").write_bytes(content[: len(content) // 2])
        status = run([*scenario.command, "--output_dir", str(target), *RESUME], log)
        same = read_weights(target) == scenario.weights
        return {"ok": status == 0 and same, "status": status, "now": "resumed from what is before it, same weights"}

    def nan_weights() -> dict[str, Any]:
        begin(None)
        damaged = scenario.folder / "damaged"
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(model, damaged)
        weights = load_file(damaged / "model.safetensors")
        weights["classifier.bias"] = weights["classifier.bias"] * torch.nan
        save_file(weights, damaged / "model.safetensors", {"format": "pt"})
        return is_refused([str(damaged) if part == str(model) else part for part in quantize], "NaN")

    def second_job() -> dict[str, Any]:
        begin(scenario.old)
        with FileLock(target / LOCK_NAME):
            return is_refused([*quantize, *OVERWRITE], "another run")

    return {
        "1 other rounds": lambda: resumed_with("--rounds", "1"),
        "2 other fractions": lambda: resumed_with("--heads", "0.25"),
        "2 another model": lambda: resumed_with("--model_name_or_path", str(model)),
        "3 learning rate": large_learning_rate,
        "5 files of the user": files_of_the_user,
        "6 impossible target": impossible_target,
        "9 link": link,
        "10 weights cut short": weights_cut_short,
        "11 NaN weights": nan_weights,
        "16 second job": second_job,
    }
