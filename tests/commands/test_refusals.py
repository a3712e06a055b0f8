"""Input that cannot work gets a sentence and status 2, and nothing is written."""

import pytest
from reviews import flags, save_model, tiny_config, write_reviews
from transformers import BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from hf_efficient.cli import main


def no_label(job_dir):
    (job_dir / "train.csv").write_text("sentence,label\ngood film,positive\nbad film,\n")


def other_labels(job_dir):
    write_reviews(job_dir / "train.csv", 8, labels=("no", "yes"))


def too_many_labels(job_dir):
    write_reviews(job_dir / "train.csv", 8, labels=(0, 7))
    write_reviews(job_dir / "dev.csv", 8, labels=(0, 1))


def no_rows(job_dir):
    (job_dir / "train.csv").write_text("sentence,label\n")


def empty_file(job_dir):
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
    model = BertForSequenceClassification(tiny_config(vocab_size=300))
    save_model(job_dir / "teacher", model, texts=("some other words",))


def teacher_without_weights(job_dir):
    other_teacher(job_dir)
    (job_dir / "teacher" / "model.safetensors").unlink()


def no_tokenizer(job_dir):
    for path in (job_dir / "model").glob("*token*"):
        path.unlink()


def broken_weights(job_dir):
    (job_dir / "model" / "model.safetensors").write_bytes(b"not weights")


def broken_config(job_dir):
    (job_dir / "model" / "config.json").write_text("{")


def unknown_model_type(job_dir):
    (job_dir / "model" / "config.json").write_text("{}")


def output_is_a_file(job_dir):
    (job_dir / "out").write_text("")


BAD_INPUT = {
    "unlabelled row": (no_label, {}, "has no label"),
    "labels of another task": (
        other_labels,
        {},
        "'no', 'yes', which the model does not have",
    ),
    "label out of range": (too_many_labels, {}, "holds the labels 7, which the model does not have"),
    "no row": (no_rows, {}, "train_file='train.csv': it has a header and no rows"),
    "empty file": (empty_file, {}, "'train.csv' is empty"),
    "unknown columns": (
        unknown_columns,
        {},
        "cannot tell which of the columns a, b is the text column: give --text_column",
    ),
    "missing column": (None, {"label_column": "stars"}, "label_column='stars'"),
    "missing file": (None, {"train_file": "missing.csv"}, "'missing.csv' does not exist"),
    "unknown kind of file": (None, {"train_file": __file__}, "has an unknown suffix: give one of .csv"),
    "missing model": (None, {"model_name_or_path": "./missing"}, "model_name_or_path='./missing' does not exist"),
    "missing model on the Hub": (
        None,
        {"model_name_or_path": "nobody/missing"},
        "the config of 'nobody/missing' cannot be loaded",
    ),
    "missing teacher on the Hub": (
        None,
        {"teacher_name_or_path": "nobody/missing"},
        "the config of 'nobody/missing' cannot be loaded",
    ),
    "teacher without weights": (teacher_without_weights, {}, "the model of "),
    "no tokenizer": (no_tokenizer, {}, "model' has no tokenizer"),
    "broken weights": (broken_weights, {}, "the model of "),
    "broken config": (broken_config, {}, "the config of "),
    "unknown model type": (unknown_model_type, {}, "the config of "),
    "unknown family": (unknown_family, {}, "model_type 'gpt2' cannot be pruned: supported are bert, roberta, "),
    "unknown attention": (None, {"attn_implementation": "telepathy"}, "telepathy"),
    "other label map": (other_teacher, {}, "give both the same label map"),
    "other vocabulary": (other_vocabulary, {}, "teacher and student must share one tokenizer"),
    "unreachable target": (None, {"target_flops": 1e6}, "cannot be reached: the smallest shape"),
    "ratio below one": (None, {"target_flops": 0.5}, "requests a larger model"),
    "fraction above one": (None, {"target_flops": None, "heads": 1.2}, "heads='1.2' is not a fraction"),
    "two targets": (None, {"heads": 0.5}, "cannot be combined"),
    "unknown criterion": (None, {"criterion": "luck"}, "criterion='luck' is unknown: give one of fisher, "),
    "unknown scheme": (None, {"scheme": "int3"}, "scheme='int3' is unknown"),
    "unknown task": (None, {"task": "poetry"}, "task='poetry' is not supported"),
    "zero temperature": (None, {"temperature": 0}, "temperature=0.0 is out of range: give 0.01 to 100"),
    "missing configuration file": (None, {"config": "missing.yaml"}, "config='missing.yaml' does not exist"),
    "missing checkpoint": (
        None,
        {"resume_from_checkpoint": "missing"},
        "resume_from_checkpoint='missing' is not a directory",
    ),
    "metric without a value": (None, {"eval_strategy": "epoch", "load_best_model_at_end": True}, "save"),
    "output is a file": (output_is_a_file, {}, "out' cannot be written: "),
    "output below a file": (None, {"output_dir": "train.csv/out"}, "output_dir='train.csv/out' cannot be written"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_gets_a_sentence_and_writes_nothing(job_dir, capsys, monkeypatch, name):
    spoil, changes, sentence = BAD_INPUT[name]
    monkeypatch.chdir(job_dir)
    if spoil is not None:
        spoil(job_dir)
    if (job_dir / "teacher").exists():
        changes = {**changes, "teacher_name_or_path": job_dir / "teacher"}
    files = sorted(job_dir.rglob("*"))
    assert main(["compress", *flags(job_dir, **{"target_flops": 2, **changes})]) == 2
    shown = capsys.readouterr()
    assert sentence in " ".join(shown.err.split())
    assert "Traceback" not in shown.err
    left = [path for path in sorted(job_dir.rglob("*")) if path not in files and path.is_file()]
    assert not left
