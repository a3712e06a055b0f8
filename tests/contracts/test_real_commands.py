"""Commands on files and models as people have them: what they say, and what they write."""

import json
import shutil

import pytest
import torch
from reviews import flags, save_model
from transformers import T5Config, T5ForConditionalGeneration, set_seed

from hf_efficient import PruningConfig, prune
from hf_efficient.cli import main
from hf_efficient.errors import UserError

SUMMARIES = [
    {"document": "the good film", "summary": "the film was good " * 10},
    {"document": "the bad film", "summary": "bad film"},
]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) if isinstance(rows, list) else rows)
    return path


def t5_folder(folder):
    set_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "num_heads": 2, "num_layers": 1, "d_ff": 32, "vocab_size": 200}
    special = {"pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0}
    return save_model(folder, T5ForConditionalGeneration(T5Config(**sizes, **special)))


def test_measure_says_what_it_understood(job_dir, tmp_path, caplog):
    arguments = ["--validation_file", tmp_path / "dev.csv", "--max_length", 6, "--output_dir", tmp_path / "report"]
    assert main(["measure", str(job_dir / "model"), *map(str, arguments), "--latency_sequence_length", "8"]) == 0
    line = next(message for message in caplog.messages if message.startswith("text-classification: "))
    assert "texts in 'sentence'; labels in 'label'; 2 classes (negative 12, positive 12; evaluation)" in line
    assert "100.0% of the texts truncated to 6" in line


def test_measure_counts_truncated_targets_and_names_how_rouge_is_computed(tmp_path, caplog):
    folder, file = t5_folder(tmp_path / "model"), write(tmp_path / "dev.jsonl", SUMMARIES)
    arguments = ["--validation_file", file, "--max_target_length", 16, "--output_dir", tmp_path / "report"]
    assert main(["measure", str(folder), *map(str, arguments), "--latency_sequence_length", "8"]) == 0
    line = next(message for message in caplog.messages if message.startswith("summarization: "))
    assert "50.0% of the evaluation targets truncated to 16 (--max_target_length)" in line
    report = json.loads((tmp_path / "report" / "compression_report.json").read_text())
    assert report["configs"]["metrics"]["rouge"].startswith("F1, words of all scripts")


def test_training_counts_truncated_targets(tmp_path, caplog):
    t5_folder(tmp_path / "model")
    train, dev = write(tmp_path / "t.jsonl", SUMMARIES), write(tmp_path / "d.jsonl", SUMMARIES[1:])
    arguments = flags(tmp_path, train_file=train, validation_file=dev, max_steps=1, max_target_length=16)
    assert main(["compress", *arguments, "--label_smoothing_factor", "0.1"]) == 0
    line = next(message for message in caplog.messages if message.startswith("summarization: "))
    assert "50.0% of the training targets and 0.0% of the evaluation targets truncated to 16" in line
    report = json.loads((tmp_path / "out" / "compression_report.json").read_text())
    assert "rouge_score" in report["configs"]["metrics"]["rouge"]


def test_tokenizer_can_be_named(job_dir, tmp_path, capsys):
    shutil.copytree(job_dir / "model", tmp_path / "tokenizer", ignore=shutil.ignore_patterns("model*", "config*"))
    for file in (job_dir / "model").glob("*token*"):
        file.unlink()
    assert main(["compress", *flags(job_dir, max_steps=1)]) == 2
    assert "or name it with --tokenizer_name" in " ".join(capsys.readouterr().err.split())
    assert main(["compress", *flags(job_dir, max_steps=1, tokenizer_name=tmp_path / "tokenizer")]) == 0
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    named = ["--tokenizer_name", str(tmp_path / "tokenizer"), "--latency_sequence_length", "8"]
    assert main(["measure", str(job_dir / "model"), "--validation_file", str(job_dir / "dev.csv"), *named]) == 0


def test_weights_that_are_far_too_large_are_refused_with_the_reason(make_model, make_batch):
    model = make_model("BertForSequenceClassification")
    with torch.no_grad():
        for parameter in model.bert.encoder.layer[0].parameters():
            parameter.mul_(1e30)
    with pytest.raises(UserError, match=r"cannot be reconstructed.*its weights are far too large"):
        prune(model, PruningConfig(heads=0.5, neurons=0.5, criterion="magnitude"), [make_batch(labelled=True)])


def test_lists_of_batches_are_refused_for_the_metrics_of_the_tasks(job_dir, capsys):
    assert main(["compress", *flags(job_dir, eval_do_concat_batches=False)]) == 2
    assert "eval_do_concat_batches=False gives the metric a list of batches" in " ".join(
        capsys.readouterr().err.split()
    )
