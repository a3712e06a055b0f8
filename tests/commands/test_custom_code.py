"""Code in the folder of a model: run only with --trust_remote_code, and never asked about on standard input."""

import ast
import builtins
import json
import shutil
from pathlib import Path

import pytest

import hf_efficient
from hf_efficient.cli import main
from hf_efficient.commands.training_costs import measure_training_costs
from hf_efficient.measurement.training_settings import setting_grid

CODE = """
from pathlib import Path
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

with Path({log!r}).open("a") as file:
    file.write("x")


class OwnConfig(BertConfig):
    model_type = "own_bert"


class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
MODEL_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
FLAG = {True: ["--trust_remote_code", "True"], False: []}


class OwnCode:
    """Makes folders with models whose code is their own, and counts how often that code ran."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "runs"

    def model(self, base: Path) -> Path:
        """Return a folder with a copy of the model in `base`, of a class of its own."""
        changes = {"model_type": "own_bert", "architectures": ["OwnModel"], "auto_map": MODEL_MAP}
        return self._copy(base, "config.json", changes)

    def tokenizer(self, base: Path) -> Path:
        """Return a folder with a copy of the model in `base`, with a tokenizer of a class of its own."""
        changes = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
        return self._copy(base, "tokenizer_config.json", changes)

    def _copy(self, base: Path, name: str, changes: dict) -> Path:
        folder = Path(shutil.copytree(base, self.folder / f"own_{name.partition('.')[0]}"))
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, **changes}))
        (folder / "own.py").write_text(CODE.format(log=str(self.log)))
        return folder

    @property
    def has_run(self) -> bool:
        return self.log.exists()


@pytest.fixture
def own(tmp_path):
    return OwnCode(tmp_path)


@pytest.fixture(autouse=True)
def questions(monkeypatch):
    """Answer yes to every question, and fail if there was one."""
    asked: list[str] = []
    monkeypatch.setattr(builtins, "input", lambda question="": asked.append(question) or "yes")
    yield
    assert asked == []


def flags(job_dir, trusts, *more):
    files = ["--train_file", job_dir / "train.csv", "--validation_file", job_dir / "dev.csv"]
    training = ["--max_steps", 1, "--output_dir", job_dir / "out", "--report_to", "none", "--disable_tqdm", "True"]
    return [str(argument) for argument in (*files, *training, *more, *FLAG[trusts])]


@pytest.mark.parametrize("trusts", [False, True])
@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_measure(job_dir, own, capsys, part, trusts, with_data):
    folder = getattr(own, part)(job_dir / "model")
    data = ["--validation_file", str(job_dir / "dev.csv")] if with_data else []
    status = main(["measure", str(folder), *data, *["--trust_remote_code"] * trusts])
    assert own.has_run == (trusts and (with_data or part == "model"))
    if part == "model" and not trusts:
        assert status == 2
        assert "give --trust_remote_code if you trust it" in capsys.readouterr().err
    else:
        assert status == 0


def test_measure_training(job_dir, own):
    """The worker loads the model too; it cannot ask, since it has no standard input."""
    folder = own.model(job_dir / "model")
    with pytest.raises(hf_efficient.errors.UserError, match="--trust_remote_code"):
        measure_training_costs(str(folder), setting_grid(2, [False], [1], ["fp32"], ["eager"], [False]), 2, 8, 0, 1)
    assert not own.has_run


@pytest.mark.parametrize("trusts", [False, True])
@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_fine_tuning(job_dir, own, part, trusts):
    """A trained model with code of its own is saved with it, and its card is written."""
    folder = getattr(own, part)(job_dir / "model")
    status = main(["compress", "--model_name_or_path", str(folder), *flags(job_dir, trusts)])
    assert own.has_run == trusts
    assert status == (2 if part == "model" and not trusts else 0)
    if part == "model" and trusts:
        card = (job_dir / "out" / "README.md").read_text()
        assert "AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True)" in card
        assert "a class of its own" in card


@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_teacher(job_dir, own, part):
    folder = getattr(own, part)(job_dir / "model")
    teacher = ["--teacher_name_or_path", str(folder)]
    main(["distill", "--model_name_or_path", str(job_dir / "model"), *teacher, *flags(job_dir, False)])
    assert not own.has_run


@pytest.mark.parametrize(
    "command", [["prune", "--heads", "0.5"], ["quantize", "--scheme", "int8_dynamic"], ["export", "--export", "onnx"]]
)
def test_other_commands(job_dir, own, command):
    folder = own.model(job_dir / "model")
    files = ["--train_file", str(job_dir / "train.csv"), "--validation_file", str(job_dir / "dev.csv")]
    name, *more = command
    output = ["--output_dir", str(job_dir / "out")]
    assert main([name, "--model_name_or_path", str(folder), *more, *files, *output]) == 2
    assert not own.has_run


def test_every_loading_place_says_whether_it_trusts_code():
    """Without the argument Transformers asks on standard input."""
    silent = []
    for path in sorted(Path(hf_efficient.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value).lower()
                is_auto = owner.split(".")[-1].startswith("auto") and node.func.attr == "from_pretrained"
                names = {keyword.arg for keyword in node.keywords}
                if is_auto and not names & {"trust_remote_code", None}:
                    silent.append(f"{path.name}:{node.lineno}")
    assert silent == []
