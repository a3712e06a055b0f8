"""What README.md, scripts/README.md and model_cards/README.md say: every block runs, every link and figure exists."""

import json
import os
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from datasets import load_dataset
from reviews import write_reviews
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from hf_efficient.cli import COMMANDS
from hf_efficient.commands.arguments import parse_flags
from hf_efficient.measurement.report import CompressionReport

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "scripts/README.md", "model_cards/README.md")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON_BLOCKS = [block for language, block in BLOCKS if language == "python"]
SHELL_BLOCKS = [block for language, block in BLOCKS if language == "bash"]
# What a tiny model cannot do, or takes minutes: text in the README -> text that is run.
SMALLER = (
    {
        "target_speedup=2.0, rounds=3": "target_flops=1.5, rounds=3, multiple_of=4",
        '"out", ': '"out", use_cpu=True, report_to="none", save_strategy="no", ',
    },
    {"target_flops=2.0": "target_flops=1.5, multiple_of=4"},
)
MAX_LINES = 150


@pytest.fixture
def readme_names(tmp_path, review_model_dir, monkeypatch):
    """Return the variables that the Python blocks use, in a directory with the files that all blocks use."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(review_model_dir, "my-bert-classifier")
    files = {"train": str(write_reviews(Path("train.csv"), 64)), "test": str(write_reviews(Path("dev.csv"), 24))}
    for name in ("texts.txt", "stsb.csv"):
        shutil.copy("dev.csv", name)
    tokenizer = AutoTokenizer.from_pretrained("my-bert-classifier")
    model = AutoModelForSequenceClassification.from_pretrained("my-bert-classifier")

    def encode(row):
        return {**tokenizer(row["sentence"]), "labels": model.config.label2id[row["label"]]}

    rows = load_dataset("csv", data_files=files).map(encode, remove_columns=["sentence", "label"])
    collate = DataCollatorWithPadding(tokenizer)
    return {
        "model": model,
        "tokenizer": tokenizer,
        "train_dataset": rows["train"],
        "eval_dataset": rows["test"],
        "dataloader": [collate(list(rows["train"].select(range(32))))],
        "compute_metrics": lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    }


def commands_of(block):
    """Return the commands in a shell block as lists of arguments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [command for command in (shlex.split(line, comments=True) for line in lines) if command]


# ---- code blocks --------------------------------------------------------------------------------------------------


def test_every_block_is_python_or_bash():
    assert len(PYTHON_BLOCKS) == len(SMALLER)
    assert len(PYTHON_BLOCKS) + len(SHELL_BLOCKS) == len(BLOCKS) == README.count("```") / 2


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(PYTHON_BLOCKS)))
def test_python_block_runs(number, readme_names, capsys):
    code = PYTHON_BLOCKS[number]
    for text, smaller in SMALLER[number].items():
        assert text in code
        code = code.replace(text, smaller)
    if find_spec("onnxruntime") is None or find_spec("onnxscript") is None:
        code = re.sub(r"^export\(.*\n", "", code, flags=re.MULTILINE)
    exec(compile(code, f"README.md, block {number}", "exec"), readme_names)
    assert capsys.readouterr().out
    if "trainer" in readme_names:
        assert Path("out/config.json").is_file()
        assert [row.name for row in readme_names["trainer"].report.models] == ["teacher", "student", "8-bit"]
    else:
        assert readme_names["student"].num_parameters() < readme_names["model"].num_parameters()


@pytest.mark.usefixtures("readme_names")
@pytest.mark.parametrize("block", SHELL_BLOCKS)
def test_commands_of_shell_block_exist_and_parse(block):
    commands = commands_of(block)
    assert commands
    for program, *argv in commands:
        if program == "hf-efficient":
            assert argv[0] in COMMANDS
            assert parse_flags(argv[1:], argv[0], "", "").training["output_dir"]
        else:
            assert os.access(ROOT / program, os.X_OK)


# ---- flags, links, figures ----------------------------------------------------------------------------------------


def test_commands_and_flags_in_the_text_exist(capsys):
    with pytest.raises(SystemExit):
        parse_flags(["--help-all"], "compress", "", "")
    known = set(re.findall(r"--\w+", capsys.readouterr().out))
    assert set(re.findall(r"--\w+", README)) <= known | {"--help"}
    commands = set(re.findall(r"`hf-efficient (\w+)", README)) | {"distill", "quantize", "export"}
    assert commands <= set(COMMANDS)


def test_readme_is_short():
    assert len(README.splitlines()) <= MAX_LINES


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files(document):
    targets = re.findall(r"\]\(([^)]+)\)", (ROOT / document).read_text(encoding="utf-8"))
    missing = [
        target
        for target in targets
        if "://" not in target and not (ROOT / document).parent.joinpath(target.partition("#")[0]).exists()
    ]
    assert targets
    assert not missing


def test_result_table_holds_the_figures_of_the_report():
    report = CompressionReport.load(ROOT / "model_cards/minilm-sst2-2x-int8")
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in README.splitlines() if line.startswith("|")]
    figures = {name: cells for name, *cells in table}
    assert table[0][1:] == [row.name for row in report.models]
    assert figures["accuracy"] == [f"{row.metrics['accuracy']:.4f}" for row in report.models]
    assert figures["latency"] == [f"{row.latency_ms.p50:.1f} ms" for row in report.models]
    assert figures["speed-up"] == [f"{row.ratios.speedup:.2f}x" for row in report.models]
    assert figures["size on disk"] == [f"{row.bytes_on_disk / 1e6:.1f} MB" for row in report.models]


def test_figures_of_the_embedder_are_those_of_its_reports():
    text = " ".join(README.split())
    pruned = CompressionReport.load(ROOT / "model_cards/all-minilm-l6-v2-2x-int8").row("openvino").ratios
    results = json.loads((ROOT / "scripts/benchmarks/results/embedder_all-minilm-l6-v2.json").read_text())
    alone = results["int8 alone"]["models"]["openvino"]
    kept = f"keeps {pruned.metric_retained:.1%} of its Spearman correlation on STS-B at {pruned.speedup:.1f} times"
    assert kept in text
    assert f"int8 alone keeps {alone['kept']:.1%} at {alone['speedup']:.1f} times" in text


def test_figures_of_eight_times_fewer_operations_are_those_of_the_frontier():
    results = json.loads((ROOT / "scripts/benchmarks/results/frontier_amx.json").read_text(encoding="utf-8"))
    point = results["8x 1000 steps seed 0"]
    figures = point["models"]["openvino"]
    low, high = (100 * end for end in figures["interval"])
    text = " ".join(README.split())
    assert f"distilled for {point['seconds'] / 60:.0f} minutes, keeps {figures['kept']:.1%}" in text
    assert f"({low:.1f} to {high:.1f}) of the accuracy of its teacher on 8,006 held-out sentences" in text
    assert f"at {figures['speedup']:.1f} times its speed in OpenVINO int8" in text


def test_every_script_is_described():
    text = (ROOT / "scripts/README.md").read_text(encoding="utf-8")
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
    scripts += [path for path in (ROOT / "scripts/benchmarks").iterdir() if path.is_file()]
    undescribed = {path.name for path in scripts if not re.search(rf"`(scripts/)?{re.escape(path.name)}`", text)}
    parts = {"sst2.py", "int8_accuracy.py", "int8_forms.py", "int8_table.py", "recipe_data.py", "recipe_table.py"}
    assert undescribed == {"README.md", "fault_attacks.py", "fault_inputs.py", "fault_points.py"} | parts
