"""Configs, tokenizers and weights that are damaged or hostile end in a sentence, before much is built from them."""

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from hf_efficient import QuantizationConfig, quantize
from hf_efficient.commands.compare_models import compare_models
from hf_efficient.commands.pretrained import load_config, load_model, load_tokenizer
from hf_efficient.data.config import DataConfig
from hf_efficient.errors import UserError
from hf_efficient.models import loading

OVERLAP = {
    name: {"dtype": "F32", "shape": [4], "data_offsets": [start, start + 16]} for name, start in (("a", 0), ("b", 8))
}
HEADER = json.dumps(OVERLAP)


def load(folder):
    load_model(AutoModelForSequenceClassification, str(folder), config=load_config(str(folder)))
    load_tokenizer(str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 10**12},
        {"vocab_size": 10**30},
        {"vocab_size": 1 << 25},
        {"hidden_size": 10**9},
        {"hidden_size": 32.0},
        {"hidden_size": "32"},
        {"num_hidden_layers": 10**6},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": None},
        {"num_labels": 10**9},
        {"max_position_embeddings": 10**12},
        {"type_vocab_size": 10**12},
        {"intermediate_size": 10**12},
        {"intermediate_size": 1 << 20},
        {"num_hidden_layers": 256, "intermediate_size": 1 << 12},
        {"num_attention_heads": 0},
        {"num_attention_heads": 3},
        {"hidden_act": "evil"},
        {"pad_token_id": 10**9},
        {"dtype": "evil"},
        {"layer_norm_eps": "x"},
        {"auto_map": 3},
        {"model_type": "bert\n"},
    ],
    ids=str,
)
def test_config(review_model_dir, tmp_path, changes):
    folder = shutil.copytree(review_model_dir, tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))
    start = time.process_time()
    with pytest.raises(UserError, match="cannot be loaded: "):
        load(folder)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[" * 100_000),
        ("config.json", "[]"),
        ("config.json", ""),
        ("config.json", '{"model_type": "bert", "vocab_size": \u0661\u0662}'),
        ("config.json", '{"model_type": "bert", "vocab_size": ' + "9" * 5000 + "}"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "[" * 100_000),
        ("tokenizer.json", '{"version": "1.0"}'),
        ("tokenizer.json", ""),
        ("model.safetensors", ""),
        ("model.safetensors", (1 << 62).to_bytes(8, "little").decode("latin-1") + "{}"),
        (
            "model.safetensors",
            len(HEADER).to_bytes(8, "little").decode("latin-1") + HEADER + "\0" * 24,
        ),
    ],
    ids=range(12),
)
def test_file(review_model_dir, tmp_path, file, content):
    folder = shutil.copytree(review_model_dir, tmp_path / "model")
    encoding = "latin-1" if file == "model.safetensors" else "utf-8"
    (folder / file).write_bytes(content.encode(encoding))
    with pytest.raises(UserError, match="cannot be loaded: "):
        load(folder)


@pytest.mark.parametrize("index", ["[]", "{}", json.dumps({"weight_map": {"a": 3}})])
def test_index_of_weights(review_model_dir, tmp_path, index):
    folder = shutil.copytree(review_model_dir, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match="cannot be loaded: its files are damaged"):
        load(folder)


@pytest.mark.parametrize("place", ["../other/model.safetensors", "sub/../../other/model.safetensors", "absolute"])
def test_index_of_weights_elsewhere(review_model_dir, tmp_path, place):
    folder = shutil.copytree(review_model_dir, tmp_path / "model")
    shutil.copytree(review_model_dir, tmp_path / "other")
    (folder / "sub").mkdir()
    place = str(tmp_path / "other" / "model.safetensors") if place == "absolute" else place
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), place)}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="is not in the folder of the model: it is not read"):
        load(folder)


def test_index_of_weights_that_is_not_damaged(review_model_dir, tmp_path):
    folder = shutil.copytree(review_model_dir, tmp_path / "model")
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(folder, max_shard_size="10KB")
    (folder / "model.safetensors").unlink()
    load(folder)


@pytest.mark.parametrize(
    ("scheme", "changes", "message"),
    [
        ("codebook", {"bits": 8, "group": 1}, "have other shapes than its config.json"),
        ("codebook", {"bits": 2}, "have other shapes than its config.json"),
        ("int8_dynamic", {"outliers": 3}, "outlier"),
    ],
)
def test_settings_of_weights_that_do_not_belong_to_them(review_model_dir, tmp_path, scheme, changes, message):
    model = AutoModelForSequenceClassification.from_pretrained(review_model_dir)
    quantize(model, QuantizationConfig(scheme)).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    modules = values["codebooks"] if scheme == "codebook" else values["int8"]["linears"]
    modules["encoder.layer.0.attention.output.dense"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        load_model(AutoModelForSequenceClassification, str(tmp_path))


def test_tables_of_codebooks_are_bounded_by_the_weights(review_model_dir, tmp_path, monkeypatch):
    model = AutoModelForSequenceClassification.from_pretrained(review_model_dir)
    quantize(model, QuantizationConfig("codebook")).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["codebooks"] = {name: {"bits": 8, "group": 1} for name in values["codebooks"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    monkeypatch.setattr(loading, "SMALL_MODEL", 0)
    with pytest.raises(UserError, match=r"asks for .* numbers, and the files of the weights hold"):
        load_model(AutoModelForSequenceClassification, str(tmp_path))


def test_model_that_is_not_damaged(review_model_dir):
    load(review_model_dir)


def test_weights_that_are_not_there_are_not_random(review_model_dir, tmp_path):
    folder = shutil.copytree(review_model_dir, tmp_path / "incomplete")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if ".layer.0." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"no weights for {len(weights) - len(kept)} of the tensors .* incomplete"):
        load(folder)


def test_pickles_are_not_read(review_model_dir, tmp_path):
    folder = shutil.copytree(review_model_dir, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        load(folder)


def test_a_head_without_weights_is_not_measured(review_model_dir, tmp_path):
    folder = shutil.copytree(review_model_dir, tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    rows = tmp_path / "rows.csv"
    labels = list(load_config(str(folder)).id2label.values())
    rows.write_text("text,label\n" + "".join(f"good film,{label}\n" for label in labels))
    with pytest.raises(UserError, match=r"no weights for classifier.bias, classifier.weight: its accuracy"):
        compare_models([str(folder)], DataConfig(validation_file=str(rows)), 1, 8)
