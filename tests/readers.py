"""What other programs read in a folder with a sentence embedder or a reranker, written down from their sources.

Each function raises AssertionError if its program would not load the folder. The sources, as of 2026:
text-embeddings-inference `router/src/lib.rs` and `backends/ort/src/lib.rs`; fastembed `common/preprocessor_utils.py`
and `text/onnx_text_model.py`; vLLM `transformers_utils/config.py`; sentence-transformers 2.2 and 5 `models/Pooling.py`
and `models/Transformer.py`; Transformers.js `pipelines/feature-extraction.js` and `models.js`.
"""

import json
import sys
from pathlib import Path

import pytest
import transformers
from transformers import CONFIG_MAPPING

COMMON_POOLING = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
OLD_MODULES = {f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize", "Dense")}
# Arguments of the constructors of version 2.2, to which the settings of a module are passed.
OLD_ARGUMENTS = {
    "Pooling": {"word_embedding_dimension", "pooling_mode", *(f"pooling_mode_{mode}" for mode in COMMON_POOLING)},
    "Transformer": {"max_seq_length", "do_lower_case", "model_args", "cache_dir", "tokenizer_args"},
}


def read(folder, path):
    return json.loads((Path(folder) / path).read_text(encoding="utf-8"))


def is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def graph_names(folder):
    """Return the names of the inputs and outputs of the exported graph, in order."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(Path(folder) / "onnx" / "model.onnx", load_external_data=False).graph
    return [value.name for value in graph.input], [value.name for value in graph.output]


def check_text_embeddings_inference(folder, has_graph=True):
    config = read(folder, "config.json")
    assert isinstance(config["model_type"], str)
    assert all(isinstance(name, str) for name in config["architectures"])
    assert is_count(config.get("max_position_embeddings", config.get("n_positions")))
    assert is_count(config.get("pad_token_id", 0))
    assert is_count(config["hidden_size"])
    assert is_count(config["num_hidden_layers"])
    assert (Path(folder) / "tokenizer.json").is_file()
    assert 0 < read(folder, "sentence_bert_config.json")["max_seq_length"] <= config["max_position_embeddings"]
    is_reranker = config["architectures"][0].endswith("Classification")
    if is_reranker:
        assert all(isinstance(label, str) for label in config["id2label"].values())
        assert all(map(is_count, config["label2id"].values()))
    else:
        pooling = read(folder, "1_Pooling/config.json")
        assert all(isinstance(pooling[f"pooling_mode_{mode}"], bool) for mode in COMMON_POOLING)
        assert pooling["pooling_mode_cls_token"] or pooling["pooling_mode_mean_tokens"]
    if has_graph:
        inputs, outputs = graph_names(folder)
        assert {"input_ids", "attention_mask"} <= set(inputs) <= {"input_ids", "attention_mask", "token_type_ids"}
        assert ("logits" if is_reranker else "sentence_embedding") in outputs


def check_fastembed(folder):
    tokenizer = read(folder, "tokenizer_config.json")
    assert is_count(tokenizer["model_max_length"])
    assert 0 < tokenizer["model_max_length"] <= sys.maxsize
    assert tokenizer["pad_token"]
    assert is_count(read(folder, "config.json")["pad_token_id"])
    assert (Path(folder) / "tokenizer.json").is_file()
    assert read(folder, "special_tokens_map.json")
    inputs, outputs = graph_names(folder)
    assert set(inputs) <= {"input_ids", "attention_mask", "token_type_ids"}
    assert outputs[0] in ("last_hidden_state", "logits")  # it takes the first output, whatever its name


def check_vllm(folder):
    """Of models of a stock class: vLLM has its own implementation of these."""
    config = read(folder, "config.json")
    assert hasattr(transformers, config["architectures"][0])
    settings = read(folder, "sentence_bert_config.json")
    assert {"max_seq_length", "do_lower_case"} <= set(settings)
    if config["architectures"][0].endswith("Classification"):
        assert config["sentence_transformers"]["activation_fn"].startswith("torch.nn.modules.")
        return
    types = [module["type"] for module in read(folder, "modules.json")]
    assert "sentence_transformers.models.Pooling" in types
    pooling = read(folder, "1_Pooling/config.json")
    assert [key for key, value in pooling.items() if value is True and key.startswith("pooling_mode_")]


def check_old_sentence_transformers(folder):
    """Of versions 2.2 to 5: classes and arguments that did not exist then raise an error."""
    for module in read(folder, "modules.json"):
        assert module["type"] in OLD_MODULES
        kind = module["type"].rpartition(".")[2]
        file = "sentence_bert_config.json" if kind == "Transformer" else f"{module['path']}/config.json"
        if kind in OLD_ARGUMENTS:
            assert set(read(folder, file)) <= OLD_ARGUMENTS[kind]
    assert is_count(read(folder, "1_Pooling/config.json")["word_embedding_dimension"])


def check_transformers_js(folder):
    """Of models of a stock class: others have a repository of their own for the graph."""
    config = read(folder, "config.json")
    assert config["model_type"] in CONFIG_MAPPING
    assert not config["model_type"].startswith("pruned_")
    assert all((Path(folder) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    _, outputs = graph_names(folder)
    assert outputs[0] in ("last_hidden_state", "logits")
