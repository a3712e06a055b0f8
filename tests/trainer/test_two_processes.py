import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, BertModel

from hf_efficient import CompressionReport

SCRIPT = Path(__file__).parent / "two_processes.py"
COMPRESS = Path(__file__).parents[2] / "scripts" / "compress.py"


def launched(command, processes=2, timeout=300):
    """Runs a script and its arguments by so many processes."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    return subprocess.run(
        [sys.executable, *launcher, *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def by_two(folder, changes):
    return launched([SCRIPT, folder, json.dumps(changes)])


def found(folder, rank):
    """Returns what the process `rank` ended with."""
    what = json.loads((folder / f"found-{rank}.json").read_text())
    assert what.pop("rank") == rank
    return what


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"target_flops": 2.0, "rounds": 2},
        {"target_flops": 2.0, "ramp": 0.5},
        {"target_speedup": 1.2, "ramp": 0.5, "criterion": "movement"},
        {"weights": 0.5, "rewind": "weights"},
        {
            "narrow": "hidden_size=16",
            "teaching": {"hidden_weight": 1.0, "embedding_weight": 1.0, "relation_weight": 1.0},
        },
        {"target_flops": 2.0, "teaching": {"hidden_weight": 1.0, "attention_weight": 1.0}},
        {"layers": 0.5, "teaching": {"cache_teacher": True}},
    ],
    ids=str,
)
def test_two_processes_cut_the_same_units_and_learn_the_same_weights(tmp_path, changes):
    run = by_two(tmp_path, changes)
    assert run.returncode == 0, run.stderr[-3000:]
    first, second = (found(tmp_path, rank) for rank in (0, 1))
    assert first == second
    assert first["projections"][0] == (2 * 16 * 32 if "narrow" in changes else 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"teaching": None},
        {"teaching": {"hidden_weight": 1.0}},
        {"target_flops": 2.0},
        {"teaching": {}, "rounding": "int8_weight_only"},
    ],
    ids=["teacher", "distillation", "pruning", "training for 8 bits"],
)
def test_two_processes_learn_what_one_does_with_batches_twice_as_large(tmp_path, changes):
    for folder in ("two", "one"):
        (tmp_path / folder).mkdir()
    run = by_two(tmp_path / "two", changes)
    assert run.returncode == 0, run.stderr[-3000:]
    alone = launched([SCRIPT, tmp_path / "one", json.dumps({**changes, "batch": 8})], processes=1)
    assert alone.returncode == 0, alone.stderr[-3000:]
    two, one = found(tmp_path / "two", 0), found(tmp_path / "one", 0)
    assert len(one["losses"]) == 8
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-4)
    assert two["structure"] == one["structure"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"teaching": {"hidden_weight": 1.0, "attention_weight": 1.0}},
        {"target_flops": 2.0, "rounds": 2},
        {"target_flops": 2.0, "ramp": 0.5},
        {"weights": 0.5, "rewind": "weights"},
        {"teaching": {}, "rounding": "int8_weight_only"},
    ],
    ids=str,
)
def test_a_model_that_fsdp_shares_out_learns_the_same(tmp_path, changes):
    for folder, shards in (("shared", True), ("copied", False)):
        (tmp_path / folder).mkdir()
        run = by_two(tmp_path / folder, {**changes, "shards": shards})
        assert run.returncode == 0, run.stderr[-3000:]
    first, second = (found(tmp_path / "shared", rank) for rank in (0, 1))
    assert first == second
    copied = found(tmp_path / "copied", 0)
    assert (first["trained as"], copied["trained as"]) == ("DTensor", "Tensor")
    assert first["losses"] == pytest.approx(copied["losses"], abs=1e-4)
    assert first["norms"] == pytest.approx(copied["norms"], rel=1e-3, abs=5e-3)  # biases of keys learn nothing
    for what in ("structure", "zeros", "accuracy"):
        assert first[what] == copied[what]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"teaching": {}, "shards": True},
        {"target_flops": 2.0, "ramp": 0.9, "shards": True},
        {"target_flops": 2.0, "ramp": 0.9},
    ],
    ids=str,
)
def test_two_processes_go_on_after_an_interruption(tmp_path, changes):
    changes = {**changes, "saves": True}
    for folder in ("broken off", "at once"):
        (tmp_path / folder).mkdir()
    assert by_two(tmp_path / "broken off", {**changes, "fails": 7}).returncode != 0
    [checkpoint] = (tmp_path / "broken off").rglob("checkpoint-4")
    assert (checkpoint / "model.safetensors").exists()
    assert not list(checkpoint.glob("_fsdp*"))
    for folder, resume in (("broken off", True), ("at once", False)):
        run = by_two(tmp_path / folder, {**changes, "resume": resume})
        assert run.returncode == 0, run.stderr[-3000:]
    resumed, at_once = (found(tmp_path / folder, 0) for folder in ("broken off", "at once"))
    assert resumed["weights"] == at_once["weights"]
    assert resumed["structure"] == at_once["structure"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"writes": True, "teaching": {}}, "ties weights of several modules"),
        (
            {"narrow": "hidden_size=16", "teaching": {"hidden_weight": 1.0}},
            "not the projections learned beside it: take relation_weight",
        ),
        ({"target_flops": 2.0, "ramp": 0.5, "criterion": "wanda"}, "which FSDP shares out: ask for rounds"),
        ({"weights": 0.5, "ramp": 0.5}, "which FSDP shares out: ask for rounds"),
    ],
    ids=str,
)
def test_what_fsdp_cannot_share_out_is_refused(tmp_path, changes, message):
    run = by_two(tmp_path, {**changes, "shards": True})
    assert run.returncode != 0
    assert message in run.stderr


@pytest.mark.slow
def test_a_process_that_fails_ends_the_other(tmp_path):
    run = by_two(tmp_path, {"target_flops": 2.0, "fails": 3})
    assert run.returncode != 0
    assert "this process has had enough" in run.stderr
    assert not list(tmp_path.glob("found-*"))


@pytest.mark.slow
def test_two_processes_prune_and_learn_from_a_stream(tmp_path):
    run = by_two(tmp_path, {"target_flops": 2.0, "streams": True})
    assert run.returncode == 0, run.stderr[-3000:]
    assert found(tmp_path, 0) == found(tmp_path, 1)


@pytest.mark.slow
def test_the_whole_job_in_two_processes_leaves_one_model(job_dir, tmp_path):
    BertModel.from_pretrained(job_dir / "model").save_pretrained(job_dir / "model")
    given = {"target_flops": 1.5, "rounds": 2, "scheme": "int8_weight_only", "compile": False, "multiple_of": 4}
    given |= {"num_train_epochs": 2, "learning_rate": 5e-3, "report_to": "none", "output_dir": tmp_path / "out"}
    given |= {"model_name_or_path": job_dir / "model"}
    given |= {f"{name}_file": job_dir / file for name, file in (("train", "train.csv"), ("validation", "dev.csv"))}
    run = launched([COMPRESS, *(str(part) for name, value in given.items() for part in (f"--{name}", value))])
    assert run.returncode == 0, run.stderr[-3000:]
    report = CompressionReport.load(tmp_path / "out")
    assert [row.role for row in report.models] == ["teacher", "student", "quantized"]
    assert "fine-tuned on the same data first" in report.stages[0]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert model.config.quantization_config is not None
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert not list((tmp_path / "out").glob("_round-*"))
