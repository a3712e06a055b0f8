"""`hf-efficient measure MODEL --training`, in processes of its own."""

import dataclasses

import pytest
from reviews import save_model, tiny_config
from transformers import AutoConfig, BertForSequenceClassification, set_seed

from hf_efficient.cli import main
from hf_efficient.commands import training_costs as training_costs_command
from hf_efficient.commands.training_cost_worker import TrainingRunSpec, measure_training_run
from hf_efficient.commands.training_costs import measure_training_costs, run_in_worker
from hf_efficient.measurement.training_costs import TrainingCost, TrainingCosts
from hf_efficient.measurement.training_settings import Setting
from hf_efficient.tasks import TASKS
from hf_efficient.tasks.random_batch import LABEL_FACTORIES

NARROW = ["--precision", "fp32", "--attention", "sdpa", "--distil", "off", "--train_steps", "2"]
MEGABYTE = 10**6


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A folder with a model whose activations are large beside everything else."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    set_seed(0)
    sizes = {"num_hidden_layers": 6, "hidden_size": 128, "intermediate_size": 512, "max_position_embeddings": 128}
    return save_model(folder, BertForSequenceClassification(tiny_config(**sizes)))


@pytest.mark.slow
def test_settings_are_measured_and_the_fastest_that_fits_is_named(wide, tmp_path, capsys, monkeypatch):
    sizes = ["--train_batch_size", "16", "--train_sequence_length", "128", "--accumulation", "1"]
    command = ["measure", str(wide), "--training", *sizes, *NARROW, "--output_dir", str(tmp_path)]
    assert main([*command, "--checkpointing", "off", "on", "--memory_budget", "1TB"]) == 0
    costs = TrainingCosts.load(tmp_path)
    assert (costs.model, costs.architecture) == ("wide", "BertForSequenceClassification")
    plain, checkpointed = costs.settings
    assert (plain.setting, checkpointed.setting) == (Setting(), Setting(checkpointing=True))
    for row in costs.settings:
        assert row.failure is None
        assert row.samples_per_second == pytest.approx(16e3 / row.step_ms)
        assert row.peak_memory_bytes > row.training_memory_bytes > row.activation_memory_bytes > MEGABYTE
        # Gradients and the two moments of Adam are there, at the least.
        assert row.training_memory_bytes > 2 * 4 * costs.parameters
    assert checkpointed.activation_memory_bytes < 0.5 * plain.activation_memory_bytes
    assert "Fastest that fits 1000.00 GB" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "training_costs.png").stat().st_size > 10_000

    # What is there is not measured again, and the smallest is named when nothing fits.
    monkeypatch.setattr(training_costs_command, "run_in_worker", lambda job: pytest.fail("it was there already"))
    assert main([*command, "--checkpointing", "on", "--memory_budget", "1MB"]) == 0
    assert "None fits 1 MB; the smallest there is: with checkpointing" in " ".join(capsys.readouterr().out.split())
    assert TrainingCosts.load(tmp_path) == costs


@pytest.mark.slow
def test_a_setting_that_fails_is_a_row_and_the_others_go_on(wide, tmp_path, monkeypatch):
    def run(job):
        if job.setting == Setting():
            return TrainingCost(job.setting, 32, 1000, 500, 250, 10.0, 3200.0)
        return run_in_worker(dataclasses.replace(job, task="no task"))

    monkeypatch.setattr(training_costs_command, "run_in_worker", run)
    settings = (Setting(checkpointing=True), Setting())
    costs = measure_training_costs(str(wide), settings, folder=tmp_path)
    failed, measured = costs.settings
    assert (failed.setting, measured.setting) == settings
    assert failed == TrainingCost(failed.setting, 32, failure=failed.failure)
    assert failed.failure.startswith("ValueError: task='no task' is not supported")
    assert TrainingCosts.load(tmp_path) == costs
    assert costs.recommended(10**9) == (measured,)


def test_a_killed_process_is_out_of_memory():
    assert training_costs_command._failure_reason(-9, "half a line") == "ended by SIGKILL: out of memory?"
    assert training_costs_command._failure_reason(1, "Traceback\n  File\nRuntimeError: no memory\n\n") == "RuntimeError: no memory"
    left = "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\nand more of it\n[W] a warning at the end\n"
    assert training_costs_command._failure_reason(1, left) == "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB"
    assert training_costs_command._failure_reason(3, "") == "ended with status 3"


@pytest.mark.parametrize("head", LABEL_FACTORIES)
def test_every_head_is_trained_on_random_data(make_model, head, tmp_path):
    make_model(f"{'T5' if head == 'ConditionalGeneration' else 'Bert'}For{head}").save_pretrained(tmp_path)
    task = next(task.name for task in reversed(list(TASKS.values())) if task.head == f"For{head}")
    setting = Setting(checkpointing=True, accumulation=2, precision="bf16", attention="eager", distillation=True)
    row = measure_training_run(TrainingRunSpec(setting, str(tmp_path), task, 4, 8, 1, 2))
    assert (row.setting, row.micro_batch_size, row.failure) == (setting, 2, None)
    assert row.samples_per_second == pytest.approx(4e3 / row.step_ms)


def test_a_text_is_no_longer_than_the_model_reads(wide, monkeypatch):
    seen = []
    monkeypatch.setattr(training_costs_command, "run_in_worker", lambda job: seen.append(job) or TrainingCost(job.setting, 32))
    costs = measure_training_costs(str(wide), [Setting()], sequence_length=4096)
    assert costs.sequence_length == seen[0].sequence_length == 128


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--training", "--memory_budget", "8"], "memory_budget='8' is no amount of memory"),
        (["other", "--training"], "--training measures one model, 2 are given"),
        (["--training", "--forms", "float32"], "--forms: only without --training"),
        (["--memory_budget", "8GB", "--distil", "off"], "--memory_budget, --distil: only with --training"),
        (["--training", "--accumulation", "5"], "accumulation=5 does not divide train_batch_size=32"),
        (["--training", "--train_steps", "0"], "train_steps=0 must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_said_before_any_work(wide, capsys, flags, message):
    assert main(["measure", str(wide), *flags]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_what_is_in_8_bits_cannot_be_trained(wide, tmp_path):
    config = AutoConfig.from_pretrained(wide)
    config.quantization_config = {"quant_method": "torchao", "quant_type": "int8_weight_only"}
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is quantized already and cannot be trained: measure its float form"):
        measure_training_costs(str(tmp_path), [Setting()])
