"""Commands on sentence embedders: from texts, and pairs to evaluate on, to a small model that is one too."""

import json

import pytest
import torch
from embedders import WORDS, pairs, save_embedder, texts, write_lines, write_rows
from transformers import AutoModel, AutoTokenizer

from hf_efficient import CompressionReport, EfficientTrainer
from hf_efficient.cli import main
from hf_efficient.models.sentence_files import AutoSentenceEmbedder
from hf_efficient.models.sentence_modules import find_sentence_modules

FILES = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json")
FAST = ("--max_steps", "3", "--per_device_train_batch_size", "8", "--learning_rate", "1e-3", "--report_to", "none")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with an embedder, training texts, and pairs with scores."""
    monkeypatch.chdir(tmp_path)
    save_embedder(tmp_path / "model")
    write_lines(tmp_path / "texts.txt", texts(60, seed=3))
    write_rows(tmp_path / "pairs.jsonl", pairs(24, seed=5))
    return tmp_path


def run(command, *flags):
    main([command, *flags])


def on_files(folder, **changes):
    flags = {
        "model_name_or_path": "model",
        "train_file": "texts.txt",
        "validation_file": "pairs.jsonl",
        "output_dir": "out",
        "latency_sequence_length": 8,
        **changes,
    }
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


def test_compress_prunes_distils_and_quantizes_an_embedder(folder):
    flags = on_files(folder, task="sentence-similarity", target_flops=2, scheme="int8_static")
    run("compress", *flags, *FAST)
    for name in FILES:
        assert (folder / "out" / name).read_bytes() == (folder / "model" / name).read_bytes()
    report = CompressionReport.load(folder / "out")
    assert (report.task, report.metric, report.dataset) == ("sentence-similarity", "spearman", "pairs.jsonl")
    assert {"spearman", "pearson", "cosine_mean", "cosine_std"} <= report.row("quantized").metrics.keys()
    assert report.row("student").ratios.flops >= 2
    assert 0 < report.row("student").teacher_agreement < 1
    assert any("sentence embeddings" in stage for stage in report.stages)
    card = (folder / "out" / "README.md").read_text()
    assert "neighbours kept" in card
    assert "SentenceTransformer(name, trust_remote_code=True)" in card
    assert "library_name: sentence-transformers" in card
    model = AutoSentenceEmbedder.from_pretrained(folder / "out")
    assert find_sentence_modules(model).normalizes
    assert type(AutoModel.from_pretrained(folder / "out")) is type(model)


def test_training_batches_hold_texts_of_similar_length(folder, monkeypatch):
    shapes = []
    step = EfficientTrainer.training_step

    def record(trainer, model, inputs, *args, **kwargs):
        shapes.append(inputs["attention_mask"].sum(1).tolist())
        return step(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(EfficientTrainer, "training_step", record)
    write_lines(folder / "texts.txt", texts(64, seed=3))
    run("distill", *on_files(folder, student_layers=1), *FAST, "--num_train_epochs", "1", "--max_steps", "-1")
    lengths = [length for batch in shapes for length in batch]
    assert sum(max(batch) * len(batch) for batch in shapes) < 1.25 * sum(lengths)


def test_a_student_of_fewer_layers_is_a_stock_model(folder):
    run("distill", *on_files(folder, student_layers=1, cache_teacher=True), *FAST)
    assert AutoModel.from_pretrained(folder / "out").config.num_hidden_layers == 1
    assert json.loads((folder / "out" / "config.json").read_text())["model_type"] == "bert"
    assert "SentenceTransformer(name)" in (folder / "out" / "README.md").read_text()


def test_a_narrower_student_has_embeddings_of_its_own_size(folder):
    run("distill", *on_files(folder, student_config="hidden_size=16,num_attention_heads=2"), *FAST)
    pooling = json.loads((folder / "out" / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 16
    assert CompressionReport.load(folder / "out").row("student").teacher_agreement is not None


def test_a_pretrained_student_is_pooled_as_its_teacher(folder):
    save_embedder(folder / "base", seed=1, modules=False, changes={"hidden_size": 16})
    write_lines(folder / "texts.txt", texts(4100, seed=3))  # enough to hold some out, and to stop early
    flags = on_files(folder, model_name_or_path="base", teacher_name_or_path="model", task="sentence-similarity")
    run("distill", *flags, *FAST)
    modules = find_sentence_modules(AutoSentenceEmbedder.from_pretrained(folder / "out"))
    assert (modules.pooling, modules.normalizes, modules.max_seq_length) == (("mean",), True, 24)
    curve = CompressionReport.load(folder / "out").training_curve
    assert len(curve) == 2
    assert all(0 < point.agreement < 1 and point.loss > 0 for point in curve)


def test_a_teacher_with_another_tokenizer_reads_the_texts(folder):
    prompt = {"prompts": {"a": "man "}, "default_prompt_name": "a"}
    save_embedder(folder / "teacher", seed=1, words=reversed(WORDS), changes={"hidden_size": 16}, **prompt)
    run("distill", *on_files(folder, teacher_name_or_path="teacher"), *FAST)
    report = CompressionReport.load(folder / "out")
    main(["measure", "teacher", "--validation_file", "pairs.jsonl", "--output_dir", "alone"])
    expected = CompressionReport.load(folder / "alone").models[0].metrics
    assert report.row("teacher").metrics["spearman"] == pytest.approx(expected["spearman"], abs=1e-5)
    assert report.row("student").teacher_agreement is not None


def test_pairs_with_scores_are_labels_to_train_on(folder):
    flags = on_files(folder, train_file="pairs.jsonl", student_layers=1, cache_teacher=True, hard_label_weight=1)
    run("distill", *flags, *FAST)
    assert any("scores or positives of texts" in stage for stage in CompressionReport.load(folder / "out").stages)


@pytest.mark.parametrize("columns", [("anchor", "positive"), ("query", "positive", "negative")])
def test_texts_with_positives_are_labels_to_train_on(folder, columns, caplog):
    rows = zip(*(texts(24, seed) for seed in range(len(columns))), strict=True)
    write_rows(folder / "triplets.jsonl", [dict(zip(columns, row, strict=True)) for row in rows])
    run("compress", *on_files(folder, train_file="triplets.jsonl", target_flops=1.5), *FAST)
    assert "texts with their positives (contrastive loss)" in caplog.text
    report = CompressionReport.load(folder / "out")
    assert any("scores or positives of texts" in stage for stage in report.stages)
    assert report.final.metrics["spearman"] is not None
    flags = {"train_file": "triplets.jsonl", "validation_file": "triplets.jsonl", "student_layers": 1}
    run("distill", *on_files(folder, **flags, output_dir="distilled"), *FAST)
    assert "spearman" not in CompressionReport.load(folder / "distilled").final.metrics


def test_a_narrower_student_keeps_its_projection_to_the_space_of_the_teacher(folder):
    write_lines(folder / "texts.txt", texts(4100, seed=3))  # enough to hold some out, and to keep the best weights
    changes = {"student_config": "hidden_size=16,num_attention_heads=2", "keep_projection": True}
    run("distill", *on_files(folder, **changes), *FAST)
    model = AutoSentenceEmbedder.from_pretrained(folder / "out")
    assert find_sentence_modules(model).size(16) == 32
    kinds = [entry["type"].rpartition(".")[2] for entry in json.loads((folder / "out" / "modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Normalize", "Dense", "Normalize"]
    library = pytest.importorskip("sentence_transformers").SentenceTransformer(str(folder / "out"), device="cpu")
    tokens = AutoTokenizer.from_pretrained(folder / "out")(texts(5), padding=True, return_tensors="pt")
    with torch.no_grad():
        ours = model.eval()(**tokens).sentence_embedding
    torch.testing.assert_close(torch.tensor(library.encode(texts(5))), ours, atol=1e-5, rtol=0)


def test_a_projection_that_is_not_needed_cannot_be_kept(folder, capsys):
    run("distill", *on_files(folder, student_layers=1, keep_projection=True), *FAST)
    assert "both have the size 32" in capsys.readouterr().err


def test_a_projection_belongs_to_the_weights_that_are_kept(folder, capsys):
    flags = on_files(folder, student_config="hidden_size=16,num_attention_heads=2", keep_projection=True)
    best = ("--load_best_model_at_end", "True", "--eval_strategy", "steps", "--save_strategy", "steps")
    run("distill", *flags, *FAST, *best)
    assert "keep_projection would add the projection of the last one" in capsys.readouterr().err


def test_fine_tuning_needs_no_teacher(folder):
    (folder / "model" / "modules.json").unlink()
    run("compress", *on_files(folder, train_file="pairs.jsonl", task="feature-extraction"), *FAST)
    assert CompressionReport.load(folder / "out").final.metrics["spearman"] is not None
    assert (folder / "out" / "modules.json").is_file()


def test_quantize_and_prune_need_no_training(folder):
    run("quantize", *on_files(folder, scheme="int8_dynamic"))
    run("prune", *on_files(folder, neurons=0.5, output_dir="pruned", vocabulary=True))
    for name in ("out", "pruned"):
        assert (folder / name / "modules.json").is_file()
        assert CompressionReport.load(folder / name).final.metrics["spearman"] is not None


def test_measure_compares_embedders(folder, capsys):
    save_embedder(folder / "other", seed=1, changes={"hidden_size": 16})
    main(["measure", "model", "other", "--validation_file", "pairs.jsonl", "--latency_sequence_length", "8"])
    output = capsys.readouterr().out
    assert "neighbours kept" in output
    assert "spearman" in output


def test_texts_without_scores_are_compared_by_their_neighbours(folder):
    run("quantize", *on_files(folder, scheme="int8_dynamic", validation_file="texts.txt"))
    row = CompressionReport.load(folder / "out").row("quantized")
    assert row.teacher_agreement > 0.5
    assert "spearman" not in row.metrics


def test_near_duplicates_give_a_warning(folder):
    write_lines(folder / "texts.txt", [f"anna sits here in the park {index % 7}" for index in range(500)])
    run("distill", *on_files(folder, student_layers=1), *FAST)
    report = CompressionReport.load(folder / "out")
    assert any("training texts are nearly the same" in stage for stage in report.stages)
    assert "nearly the same" in (folder / "out" / "README.md").read_text()
