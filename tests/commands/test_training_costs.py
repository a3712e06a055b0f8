"""`hf-efficient measure MODEL --training`: costs of training, measured in worker processes."""

import pytest
import torch
from reviews import save_model, tiny_config
from transformers import AutoConfig, BertForSequenceClassification, set_seed

from hf_efficient.cli import main
from hf_efficient.commands import training_costs as training_costs_command
from hf_efficient.commands.training_cost_worker import TrainingRunSpec, measure_training_run
from hf_efficient.commands.training_costs import (
    _failure_reason,
    _run_process,
    measure_training_costs,
    run_in_worker,
)
from hf_efficient.measurement.training_costs import TrainingCost, TrainingCosts
from hf_efficient.measurement.training_settings import Setting
from hf_efficient.tasks import TASKS

NARROW = ["--precision", "fp32", "--attention", "sdpa", "--distil", "off", "--train_steps", "2"]
MEGABYTE = 10**6


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Return a folder with a model whose activations need more memory than everything else."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    set_seed(0)
    sizes = {"num_hidden_layers": 6, "hidden_size": 128, "intermediate_size": 512, "max_position_embeddings": 128}
    return save_model(folder, BertForSequenceClassification(tiny_config(**sizes)))


@pytest.mark.slow
def test_settings_are_measured_and_the_fastest_that_fits_is_recommended(wide, tmp_path, capsys, monkeypatch):
    def run_process(spec, variables):  # a process takes most of its time to start: one of the four is this one
        here = spec.setting == Setting() and not spec.measures_activations
        return measure_training_run(spec) if here else _run_process(spec, variables)

    monkeypatch.setattr(training_costs_command, "_run_process", run_process)
    sizes = ["--train_batch_size", "8", "--train_sequence_length", "128", "--accumulation", "1"]
    command = ["measure", str(wide), "--training", *sizes, *NARROW, "--output_dir", str(tmp_path)]
    assert main([*command, "--checkpointing", "off", "on", "--memory_budget", "1TB"]) == 0
    costs = TrainingCosts.load(tmp_path)
    assert (costs.model, costs.architecture) == ("wide", "BertForSequenceClassification")
    plain, checkpointed = costs.settings
    assert (plain.setting, checkpointed.setting) == (Setting(), Setting(checkpointing=True))
    for row in costs.settings:
        assert row.failure is None
        assert row.samples_per_second == pytest.approx(8e3 / row.step_ms)
        assert row.peak_memory_bytes > row.training_memory_bytes > row.activation_memory_bytes > MEGABYTE
        # At least gradients and the two moments of Adam.
        assert row.training_memory_bytes > 2 * 4 * costs.parameters
    assert checkpointed.activation_memory_bytes < 0.5 * plain.activation_memory_bytes
    assert "Fastest that fits 1.00 TB" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "training_costs.png").stat().st_size > 10_000

    # Saved settings are not measured again, and the smallest is named when nothing fits.
    monkeypatch.setattr(training_costs_command, "run_in_worker", lambda spec: pytest.fail("measured again"))
    assert main([*command, "--checkpointing", "on", "--memory_budget", "1MB"]) == 0
    assert "Nothing fits 1.00 MB; the smallest is: with checkpointing" in " ".join(capsys.readouterr().out.split())
    assert TrainingCosts.load(tmp_path) == costs


def test_failed_setting_is_a_row_and_the_others_are_measured(wide, tmp_path, monkeypatch):
    def run(spec):
        if spec.setting == Setting():
            return TrainingCost(spec.setting, 32, 1000, 500, 250, 10.0, 3200.0)
        return run_in_worker(spec)

    (tmp_path / "failing_worker.py").write_text("raise RuntimeError('no memory')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(training_costs_command, "WORKER_MODULE", "failing_worker")
    monkeypatch.setattr(training_costs_command, "run_in_worker", run)
    settings = (Setting(checkpointing=True), Setting())
    costs = measure_training_costs(str(wide), settings, folder=tmp_path)
    failed, measured = costs.settings
    assert (failed.setting, measured.setting) == settings
    assert failed == TrainingCost(failed.setting, 32, failure="RuntimeError: no memory")
    assert TrainingCosts.load(tmp_path) == costs
    assert costs.recommended(10**9) == (measured,)


def test_failure_reason_is_the_signal_or_the_last_error():
    assert _failure_reason(-9, "half a line") == "ended by SIGKILL: out of memory?"
    assert _failure_reason(1, "Traceback\n  File\nRuntimeError: no memory\n\n") == "RuntimeError: no memory"
    stderr = "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\nand more of it\n[W] a warning at the end\n"
    assert _failure_reason(1, stderr) == "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB"
    assert _failure_reason(3, "") == "ended with status 3"


# Every head has its random batch tested with its task; these have inputs of different shapes.
@pytest.mark.parametrize("head", ["SequenceClassification", "MultipleChoice", "ConditionalGeneration"])
def test_training_run_is_measured(make_model, head, tmp_path):
    make_model(f"{'T5' if head == 'ConditionalGeneration' else 'Bert'}For{head}").save_pretrained(tmp_path)
    task = next(task.name for task in reversed(list(TASKS.values())) if task.head == head)
    setting = Setting(checkpointing=True, accumulation=2, precision="bf16", attention="eager", distillation=True)
    row = measure_training_run(TrainingRunSpec(setting, str(tmp_path), task, 4, 8, 1, 2))
    assert (row.setting, row.micro_batch_size, row.failure) == (setting, 2, None)
    assert row.samples_per_second == pytest.approx(4e3 / row.step_ms)


def test_pickles_are_not_read_for_a_training_run(make_model, tmp_path):
    model = make_model("BertForSequenceClassification")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    spec = TrainingRunSpec(Setting(), str(tmp_path), "text-classification", 4, 8, 1, 2)
    with pytest.raises(OSError, match="safetensors"):
        measure_training_run(spec)


def test_sequence_length_is_at_most_what_the_model_accepts(wide, monkeypatch):
    specs = []
    monkeypatch.setattr(
        training_costs_command, "run_in_worker", lambda spec: specs.append(spec) or TrainingCost(spec.setting, 32)
    )
    costs = measure_training_costs(str(wide), [Setting()], sequence_length=4096)
    assert costs.sequence_length == specs[0].sequence_length == 128


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--training", "--memory_budget", "8"], "memory_budget='8' is not an amount of memory"),
        (["other", "--training"], "--training measures one model, 2 are given"),
        (["--training", "--variants", "float32"], "--variants: only without --training"),
        (["--memory_budget", "8GB", "--distil", "off"], "--memory_budget, --distil: only with --training"),
        (["--training", "--accumulation", "5"], "accumulation=5 does not divide train_batch_size=32"),
        (["--training", "--train_steps", "0"], "train_steps=0 must be at least 1"),
    ],
)
def test_arguments_that_cannot_work_are_refused_before_anything_is_measured(wide, capsys, flags, message):
    assert main(["measure", str(wide), *flags]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_quantized_model_is_refused(wide, tmp_path):
    config = AutoConfig.from_pretrained(wide)
    config.quantization_config = {"quant_method": "torchao", "quant_type": "int8_weight_only"}
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is quantized and cannot be trained: give the float model"):
        measure_training_costs(str(tmp_path), [Setting()])
