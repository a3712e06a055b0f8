"""Rerankers of sentence-transformers: compressed by the command line, loaded and used by `CrossEncoder`."""

import json

import pytest
import torch
from reviews import save_model, tiny_config
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification, set_seed

from hf_efficient import CompressionReport
from hf_efficient.cli import main

sentence_transformers = pytest.importorskip("sentence_transformers")
WORDS = "anna wolf ran sat in berlin paris the park who where it rains snows"
NAMES, PLACES = ("anna", "wolf", "it"), ("berlin", "paris", "the park")
PAIRS = [("where anna ran", "anna ran in paris"), ("who sat", "it rains in the park"), ("who ran", "wolf ran")]
ACTIVATIONS = {"sigmoid": torch.nn.Sigmoid(), "identity": torch.nn.Identity()}


def write_rows(path, count, relevant=None):
    """Write three documents for each query; the relevant one has the name of the query, or that of this number."""
    rows = []
    for q in range(count):
        best = q % 3 if relevant is None else relevant
        rows += [
            {
                "query": f"where {NAMES[q % 3]} ran",
                "document": f"{name} ran in {PLACES[q % 2]}",
                "label": int(d == best),
            }
            for d, name in enumerate(NAMES)
        ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module", params=ACTIVATIONS)
def reranker(request, tmp_path_factory):
    """Return the folder of a CrossEncoder and its activation."""
    folder = tmp_path_factory.mktemp("reranker")
    set_seed(0)
    save_model(folder / "base", BertForSequenceClassification(tiny_config(num_labels=1)), (WORDS,))
    activation = ACTIVATIONS[request.param]
    model = sentence_transformers.CrossEncoder(str(folder / "base"), activation_fn=activation, max_length=24)
    model.save_pretrained(str(folder / "teacher"))
    return folder / "teacher", activation


def our_scores(folder, activation):
    """Return what the model in `folder` gives the pairs, without sentence-transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    queries, documents = zip(*PAIRS, strict=True)
    with torch.no_grad():
        logits = model(**tokenizer(queries, documents, padding=True, return_tensors="pt")).logits
    return activation(logits[:, 0])


def test_result_is_a_cross_encoder_with_the_same_activation(reranker, tmp_path):
    teacher, activation = reranker
    out = tmp_path / "out"
    flags = ["--model_name_or_path", teacher, "--train_file", write_rows(tmp_path / "train.jsonl", 12)]
    flags += ["--validation_file", write_rows(tmp_path / "dev.jsonl", 5), "--output_dir", out, "--max_length", 24]
    flags += ["--heads", 0.5, "--scheme", "int8_static", "--num_train_epochs", 1, "--report_to", "none"]
    flags += ["--margin_weight", 0.5, "--logits_weight", 0, "--gradient_accumulation_steps", 2]
    flags += ["--save_strategy", "no", "--latency_sequence_length", 8]
    assert main(["compress", *map(str, flags)]) == 0

    report = CompressionReport.load(out)
    assert (report.task, report.metric) == ("text-ranking", "ndcg@10")
    assert any("differences between documents of a query" in stage for stage in report.stages)
    assert all(set(row.metrics) >= {"ndcg@10", "mrr@10"} for row in report.models)
    assert report.models[-1].retained_intervals["ndcg@10"].unit == "queries"
    card = (out / "README.md").read_text()
    assert "pipeline_tag: text-ranking" in card
    assert "CrossEncoder(name, trust_remote_code=True)" in card

    loaded = sentence_transformers.CrossEncoder(str(out), trust_remote_code=True)
    assert type(loaded.activation_fn) is type(activation)
    assert loaded.max_seq_length == 24
    scores = torch.from_numpy(loaded.predict(PAIRS))
    torch.testing.assert_close(scores, our_scores(out, activation), atol=1e-5, rtol=1e-5)

    flags = ["--validation_file", tmp_path / "dev.jsonl", "--output_dir", tmp_path / "measured", "--max_length", 24]
    flags += ["--trust_remote_code", "--latency_sequence_length", 8]
    assert main(["measure", str(teacher), str(out), *map(str, flags)]) == 0
    measured = CompressionReport.load(tmp_path / "measured")
    for row, expected in zip(measured.models, (report.row("teacher"), report.row("quantized")), strict=True):
        assert row.metrics["ndcg@10"] == pytest.approx(expected.metrics["ndcg@10"])


def test_a_reranker_that_is_only_copied_scores_as_its_teacher(reranker, tmp_path):
    teacher, activation = reranker
    flags = [
        "--model_name_or_path",
        str(teacher),
        "--scheme",
        "int8_weight_only",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert main(["quantize", *flags]) == 0
    first, second = (
        sentence_transformers.CrossEncoder(str(folder), trust_remote_code=True)
        for folder in (teacher, tmp_path / "out")
    )
    assert type(second.activation_fn) is type(activation)
    difference = abs(first.predict(PAIRS) - second.predict(PAIRS)).max()
    assert 0 < difference < 0.01  # of 8 bits


def test_a_base_model_becomes_a_reranker(tmp_path):
    set_seed(0)
    save_model(tmp_path / "base", BertForSequenceClassification(tiny_config()).bert, (WORDS,))
    flags = ["--model_name_or_path", tmp_path / "base", "--output_dir", tmp_path / "out"]
    flags += ["--train_file", write_rows(tmp_path / "train.jsonl", 40, relevant=1)]
    flags += ["--validation_file", write_rows(tmp_path / "dev.jsonl", 6, relevant=1)]
    flags += ["--num_train_epochs", 3, "--learning_rate", 5e-3, "--report_to", "none", "--save_strategy", "no"]
    assert main(["compress", *map(str, flags)]) == 0
    assert CompressionReport.load(tmp_path / "out").final.metrics["ndcg@10"] == 1
    loaded = sentence_transformers.CrossEncoder(str(tmp_path / "out"))
    assert isinstance(loaded.activation_fn, torch.nn.Sigmoid)
    assert loaded.rank("where anna ran", [f"{name} ran in paris" for name in NAMES])[0]["corpus_id"] == 1
