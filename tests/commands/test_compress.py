"""`hf-efficient compress` from the command line to the model that loads: one run for each technique and start."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reviews import flags, save_model, tiny_config, write_reviews
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    TrainingArguments,
    set_seed,
)

from hf_efficient import CompressionReport, DistillationConfig, PruningConfig, QuantizationConfig
from hf_efficient.cli import main
from hf_efficient.commands.config import JobConfig, ModelConfig
from hf_efficient.commands.training_defaults import choose_epochs, complete_training
from hf_efficient.data.config import DataConfig
from hf_efficient.hub.usage import loading_code
from hf_efficient.measurement.formatting import format_ratio

LOAD_WITHOUT_PACKAGE = """
import json, sys
sys.modules["hf_efficient"] = None
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
inputs = tokenizer(["a good film", "an awful film"], padding=True, return_tensors="pt")
with torch.no_grad():
    print(json.dumps(model(**inputs).logits.tolist()))
"""


def compress(job_dir, **changes):
    assert main(["compress", *flags(job_dir, **changes)]) == 0
    return CompressionReport.load(job_dir / "out")


def test_pruned_distilled_and_quantized_model_loads_without_the_package(job_dir, capsys):
    report = compress(job_dir, target_flops=2, scheme="int8_dynamic", rounds=2, dataset_title="film reviews")
    screen = capsys.readouterr().out
    out = job_dir / "out"
    assert [row.role for row in report.models] == ["teacher", "student", "quantized"]
    assert (report.metric, report.task) == ("accuracy", "text-classification")
    assert report.dataset == "film reviews"
    assert report.row("student").ratios.flops >= 2
    assert report.row("student").metrics["accuracy"] > 0.9
    assert format_ratio(report.row("quantized").ratios.speedup) in screen
    assert f"Model, card, report and picture: {out}" in screen
    assert (out / "compression_report.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob("_round-*"))
    assert not list(out.rglob("training_args.bin"))

    card = (out / "README.md").read_text()
    assert "model-index" in card
    assert f"{report.row('quantized').metrics['accuracy']:.4f}" in card
    assert "pip install transformers torch\n" in card
    for sentence in (report.target_note(), report.recommendation()):
        assert sentence in " ".join(screen.split())
        assert sentence in card
    code = loading_code(report, out)
    assert "\n".join(["Load it by:", *code]) in screen
    assert code[-1].replace(str(out), "out") in card
    assert "trust_remote_code=True" in card
    assert str(job_dir) not in card + (out / "compression_report.json").read_text()

    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    inputs = AutoTokenizer.from_pretrained(out)(["a good film", "an awful film"], padding=True, return_tensors="pt")
    logits = model(**inputs).logits
    process = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_PACKAGE, str(out)],
        capture_output=True,
        text=True,
        check=True,
        cwd=job_dir,
    )
    loaded_logits = torch.tensor(json.loads(process.stdout.splitlines()[-1]))
    assert torch.allclose(loaded_logits, logits, atol=1e-6)

    bytes_of_weights = (out / "model.safetensors").stat().st_size
    assert report.row("quantized").bytes_on_disk == bytes_of_weights


def test_finished_run_is_neither_repeated_nor_overwritten_unless_requested(job_dir, capsys):
    arguments = ["compress", *flags(job_dir, layers=0.5, num_train_epochs=1)]
    weights = job_dir / "out" / "model.safetensors"
    assert main(arguments) == 0
    before = weights.stat().st_mtime_ns
    assert main(arguments) == 2
    assert "already contains a model" in capsys.readouterr().err
    assert main([*arguments, "--resume_from_checkpoint", "True"]) == 0
    assert weights.stat().st_mtime_ns == before
    assert main([*arguments, "--overwrite_output_dir"]) == 0
    assert weights.stat().st_mtime_ns != before


def test_plain_fine_tuning_starts_if_there_is_nothing_to_resume(job_dir):
    report = compress(job_dir, num_train_epochs=1, resume_from_checkpoint="True")
    assert [row.role for row in report.models] == ["model"]
    assert report.stages == ["trained for 8 steps"]
    assert report.dataset == "train.csv"
    assert type(AutoModelForSequenceClassification.from_pretrained(job_dir / "out")) is BertForSequenceClassification


def test_model_without_a_head_is_fine_tuned_first(job_dir):
    set_seed(0)
    save_model(job_dir / "base", BertModel(tiny_config(id2label={0: "LABEL_0", 1: "LABEL_1"}, label2id=None)))
    report = compress(job_dir, model_name_or_path=job_dir / "base", layers=0.5)
    assert report.stages[0].startswith("fine-tuned on the same data first")
    assert report.row("teacher").metrics["accuracy"] > 0.9
    assert AutoModelForSequenceClassification.from_pretrained(job_dir / "out").config.label2id == {
        "negative": 0,
        "positive": 1,
    }


def test_a_student_is_trained_long_enough_without_a_flag_that_says_how_long(job_dir, caplog):
    report = compress(job_dir, num_train_epochs=None, learning_rate=None, target_flops=2)
    assert "not given, and chosen for this student: 20 epochs at most (--num_train_epochs, --max_steps)" in caplog.text
    assert "learning rate 0.0001 (--learning_rate)" in caplog.text
    assert any(stage.startswith("trained for 160 steps") for stage in report.stages)


@pytest.mark.parametrize(
    ("rows", "batch", "epochs"), [(67_000, 8, 1), (67_000, 64, 3), (10_000, 64, 19), (500, 8, 20)]
)
def test_epochs_make_as_many_steps_whatever_the_data(rows, batch, epochs):
    args = TrainingArguments(per_device_train_batch_size=batch // 2, gradient_accumulation_steps=2, use_cpu=True)
    assert choose_epochs(args, rows) == epochs


def job_config(pruning, steps, distil=None, given_arguments=frozenset({"max_steps"})):
    return JobConfig(
        ModelConfig("model", distil=distil),
        DataConfig(train_file="train.csv"),
        DistillationConfig(),
        pruning,
        QuantizationConfig(scheme=None),
        TrainingArguments(max_steps=steps, use_cpu=True),
        given_arguments=given_arguments,
    )


@pytest.mark.parametrize(
    ("pruning", "expected"),
    [
        ({}, 5e-5),
        ({"target_speedup": 2.0}, 1e-4),
        ({"target_speedup": 4.0, "latency_runtime": "int8"}, 1e-4),
        ({"target_flops": 20.0}, 5e-4),
        ({"layers": 0.5}, 1e-4),
        ({"heads": 0.5, "neurons": 0.5, "layers": 0.5}, 2e-4),
        ({"neurons": "encoder=0.25,decoder=0.75"}, 7.5e-5),
        ({"layers": "decoder=0.5"}, 5e-5 / 0.75),
        ({"layers": "0.25,decoder=0.75"}, 1e-4),
        ({"weights": 0.9}, 5e-5),
    ],
)
def test_learning_rate_grows_with_what_is_removed(pruning, expected, make_model):
    config = job_config(PruningConfig(**pruning), 1000, distil=True)
    completed = complete_training(config, make_model("T5ForConditionalGeneration"), rows=10_000)
    assert completed.training.learning_rate == pytest.approx(expected)
    assert completed.training.warmup_steps == 0.1
    assert completed.fine_tuning is config.training
    assert config.training.learning_rate == 5e-5


@pytest.mark.parametrize(
    ("pruning", "steps", "expected"),
    [
        ({"target_flops": 8.0}, 1000, 0.3),
        ({"heads": 0.9, "neurons": 0.9}, 1000, 0.3),
        ({"target_flops": 2.0}, 1000, None),
        ({"target_flops": 8.0}, 50, None),
        ({"target_flops": 8.0, "ramp": 0.0}, 1000, 0.0),
        ({"target_flops": 8.0, "rounds": 3}, 1000, None),
        ({"target_flops": 8.0, "rewind": "weights"}, 1000, None),
        ({"target_flops": 8.0, "criterion": "magnitude"}, 1000, None),
        ({"weights": 0.9}, 1000, None),
    ],
)
def test_much_is_removed_gradually_if_there_is_time(pruning, steps, expected, make_model):
    config = job_config(PruningConfig(**pruning), steps)
    assert complete_training(config, make_model(), rows=10_000).pruning.ramp == expected


def test_what_is_given_and_what_learns_from_no_teacher_stays_as_it_is(make_model):
    given = frozenset({"max_steps", "learning_rate", "warmup_steps"})
    config = job_config(PruningConfig(target_flops=8.0, ramp=0.5), 1000, given_arguments=given)
    completed = complete_training(config, make_model(), rows=10_000)
    assert completed.training.to_dict() == config.training.to_dict()
    assert completed.pruning == config.pruning
    for config in (job_config(PruningConfig(), 1000), job_config(PruningConfig(layers=0.5), 9, given_arguments=None)):
        assert complete_training(config, make_model(), rows=10_000) is config


def test_report_says_that_units_were_removed_gradually(job_dir, monkeypatch):
    monkeypatch.setattr("hf_efficient.commands.training_defaults.MIN_RAMP_STEPS", 8)
    report = compress(job_dir, num_train_epochs=2, target_flops=5)
    assert report.stages[0] == "gates closed by fisher during training"
    assert report.configs["pruning"]["ramp"] == 0.3


def test_scheme_alone_trains_nothing(job_dir):
    report = compress(job_dir, scheme="int8_weight_only")
    assert [row.role for row in report.models] == ["teacher", "quantized"]
    assert not any("trained" in stage for stage in report.stages)


def test_numeric_labels_are_a_regression(job_dir):
    set_seed(0)
    save_model(job_dir / "base", BertModel(tiny_config()))
    for name, count in (("train.csv", 64), ("dev.csv", 24)):
        write_reviews(job_dir / name, count, labels=(0.5, 4.5))
    report = compress(job_dir, model_name_or_path=job_dir / "base", layers=0.5, resume_from_checkpoint="False")
    assert report.metric == "spearman"
    teacher, student = report.row("teacher"), report.row("student")
    assert student.metrics["spearman"] > 0.8
    # Of the metric that counts, which is not the first.
    kept = student.metrics["spearman"] / teacher.metrics["spearman"]
    assert student.ratios.metric_retained == pytest.approx(kept, abs=1e-12)
    assert kept != student.metrics["pearson"] / teacher.metrics["pearson"]


def test_script_is_the_command():
    script = Path(__file__).parents[2] / "scripts" / "compress.py"
    process = subprocess.run([sys.executable, str(script), "--heds", "1"], capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.startswith("hf-efficient compress: unknown flag --heds: did you mean --heads")


def test_zero_connections_are_kept_in_a_folder_that_stock_classes_load(job_dir):
    report = compress(job_dir, weights=0.5, criterion="magnitude", rounds=2)
    teacher, student = report.row("teacher"), report.row("student")
    assert student.parameters == teacher.parameters
    assert student.nonzero_parameters < teacher.nonzero_parameters
    assert student.compressed_bytes_on_disk < 0.9 * teacher.compressed_bytes_on_disk
    model = AutoModelForSequenceClassification.from_pretrained(job_dir / "out")
    assert type(model) is BertForSequenceClassification
    assert "neither faster" in " ".join((job_dir / "out" / "README.md").read_text().split())


def test_trimmed_vocabulary_is_reported_next_to_the_untrimmed_teacher(job_dir):
    full_tokenizer = AutoTokenizer.from_pretrained(job_dir / "model")
    report = compress(job_dir, vocabulary=True, target_flops=1.5, cache_teacher=True)
    tokenizer = AutoTokenizer.from_pretrained(job_dir / "out")
    model = AutoModelForSequenceClassification.from_pretrained(job_dir / "out")
    assert model.config.vocab_size == len(tokenizer) < len(full_tokenizer)
    teacher = AutoModelForSequenceClassification.from_pretrained(job_dir / "model")
    kept = f"kept {len(tokenizer)} of {teacher.config.vocab_size} tokens of the vocabulary; in the evaluation data, "
    assert report.stages[0].startswith(kept)
    assert "words fall into more pieces" in report.stages[0]
    assert report.row("teacher").parameters == sum(weight.numel() for weight in teacher.parameters())
    assert report.row("student").metrics["accuracy"] > 0.9
    assert report.row("teacher").metrics["accuracy"] > 0.9


def test_model_without_a_head_can_be_pruned_before_it_is_trained(job_dir):
    base = BertForSequenceClassification.from_pretrained(job_dir / "model").bert
    base.save_pretrained(job_dir / "base")
    AutoTokenizer.from_pretrained(job_dir / "model").save_pretrained(job_dir / "base")
    changes = {"model_name_or_path": job_dir / "base", "neurons": 0.5, "criterion": "snip", "before_training": True}
    report = compress(job_dir, **changes)
    assert report.row("student").metrics["accuracy"] > 0.9
    assert report.row("teacher").metrics == {}
    assert report.row("student").ratios.metric_retained is None
    assert not (job_dir / "out" / "_teacher").exists()
