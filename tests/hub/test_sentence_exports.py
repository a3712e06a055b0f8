"""Exported embedders and rerankers: names in the graph, sentence-transformers on a runtime, serving without torch."""

import re
import subprocess
import sys

import numpy as np
import pytest
import readers
from embedders import pairs, save_embedder, texts, write_lines, write_rows
from reviews import save_model, tiny_config
from transformers import BertForSequenceClassification, set_seed

from hf_efficient.cli import main
from hf_efficient.hub.onnx_repository import plan_repositories
from hf_efficient.hub.sentence_snippets import PAIRS, TEXTS

pytest.importorskip("onnxruntime")
sentence_transformers = pytest.importorskip("sentence_transformers")
JOB = ("--num_train_epochs", 1, "--report_to", "none", "--save_strategy", "no", "--latency_sequence_length", 8)
JOB = (*JOB, "--export", "onnx", "--export_quantization", "none")
WITHOUT_TORCH = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; exec(sys.stdin.read())"


def compress(folder, teacher, train, dev, *flags):
    """Prune a model and export it, and return the folder with the result."""
    flags = ["--model_name_or_path", teacher, "--train_file", train, "--validation_file", dev, *flags]
    assert main(["compress", *map(str, [*flags, *JOB, "--output_dir", folder / "out"])]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedder")
    prompts = {"query": "anna sings "}
    save_embedder(folder / "teacher", prompts=prompts, default_prompt_name=None, similarity_fn_name="cosine")
    train = write_lines(folder / "train.txt", texts(60))
    dev = write_rows(folder / "dev.jsonl", pairs(12))
    return compress(folder, folder / "teacher", train, dev, "--heads", 0.5)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reranker")
    set_seed(0)
    activation = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    model = BertForSequenceClassification(tiny_config(num_labels=1, sentence_transformers=activation))
    save_model(folder / "teacher", model, texts=texts(20))
    rows = [
        {"query": query, "document": document, "label": number % 2}
        for query in texts(6)
        for number, document in enumerate(texts(4, seed=1))
    ]
    file = write_rows(folder / "rows.jsonl", rows)
    return compress(folder, folder / "teacher", file, file, "--layers", 0.5)


def code_without_torch(folder):
    """Return the code in the card that needs no torch."""
    section = (folder / "README.md").read_text().partition("without torch and transformers")[2]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


def run_without_torch(folder):
    """Return the numbers that the code in the card prints."""
    code = code_without_torch(folder)
    command = [sys.executable, "-c", WITHOUT_TORCH]
    result = subprocess.run(command, input=code, cwd=folder.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return np.array([float(number) for number in re.findall(r"-?\d+\.\d*(?:e-?\d+)?", result.stdout)])


def test_names_in_the_graph_of_an_embedder_are_fixed(embedder):
    assert readers.graph_names(embedder) == (
        ["input_ids", "attention_mask", "token_type_ids"],
        ["last_hidden_state", "sentence_embedding"],
    )
    assert readers.read(embedder, "onnx/config.json")["model_type"] == "bert"


def test_names_in_the_graph_of_a_reranker_are_fixed(reranker):
    assert readers.graph_names(reranker)[1] == ["logits"]


def test_servers_read_the_folder(embedder, reranker):
    for folder in (embedder, reranker):
        readers.check_text_embeddings_inference(folder)
        readers.check_fastembed(folder)
    readers.check_old_sentence_transformers(embedder)
    # One layer is left of the reranker, which is a shape of the stock class; heads of the embedder differ by layer.
    readers.check_vllm(reranker)
    readers.check_transformers_js(reranker)


def test_repository_of_the_graph_is_read_by_transformers_js(embedder, tmp_path):
    companion, main_files = plan_repositories(embedder, "me/small").values()
    assert {"onnx/modules.json", "onnx/runtime_module.py", "1_Pooling/config.json"} <= set(main_files)
    for name, content in companion.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    readers.check_transformers_js(tmp_path)
    readers.check_fastembed(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: sentence-similarity" in card
    assert 'pipeline("feature-extraction", "me/small-ONNX")' in card


def test_sentence_transformer_on_onnx_runtime(embedder):
    loaded = sentence_transformers.SentenceTransformer(str(embedder), trust_remote_code=True)
    with pytest.raises(ValueError, match="trust_remote_code"):
        sentence_transformers.SentenceTransformer(str(embedder / "onnx"))
    exported = sentence_transformers.SentenceTransformer(str(embedder / "onnx"), trust_remote_code=True)
    assert type(exported[0]).__name__ == "RuntimeModule"
    assert (exported.prompts["query"], exported.max_seq_length) == ("anna sings ", 24)
    assert exported.get_embedding_dimension() == loaded.get_embedding_dimension() == 32
    rows = [*texts(5, seed=3), " ".join(["anna"] * 60)]
    for prompt in (None, "query"):
        expected = loaded.encode(rows, prompt_name=prompt)
        np.testing.assert_allclose(exported.encode(rows, prompt_name=prompt), expected, atol=1e-5)


def test_saved_exports_load_again(embedder, tmp_path):
    exported = sentence_transformers.SentenceTransformer(str(embedder / "onnx"), trust_remote_code=True)
    exported.save_pretrained(str(tmp_path / "copy"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "copy"), trust_remote_code=True)
    np.testing.assert_array_equal(again.encode(texts(2)), exported.encode(texts(2)))


def test_cross_encoder_on_onnx_runtime(reranker):
    rows = list(zip(texts(5), texts(5, seed=2), strict=True))
    expected = sentence_transformers.CrossEncoder(str(reranker), trust_remote_code=True).predict(rows)
    exported = sentence_transformers.CrossEncoder(str(reranker / "onnx"), trust_remote_code=True)
    assert type(exported.activation_fn).__name__ == "Sigmoid"
    np.testing.assert_allclose(exported.predict(rows), expected, atol=1e-5)


def test_embedder_is_served_without_torch(embedder):
    assert len(code_without_torch(embedder).splitlines()) <= 15
    loaded = sentence_transformers.SentenceTransformer(str(embedder), trust_remote_code=True)
    expected = loaded.encode([text.strip('"') for text in TEXTS.split(", ")])
    np.testing.assert_allclose(run_without_torch(embedder), expected.ravel(), atol=1e-5)


def test_reranker_is_served_without_torch(reranker):
    loaded = sentence_transformers.CrossEncoder(str(reranker), trust_remote_code=True)
    expected = loaded.predict(list(map(list, re.findall(r'\("(.*?)", "(.*?)"\)', PAIRS))))
    np.testing.assert_allclose(run_without_torch(reranker), expected, atol=1e-5)


def test_card_has_the_code_of_sentence_transformers(embedder):
    card = (embedder / "README.md").read_text()
    assert "library_name: sentence-transformers" in card
    assert "pipeline_tag: sentence-similarity" in card
    assert 'SentenceTransformer(f"{name}/onnx", trust_remote_code=True)' in card
    assert "pip install sentence-transformers transformers torch" in card
