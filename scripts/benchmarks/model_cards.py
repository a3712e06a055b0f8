"""Write the cards in model_cards/: classifiers of reviews and of intents, a translation model, and an embedder.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/model_cards.py [--names ...]

A model that does not exist is trained first, by its benchmark; its card, report and picture are then rendered from its
compression_report.json. About 90 minutes on two cores if all are trained.
`scripts/demo` writes the card of the demo.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sst2 import OUT

from hf_efficient import CompressionReport
from hf_efficient.hub.model_card import write_report_and_card
from hf_efficient.measurement.report import PICTURE_NAME, REPORT_NAME

HERE = Path(__file__).parent
CARDS = HERE.parents[1] / "model_cards"
# Name of the card: directory of the model, and the command that trains it.
MODELS = {
    "minilm-sst2-2x-int8": (OUT / "main_job", [str(HERE / "main_job")]),
    "t5-multi30k-2x": (OUT / "translation" / "student", [sys.executable, str(HERE / "translation.py")]),
    "minilm-banking77-2x": (
        OUT / "tasks" / "banking77-0",
        [sys.executable, str(HERE / "tasks.py"), "--tasks", "banking77"],
    ),
    "all-minilm-l6-v2-2x-int8": (
        OUT / "embedder" / "all-MiniLM-L6-v2-2x",
        [sys.executable, str(HERE / "embedder.py"), "--runs", "2x"],
    ),
}


def render(name: str, model: Path) -> None:
    """Write the card, the report and the picture of `model` into model_cards/`name`."""
    with tempfile.TemporaryDirectory() as temporary_dir:
        staged = shutil.copytree(model, Path(temporary_dir) / name)  # the card has the name of its folder
        write_report_and_card(CompressionReport.load(model), staged)
        (CARDS / name).mkdir(exist_ok=True)
        for file in ("README.md", REPORT_NAME, PICTURE_NAME):
            shutil.copy(staged / file, CARDS / name)


def main() -> None:
    """Train the models that do not exist, and write the cards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=MODELS, default=list(MODELS))
    for name in parser.parse_args().names:
        folder, command = MODELS[name]
        if not (folder / REPORT_NAME).exists():
            subprocess.run(command, check=True)
        render(name, folder)


if __name__ == "__main__":
    main()
