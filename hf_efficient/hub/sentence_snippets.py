"""Python code that runs a compressed embedder or reranker, for its card, also without torch."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedConfig

from hf_efficient.hub.files import REPOSITORY_NAME_COMMENT, read_json
from hf_efficient.hub.usage import needs_remote_code, quoted, sentence_class
from hf_efficient.models.inputs import score_activation

PAIRS, TEXTS = '("a query", "a document"), ("a query", "another document")', '"a text", "another text"'
# The scores of a reranker by the last part of its activation's name; of others the logits are shown.
SCORES = {"Sigmoid": "1 / (1 + np.exp(-logits))", "Identity": "logits"}


def sentence_snippet(config: PreTrainedConfig, folder: Path) -> str:
    """Return code that loads the model in `folder` with sentence-transformers and runs it."""
    loader = sentence_class(config, folder)
    remote = ", trust_remote_code=True" if needs_remote_code(config) else ""
    calls = [f"print(model.predict([{PAIRS}]))"]
    if loader == "SentenceTransformer":
        calls = [f"embeddings = model.encode([{TEXTS}])", "print(model.similarity(embeddings, embeddings))"]
    lines = [
        f"from sentence_transformers import {loader}",
        "",
        f"name = {quoted(folder.resolve().name)}{REPOSITORY_NAME_COMMENT}",
        f"model = {loader}(name{remote})",
        *calls,
    ]
    return "\n".join(lines)


def sentence_export_snippet(config: PreTrainedConfig, folder: Path, export_folder: str) -> str:
    """Return code that loads an export with sentence-transformers; the folder must be on this machine."""
    loader = sentence_class(config, folder)
    lines = [
        f"from sentence_transformers import {loader}",
        "",
        '# name: a folder, such as huggingface_hub.snapshot_download("...") returns; its runtime_module.py is run',
        f'model = {loader}(f"{{name}}/{export_folder}", trust_remote_code=True)',
    ]
    return "\n".join(lines)


def serving_snippet(config: PreTrainedConfig, folder: Path) -> str:
    """Return code that runs the graph in `folder` with ONNX Runtime and tokenizers alone; empty if it has none."""
    if sentence_class(config, folder) is None or not (folder / "onnx" / "model.onnx").is_file():
        return ""
    settings = read_json(folder / "tokenizer_config.json")
    length = int(read_json(folder / "sentence_bert_config.json")["max_seq_length"])
    pad = settings.get("pad_token")
    pad_token = pad["content"] if isinstance(pad, dict) else str(pad)
    if sentence_class(config, folder) == "CrossEncoder":
        texts = PAIRS
        scores = SCORES.get(str(score_activation(config)).rpartition(".")[2], "logits")
        result = ['logits = session.run(["logits"], feed)[0][:, 0]', f"print({scores})"]
    else:
        texts, result = TEXTS, ['print(session.run(["sentence_embedding"], feed)[0])']
    lines = [
        "import numpy as np",
        "import onnxruntime",
        "from tokenizers import Tokenizer",
        "",
        f"folder = {quoted(folder.resolve().name)}  # of a repository: huggingface_hub.snapshot_download(name)",
        'tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")',
        f"tokenizer.enable_truncation({length})",
        f"tokenizer.enable_padding(pad_id={config.pad_token_id or 0}, pad_token={quoted(pad_token)})",
        'session = onnxruntime.InferenceSession(f"{folder}/onnx/model.onnx")',
        f"encodings = tokenizer.encode_batch([{texts}])",
        'names = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}',
        "inputs = {name: np.array([getattr(each, key) for each in encodings]) for name, key in names.items()}",
        "feed = {node.name: inputs[node.name] for node in session.get_inputs()}",
        *result,
    ]
    return "\n".join(lines)
