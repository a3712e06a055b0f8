"""Retrieval by embedders, from the files of a benchmark."""

import json

import pytest
from embedders import save_embedder, texts, write_rows

from hf_efficient import CompressionReport
from hf_efficient.cli import main
from hf_efficient.errors import UserError
from hf_efficient.tasks.retrieval import read_retrieval_data

FILES = ("queries.jsonl", "corpus.jsonl", "relevance.tsv")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    documents = texts(30)
    write_rows(tmp_path / FILES[0], [{"_id": f"q{i}", "text": text} for i, text in enumerate(documents[:8])])
    write_rows(tmp_path / FILES[1], [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(documents)])
    lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(7)), "q7\td7\t0", "q7\td3\t1"]
    (tmp_path / FILES[2]).write_text("\n".join(lines) + "\n")
    return tmp_path


def test_files_are_read_with_what_answers_what(folder):
    data = read_retrieval_data(*FILES)
    assert data.queries["q0"] == data.corpus["d0"]
    assert data.relevant == {**{f"q{i}": {f"d{i}"} for i in range(7)}, "q7": {"d3"}}


def test_measure_compares_models_also_with_the_documents_of_the_first(folder):
    pytest.importorskip("sentence_transformers")
    save_embedder(folder / "model")
    save_embedder(folder / "other", seed=1)
    flags = [part for name, file in zip(("queries", "corpus", "relevance"), FILES, strict=True)
             for part in (f"--{name}_file", file)]  # fmt: skip
    main(["measure", "model", "other", *flags, "--latency_sequence_length", "8", "--output_dir", "out"])
    first, second = CompressionReport.load(folder / "out").models
    # A query that is a document finds it first, but for those with the same words in it.
    assert first.metrics["mrr@10"] > 0.85
    assert "ndcg@10, documents by the first" in second.metrics
    assert second.metrics["ndcg@10, documents by the first"] < second.metrics["ndcg@10"]
    assert second.ratios.metric_retained == pytest.approx(second.metrics["ndcg@10"] / first.metrics["ndcg@10"])


def test_files_that_do_not_fit_are_refused(folder):
    with pytest.raises(UserError, match="none of its rows"):
        read_retrieval_data(FILES[1], FILES[1].replace("corpus", "queries"), FILES[2])
    (folder / "bad.jsonl").write_text(json.dumps({"key": "a", "text": "b"}))
    with pytest.raises(UserError, match="it has the columns key, text"):
        read_retrieval_data("bad.jsonl", FILES[1], FILES[2])
    with pytest.raises(UserError, match="there is no such file"):
        read_retrieval_data("absent.csv", FILES[1], FILES[2])


def test_one_file_alone_is_not_enough(folder, capsys):
    save_embedder(folder / "model")
    assert main(["measure", "model", "--queries_file", FILES[0]]) == 2
    assert "give --corpus_file, --relevance_file too" in capsys.readouterr().err
