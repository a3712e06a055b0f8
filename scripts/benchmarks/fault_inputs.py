"""Attacks by what a run is given: code, names, types, damaged files and folders that cannot be written."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_points import run

from hf_efficient import PruningConfig
from hf_efficient.errors import UserError
from hf_efficient.hub.files import collect_files
from hf_efficient.measurement.report import PICTURE_NAME, REPORT_NAME, CompressionReport
from hf_efficient.quantization.config import matches_any

ROOT = Path(__file__).parents[2]
NOBODY = 65534
TOKEN = "hf_" + "a1B2" * 9
HTML = "<img src=x onerror=alert(1)>"
CODE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast

Path({marker!r}).touch()


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
SECRETS = ("credentials.json", "model.PKL", "cache.joblib", "values.npz", ".env")
# By the number of the fault: tests that repeat what has many cases.
TESTS = {
    12: ("tests/distillation/test_config.py", "tests/distillation/test_losses.py"),
    13: ("tests/models/test_config_checks.py", "tests/commands/test_damaged_models.py"),
    17: ("tests/hub/test_files.py", "tests/contracts/test_fuzzing.py"),
}
WRONG = (
    (PruningConfig, {"rounds": 1.5}),
    (PruningConfig, {"rounds": 1_000_000}),
    (PruningConfig, {"portable": "x"}),
    (PruningConfig, {"target_flops": math.inf}),
    (matches_any, {"pattern": "(a|aa)+$", "names": ["a" * 60 + "b"]}),
)


def run_tests(number: int) -> dict[str, Any]:
    """Run the tests of a fault in a process of their own, and return how many passed."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=--import-mode=importlib",
        "-q",
        *TESTS[number],
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    passed = re.search(r"(\d+) passed", result.stdout)
    count = int(passed[1]) if passed else 0
    now = f"{count} cases end in a sentence or the right value (`{'`, `'.join(TESTS[number])}`)"
    outcome = {"ok": result.returncode == 0 and count > 0, "passed": count, "now": now}
    return outcome if outcome["ok"] else {**outcome, "output": result.stdout[-1500:]}


def input_attacks(scenario: Any) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the attacks, by the number of the fault and a name."""
    folder, log = scenario.folder / "given", scenario.log
    classifier = scenario.folder / "inputs" / "classifier"

    def fresh(name: str, source: Path | None = None) -> Path:
        path: Path = folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if source is not None:
            shutil.copytree(source, path)
        return path

    def quantize(model: Path, output_dir: Path) -> list[str]:
        arguments = ["quantize", "--model_name_or_path", str(model), "--output_dir", str(output_dir)]
        return [*arguments, "--scheme", "int8_weight_only", "--compile", "False"]

    def code_of_a_tokenizer() -> dict[str, Any]:
        model, marker, answers = fresh("model", classifier), folder / "has_run", folder / "answers"
        (model / "own.py").write_text(CODE.format(marker=str(marker)))
        settings = json.loads((model / "tokenizer_config.json").read_text())
        settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
        (model / "tokenizer_config.json").write_text(json.dumps(settings))
        answers.write_text("y\n" * 1000)

        def answer() -> None:
            os.dup2(os.open(answers, os.O_RDONLY), 0)

        status = run(quantize(model, folder / "out"), log, answer)
        output = log.read_text(errors="replace")
        ok = status == 0 and not marker.exists() and "[y/N]" not in output
        return {"ok": ok, "status": status, "now": "the code does not run, and nothing is asked"}

    def special_names() -> dict[str, Any]:
        model = fresh("[/red]", classifier)
        output_dir = folder / "$x^$"
        status = run(quantize(model, output_dir), log)
        missing = [name for name in (REPORT_NAME, "README.md", PICTURE_NAME) if not (output_dir / name).exists()]
        return {"ok": status == 0 and not missing, "status": status, "now": "report, card and picture are written"}

    def markup_in_names() -> dict[str, Any]:
        model = fresh(f'{HTML}"', classifier)
        output_dir = folder / 'x"; print(1) #'
        status = run(quantize(model, output_dir), log)
        card = (output_dir / "README.md").read_text() if (output_dir / "README.md").exists() else ""
        body = card.rpartition("\n---\n")[2]
        ok = status == 0 and bool(body) and HTML not in body and '"x"; print(1)' not in body
        return {"ok": ok, "status": status, "now": "escaped in the card and in the code to load it"}

    def secrets_in_a_pushed_folder() -> dict[str, Any]:
        target = fresh("pushed", scenario.old)
        for name in SECRETS:
            (target / name).write_text("secret")
        pushed = collect_files(target)
        sentences = 0
        for text in ("", "[", "[]", "3", '{"models": 3}', '{"models": [{}]}'):
            try:
                CompressionReport.from_json(text)
            except UserError:
                sentences += 1
        run(["push", str(target), f"--hub_tokn={TOKEN}"], log)
        ok = not set(SECRETS) & pushed.keys() and sentences == 6 and TOKEN not in log.read_text(errors="replace")
        return {"ok": ok, "sentences": sentences, "now": "not pushed; a sentence; the token is not shown"}

    def wrong_types() -> dict[str, Any]:
        refused = 0
        for function, values in WRONG:
            try:
                function(**values)
            except UserError:
                refused += 1
        return {"ok": refused == len(WRONG), "now": f"{refused} of {len(WRONG)} settings are refused at once"}

    def read_only_folder() -> dict[str, Any]:
        output_dir = fresh("read_only")
        output_dir.mkdir(mode=0o555)
        status = run(quantize(classifier, output_dir), log, lambda: os.setuid(NOBODY))
        output = log.read_text(errors="replace")
        ok = status == 2 and "cannot be written" in output and "Traceback" not in output
        return {
            "ok": ok,
            "status": status,
            "output": output[-300:],
            "now": "a folder that is read-only is refused first",
        }

    return {
        "8 code of a tokenizer": code_of_a_tokenizer,
        "12 temperatures": lambda: run_tests(12),
        "13 structures": lambda: run_tests(13),
        "14 special names": special_names,
        "15 markup in names": markup_in_names,
        "17 secrets and damaged reports": secrets_in_a_pushed_folder,
        "17 tests": lambda: run_tests(17),
        "18 wrong types": wrong_types,
        "18 read-only folder": read_only_folder,
    }
