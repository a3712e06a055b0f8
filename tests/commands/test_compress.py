import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from reviews import flags, save_model, tiny_config, write_reviews
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    set_seed,
)

from hf_efficient import CompressionReport
from hf_efficient.cli import main, parse_job

FRESH_PROCESS = """
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


def test_the_main_job_ends_in_a_folder_that_loads_elsewhere(job_dir, capsys):
    assert main(["compress", *flags(job_dir, target_flops=2, scheme="int8_dynamic", rounds=2)]) == 0
    screen = capsys.readouterr().out
    out = job_dir / "out"
    report = CompressionReport.load(out)
    assert [row.role for row in report.models] == ["teacher", "student", "quantized"]
    assert report.metric == "accuracy"
    assert report.task == "text-classification"
    assert report.row("student").ratios.flops >= 2
    assert report.row("student").metrics["accuracy"] > 0.9
    assert f"{report.row('quantized').ratios.speedup:.2f}x" in screen
    assert (out / "compression_report.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob("_round-*"))
    assert not list(out.rglob("training_args.bin"))

    card = (out / "README.md").read_text()
    assert "model-index" in card
    assert f"{report.row('quantized').metrics['accuracy']:.4f}" in card
    assert "pip install transformers torch torchao" in card
    assert "trust_remote_code=True" in card
    assert str(job_dir) not in card + (out / "compression_report.json").read_text()

    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    inputs = AutoTokenizer.from_pretrained(out)(["a good film", "an awful film"], padding=True, return_tensors="pt")
    here = model(**inputs).logits.tolist()
    done = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, str(out)], capture_output=True, text=True, check=True, cwd=job_dir
    )
    assert torch.allclose(torch.tensor(json.loads(done.stdout.splitlines()[-1])), torch.tensor(here), atol=1e-6)

    bytes_of_weights = (out / "model.safetensors").stat().st_size
    assert report.row("quantized").bytes_on_disk == bytes_of_weights


def test_a_finished_run_returns_at_once_and_is_not_overwritten(job_dir, capsys):
    arguments = ["compress", *flags(job_dir, layers=0.5, num_train_epochs=1)]
    assert main(arguments) == 0
    before = (job_dir / "out" / "model.safetensors").stat().st_mtime_ns
    assert main(arguments) == 2
    assert "already holds a model" in capsys.readouterr().err
    assert main([*arguments, "--resume_from_checkpoint", "True"]) == 0
    assert (job_dir / "out" / "model.safetensors").stat().st_mtime_ns == before
    assert main([*arguments, "--overwrite_output_dir"]) == 0
    assert (job_dir / "out" / "model.safetensors").stat().st_mtime_ns != before


@pytest.mark.parametrize("said", ["True", "False"])
def test_resuming_where_nothing_is_starts(job_dir, said):
    assert main(["compress", *flags(job_dir, num_train_epochs=1, resume_from_checkpoint=said)]) == 0
    assert CompressionReport.load(job_dir / "out").stages == ["trained for 8 steps"]


def test_a_model_without_a_head_is_fine_tuned_first(job_dir, capsys):
    set_seed(0)
    save_model(job_dir / "base", BertModel(tiny_config(id2label={0: "LABEL_0", 1: "LABEL_1"}, label2id=None)))
    assert main(["compress", *flags(job_dir, model_name_or_path=job_dir / "base", layers=0.5)]) == 0
    report = CompressionReport.load(job_dir / "out")
    assert report.stages[0].startswith("fine-tuned on the same data first")
    assert report.row("teacher").metrics["accuracy"] > 0.9
    assert AutoModelForSequenceClassification.from_pretrained(job_dir / "out").config.label2id == {
        "negative": 0,
        "positive": 1,
    }


def test_without_compression_it_is_plain_fine_tuning(job_dir):
    assert main(["compress", *flags(job_dir)]) == 0
    report = CompressionReport.load(job_dir / "out")
    assert [row.role for row in report.models] == ["model"]
    assert type(AutoModelForSequenceClassification.from_pretrained(job_dir / "out")) is BertForSequenceClassification


def test_the_scheme_alone_trains_nothing(job_dir):
    assert main(["compress", *flags(job_dir, scheme="int8_weight_only")]) == 0
    report = CompressionReport.load(job_dir / "out")
    assert [row.role for row in report.models] == ["teacher", "quantized"]
    assert not any("trained" in stage for stage in report.stages)


def test_regression_is_told_by_its_labels(job_dir):
    set_seed(0)
    save_model(job_dir / "base", BertModel(tiny_config()))
    for name, count in (("train.csv", 64), ("dev.csv", 24)):
        write_reviews(job_dir / name, count, labels=(0.5, 4.5))
    assert main(["compress", *flags(job_dir, model_name_or_path=job_dir / "base", layers=0.5)]) == 0
    report = CompressionReport.load(job_dir / "out")
    assert report.metric == "spearman"
    assert report.row("student").metrics["spearman"] > 0.8
    teacher, student = report.row("teacher"), report.row("student")
    # Of the metric that counts, which is not the first.
    kept = student.metrics["spearman"] / teacher.metrics["spearman"]
    assert student.ratios.metric_retained == pytest.approx(kept, abs=1e-12)
    assert kept != student.metrics["pearson"] / teacher.metrics["pearson"]


def test_the_script_is_the_command(job_dir):
    script = Path(__file__).parents[2] / "scripts" / "compress.py"
    done = subprocess.run([sys.executable, str(script), "--nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--model_name_or_path" in done.stderr


def test_measure_puts_models_side_by_side(job_dir, capsys):
    set_seed(1)
    save_model(job_dir / "other", BertForSequenceClassification(tiny_config(num_hidden_layers=1)))
    command = [
        "measure",
        str(job_dir / "model"),
        str(job_dir / "other"),
        "--validation_file",
        str(job_dir / "dev.csv"),
    ]
    assert main([*command, "--output_dir", str(job_dir / "measured"), "--latency_sequence_length", "16"]) == 0
    report = CompressionReport.load(job_dir / "measured")
    assert [row.name for row in report.models] == ["model", "other"]
    assert report.models[1].ratios.flops == pytest.approx(2, rel=0.05)
    model = AutoModelForSequenceClassification.from_pretrained(job_dir / "other").eval()
    tokenizer = AutoTokenizer.from_pretrained(job_dir / "other")
    rows = load_dataset("csv", data_files=str(job_dir / "dev.csv"), split="train")
    with torch.no_grad():
        found = model(**tokenizer(rows["sentence"][:], padding=True, return_tensors="pt")).logits.argmax(-1).tolist()
    right = sum(model.config.id2label[index] == label for index, label in zip(found, rows["label"], strict=True))
    assert report.models[1].metrics["accuracy"] == right / len(rows)


# ---- bad input: a sentence, status 2, nothing written --------------------------------------------------------------


def no_label(job_dir):
    (job_dir / "train.csv").write_text("sentence,label\ngood film,positive\nbad film,\n")


def other_labels(job_dir):
    write_reviews(job_dir / "train.csv", 8, labels=("no", "yes"))


def too_many_labels(job_dir):
    write_reviews(job_dir / "train.csv", 8, labels=(0, 7))
    write_reviews(job_dir / "dev.csv", 8, labels=(0, 1))


def no_rows(job_dir):
    (job_dir / "train.csv").write_text("sentence,label\n")


def no_bytes(job_dir):
    (job_dir / "train.csv").write_text("")


def unknown_columns(job_dir):
    (job_dir / "train.csv").write_text("a,b\n1,2\n")


def unknown_family(job_dir):
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=200, pad_token_id=0, num_labels=2)
    model = GPT2ForSequenceClassification(config)
    model.config.id2label, model.config.label2id = {0: "negative", 1: "positive"}, {"negative": 0, "positive": 1}
    save_model(job_dir / "model", model)


def other_teacher(job_dir):
    config = tiny_config(id2label={0: "positive", 1: "negative"}, label2id={"positive": 0, "negative": 1})
    save_model(job_dir / "teacher", BertForSequenceClassification(config))


def other_vocabulary(job_dir):
    save_model(job_dir / "teacher", BertForSequenceClassification(tiny_config(vocab_size=300)))


BAD_INPUT = {
    "unlabelled row": (no_label, {}, "rows without a label"),
    "labels of another task": (
        other_labels,
        {},
        "'no', 'yes', which the model does not have: it knows negative, positive",
    ),
    "label out of range": (too_many_labels, {}, "holds the labels 7, the model has only 0 to 1"),
    "no row": (no_rows, {}, "train_file='train.csv' holds no row that can be read"),
    "empty file": (no_bytes, {}, "'train.csv' is empty"),
    "unknown columns": (unknown_columns, {}, "cannot tell which of the columns a, b is which: give --text_column"),
    "missing column": (None, {"label_column": "stars"}, "label_column='stars' is no column of the data, which has"),
    "missing file": (None, {"train_file": "nowhere.csv"}, "'nowhere.csv' does not exist"),
    "unknown kind of file": (None, {"train_file": __file__}, "is of an unknown kind: give one of .csv"),
    "missing model": (None, {"model_name_or_path": "./nowhere"}, "nowhere"),
    "unknown family": (unknown_family, {}, "model_type 'gpt2' cannot be pruned: supported are bert, roberta, "),
    "other label map": (other_teacher, {}, "give both the same label map"),
    "other vocabulary": (other_vocabulary, {}, "vocabulary of 300 tokens and the student one of 200"),
    "unreachable": (None, {"target_flops": 1e6}, "cannot be reached: the smallest shape"),
    "ratio below one": (None, {"target_flops": 0.5}, "requests a larger model"),
    "fraction of all": (None, {"target_flops": None, "heads": 1.2}, "heads='1.2' is not a fraction"),
    "two wishes": (None, {"heads": 0.5}, "cannot be combined"),
    "unknown criterion": (None, {"criterion": "luck"}, "criterion='luck' is unknown: give one of fisher, "),
    "unknown scheme": (None, {"scheme": "int3"}, "scheme='int3' is unknown"),
    "unknown task": (None, {"task": "poetry"}, "task='poetry' is not supported"),
    "no temperature": (None, {"temperature": 0}, "temperature=0.0 must be above 0"),
    "missing recipe": (None, {"config": "nowhere.yaml"}, "config='nowhere.yaml' does not exist"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_gets_a_sentence_and_writes_nothing(job_dir, capsys, monkeypatch, name):
    spoil, changes, sentence = BAD_INPUT[name]
    monkeypatch.chdir(job_dir)
    if spoil is not None:
        spoil(job_dir)
    if (job_dir / "teacher").exists():
        changes = {**changes, "teacher_name_or_path": job_dir / "teacher"}
    assert main(["compress", *flags(job_dir, **{"target_flops": 2, **changes})]) == 2
    shown = capsys.readouterr()
    assert sentence in " ".join(shown.err.split())
    assert "Traceback" not in shown.err
    left = [path for path in (job_dir / "out").rglob("*") if path.is_file()]
    assert not left


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--target_speed", "2"], "unknown flags: --target_speed 2"),
        (["--unheard_of"], "unknown flags: --unheard_of"),
    ],
    ids=["abbreviated", "unknown"],
)
def test_flags_that_are_not_there_are_refused(job_dir, capsys, argv, sentence):
    with pytest.raises(SystemExit) as stop:
        main(["compress", *flags(job_dir), *argv])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


def test_flags_win_over_the_recipe(job_dir):
    (job_dir / "recipe.yaml").write_text("target_speedup: 3\ntemperature: 4\nbf16: false\n")
    job = parse_job([*flags(job_dir, target_speedup=2), "--config", str(job_dir / "recipe.yaml")])
    assert (job.pruning.target_speedup, job.distillation.temperature) == (2.0, 4.0)
    assert job.uses_distillation
    assert job.quantization.scheme is None
    assert not parse_job(flags(job_dir)).uses_distillation
    assert not parse_job([*flags(job_dir, target_speedup=2), "--distil", "False"]).uses_distillation


def test_an_unknown_command_lists_the_commands(capsys):
    assert main(["squeeze"]) == 2
    assert "compress,prune,distill,quantize,export,measure,push,demo" in capsys.readouterr().err
    assert main(["--help"]) == 0


def test_prune_removes_without_training(job_dir, capsys):
    assert main(["prune", *flags(job_dir, target_flops=2, num_train_epochs=None)]) == 0
    report = CompressionReport.load(job_dir / "out")
    assert [row.role for row in report.models] == ["teacher", "student"]
    assert report.row("student").ratios.flops >= 2
    assert not [stage for stage in report.stages if stage.startswith("trained")]
    assert report.configs["training"]["num_train_epochs"] == 0
    assert not list((job_dir / "out").glob("_*"))
    assert "PrunedBertForSequenceClassification" in (job_dir / "out" / "config.json").read_text()


def test_prune_in_rounds_scores_anew_after_each(job_dir):
    assert main(["prune", *flags(job_dir, neurons=0.75, rounds=2, num_train_epochs=None)]) == 0
    stages = CompressionReport.load(job_dir / "out").stages
    assert [stage.split(":")[0] for stage in stages] == [
        f"pruned by fisher, round {n} of 2, corrected by least squares" for n in (1, 2)
    ]
    left = [int(count) for count in stages[-1].partition("heads and ")[2].removesuffix(" neurons").split(", ")]
    assert sum(left) == pytest.approx(32, abs=8)  # a quarter of 128, rounded up to multiples of four in each round


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "nothing is to be pruned"),
        ({"heads": 0.5, "scheme": "int8_dynamic"}, "prune does not quantize"),
        ({"heads": 0.5, "ramp": 0.5}, "happen while training"),
        ({"heads": 0.5, "before_training": True}, "prunes what is not fine-tuned yet"),
        ({"n_m": "3:2"}, "is not a pattern"),
        ({"weights": 0.5, "criterion": "activation"}, "does not score single connections"),
    ],
    ids=str,
)
def test_prune_refuses_what_it_cannot_do(job_dir, capsys, changes, sentence):
    assert main(["prune", *flags(job_dir, num_train_epochs=None, **changes)]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (job_dir / "out" / "config.json").exists()


def test_connections_stay_zero_in_a_folder_that_any_transformers_loads(job_dir):
    assert main(["compress", *flags(job_dir, weights=0.5, criterion="magnitude", rounds=2)]) == 0
    report = CompressionReport.load(job_dir / "out")
    teacher, student = report.row("teacher"), report.row("student")
    assert student.parameters == teacher.parameters
    assert student.nonzero_parameters < teacher.nonzero_parameters
    assert student.compressed_bytes_on_disk < 0.9 * teacher.compressed_bytes_on_disk
    model = AutoModelForSequenceClassification.from_pretrained(job_dir / "out")
    assert type(model) is BertForSequenceClassification
    assert "neither faster" in " ".join((job_dir / "out" / "README.md").read_text().split())


def test_a_trimmed_vocabulary_is_reported_beside_the_whole_teacher(job_dir):
    whole = AutoTokenizer.from_pretrained(job_dir / "model")
    assert main(["compress", *flags(job_dir, vocabulary=True, target_flops=1.5, cache_teacher=True)]) == 0
    report = CompressionReport.load(job_dir / "out")
    tokenizer = AutoTokenizer.from_pretrained(job_dir / "out")
    model = AutoModelForSequenceClassification.from_pretrained(job_dir / "out")
    assert model.config.vocab_size == len(tokenizer) < len(whole)
    assert report.stages[0] == f"kept {len(tokenizer)} tokens of the vocabulary"
    teacher = AutoModelForSequenceClassification.from_pretrained(job_dir / "model")
    assert report.row("teacher").parameters == sum(weight.numel() for weight in teacher.parameters())
    assert report.row("student").metrics["accuracy"] > 0.9
    assert report.row("teacher").metrics["accuracy"] > 0.9


def test_vocabulary_alone_changes_no_prediction(job_dir):
    assert main(["prune", *flags(job_dir, vocabulary=True, num_train_epochs=None)]) == 0
    texts = ["a good film", "the film number 3 was awful"]
    answers = []
    for name in ("model", "out"):
        tokenizer = AutoTokenizer.from_pretrained(job_dir / name)
        model = AutoModelForSequenceClassification.from_pretrained(job_dir / name)
        with torch.no_grad():
            answers.append(model(**tokenizer(texts, padding=True, return_tensors="pt")).logits)
    assert torch.equal(*answers)


def test_a_model_without_a_head_can_be_pruned_before_it_is_trained(job_dir):
    bare = BertForSequenceClassification.from_pretrained(job_dir / "model").bert
    bare.save_pretrained(job_dir / "bare")
    AutoTokenizer.from_pretrained(job_dir / "model").save_pretrained(job_dir / "bare")
    asked = {"model_name_or_path": job_dir / "bare", "neurons": 0.5, "criterion": "snip", "before_training": True}
    assert main(["compress", *flags(job_dir, **asked)]) == 0
    report = CompressionReport.load(job_dir / "out")
    assert report.row("student").metrics["accuracy"] > 0.9
    assert report.row("teacher").metrics == {}
    assert report.row("student").ratios.metric_retained is None
    assert not (job_dir / "out" / "_teacher").exists()
