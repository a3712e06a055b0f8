"""Training by two processes. Starting them takes long, so one start trains with many settings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, BertModel
from two_processes import train

from hf_efficient import CompressionReport

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "two_processes.py"
COMPRESS = Path(__file__).parents[2] / "scripts" / "compress.py"
HALF = {"heads": 0.5, "neurons": 0.5}  # much faster than a target, which needs the cost of many models
RUNS = {
    "labels": {},
    "hidden states": {"distillation": {"hidden_weight": 1.0}},
    "hidden states and attention": {"distillation": {"hidden_weight": 1.0, "attention_weight": 1.0}},
    "cached teacher": {"layers": 0.5, "distillation": {"cache_teacher": True}},
    "projections": {
        "student_sizes": "hidden_size=16",
        "distillation": {"hidden_weight": 1.0, "embedding_weight": 1.0, "relation_weight": 1.0},
    },
    "fake quantization": {"distillation": {}, "fake_quantization": "int8_weight_only"},
    "pruning": {"target_flops": 2.0, "distillation": {}},
    "pruning and attention": {**HALF, "distillation": {"hidden_weight": 1.0, "attention_weight": 1.0}},
    "rounds": {**HALF, "rounds": 2, "distillation": {}},
    "gates": {**HALF, "ramp": 0.5, "distillation": {}},
    "gates by measured time": {"target_speedup": 1.2, "ramp": 0.5, "criterion": "movement", "distillation": {}},
    "rewound connections": {"weights": 0.5, "rewind": "weights", "distillation": {}},
    "streamed data": {**HALF, "streams": True, "distillation": {}},
}
COMPARED_WITH_ONE_PROCESS = ("labels", "hidden states", "pruning", "fake quantization")
SHARDED = ("hidden states and attention", "rounds", "gates", "rewound connections", "fake quantization")
GATES = {**HALF, "ramp": 0.9, "distillation": {}, "saves": True}
RESUMED = {
    "resumed gates": {**GATES, "resumes": True},
    "resumed sharded gates": {**GATES, "shards": True, "stops_at": 7},
    "resumed sharded distillation": {"distillation": {}, "saves": True, "shards": True, "stops_at": 7},
}
REFUSED = {"tied weights": {"generates": True, "distillation": {}, "shards": True}}


def launch(command, timeout=1800):
    """Run a script with its arguments in two processes."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    folders = os.pathsep.join(str(SCRIPT.parents[level]) for level in (1, 2))  # the modules of tests, and the package
    return subprocess.run(
        [sys.executable, *launcher, *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": folders},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def launch_runs(folder, runs):
    return launch([SCRIPT, folder, json.dumps(runs)])


def uninterrupted(settings):
    return {name: value for name, value in settings.items() if name not in ("resumes", "stops_at")}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Return the folder of a run in which one process has failed, and the output of both."""
    folder = tmp_path_factory.mktemp("two_processes")
    return folder, launch_runs(folder, {"resumed gates": {**GATES, "fails_at": 7}})


@pytest.fixture(scope="module")
def two_processes(interrupted):
    """Return the folder of all runs in two processes; the interrupted one is resumed there."""
    folder, _ = interrupted
    runs = {**RUNS, **{f"sharded {name}": {**RUNS[name], "shards": True} for name in SHARDED}, **RESUMED, **REFUSED}
    runs |= {f"uninterrupted {name}": uninterrupted(settings) for name, settings in RESUMED.items()}
    # Accelerate shards everything after the first sharded run.
    result = launch_runs(folder, dict(sorted(runs.items(), key=lambda run: "shards" in run[1])))
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def read_result(folder, name, rank=0):
    """Return the result that the process `rank` wrote."""
    return json.loads((folder / name / f"result-{rank}.json").read_text())


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_end_with_the_same_units_and_weights(two_processes, name):
    result = read_result(two_processes, name)
    assert read_result(two_processes, name, rank=1) == result
    assert result["projections"][0] == (2 * 16 * 32 if name == "projections" else 0)
    assert result["weight class"] == "Tensor"
    assert result["losses"]


@pytest.mark.parametrize("name", RUNS)
def test_predictions_of_two_processes_are_in_the_order_of_the_data(two_processes, name):
    assert read_result(two_processes, name)["prediction error"] < 1e-5


@pytest.mark.parametrize("name", COMPARED_WITH_ONE_PROCESS)
def test_two_processes_train_as_one_does_with_batches_twice_as_large(two_processes, name, tmp_path):
    result, expected = read_result(two_processes, name), train(tmp_path, **RUNS[name], batch_size=8)
    assert len(expected["losses"]) == 8
    assert result["losses"] == pytest.approx(expected["losses"], rel=5e-4, abs=1e-4)
    assert result["structure"] == expected["structure"]


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_model_is_trained_as_a_replicated_one(two_processes, name):
    result, expected = read_result(two_processes, f"sharded {name}"), read_result(two_processes, name)
    assert read_result(two_processes, f"sharded {name}", rank=1) == result
    assert result["weight class"] == "DTensor"
    assert result["losses"] == pytest.approx(expected["losses"], rel=5e-4, abs=1e-4)
    assert result["norms"] == pytest.approx(expected["norms"], rel=1e-3, abs=5e-3)  # biases of keys have no effect
    for value in ("structure", "zeros", "accuracy"):
        assert result[value] == expected[value]


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_run(two_processes, name):
    result, expected = read_result(two_processes, name), read_result(two_processes, f"uninterrupted {name}")
    assert "model.safetensors" in result["checkpoint"]
    assert not any(file.startswith("_fsdp") for file in result["checkpoint"])  # complete models, not shards
    assert expected["checkpoint"] == []
    assert result["weights"] == expected["weights"]
    assert result["structure"] == expected["structure"]


def test_process_that_fails_ends_the_other(interrupted):
    _, result = interrupted
    assert result.returncode != 0
    assert "this process has failed on purpose" in result.stderr


@pytest.mark.parametrize("name", REFUSED)
def test_model_that_fsdp_cannot_shard_is_refused(two_processes, name):
    for rank in range(2):
        assert "ties weights of several modules" in read_result(two_processes, name, rank)["error"]
    assert not list((two_processes / name).rglob("*.safetensors"))


def test_command_in_two_processes_leaves_one_model(job_dir, tmp_path):
    BertModel.from_pretrained(job_dir / "model").save_pretrained(job_dir / "model")
    output_dir = tmp_path / "out"
    flags = {"target_flops": 1.5, "rounds": 2, "scheme": "int8_weight_only", "compile": False, "multiple_of": 4}
    flags |= {"num_train_epochs": 2, "learning_rate": 5e-3, "report_to": "none", "output_dir": output_dir}
    flags |= {"model_name_or_path": job_dir / "model"}
    flags |= {f"{name}_file": job_dir / file for name, file in (("train", "train.csv"), ("validation", "dev.csv"))}
    result = launch([COMPRESS, *(part for name, value in flags.items() for part in (f"--{name}", value))])
    assert result.returncode == 0, result.stderr[-3000:]
    report = CompressionReport.load(output_dir)
    assert [row.role for row in report.models] == ["teacher", "student", "quantized"]
    assert "fine-tuned on the same data first" in report.stages[0]
    model = AutoModelForSequenceClassification.from_pretrained(output_dir, trust_remote_code=True)
    assert model.config.int8["activations"] is None
    assert not list(output_dir.rglob("*.partial"))
    assert not list(output_dir.glob("_round-*"))
