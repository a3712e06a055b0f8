"""Tests of which files are pushed and deleted, and of the minimal card."""

import json

import pytest
from huggingface_hub import ModelCard

from hf_efficient.errors import UserError
from hf_efficient.hub import onnx_repository
from hf_efficient.hub.files import (
    collect_files,
    file_size_bytes,
    find_stale_files,
    minimal_card,
    pipeline_tag,
    read_json,
)
from hf_efficient.hub.onnx_repository import transformers_js_files


def config(**fields):
    return json.dumps(fields).encode()


def test_stale_files_are_weights_and_exports_that_are_not_pushed():
    remote = {
        "onnx/export.json",
        "onnx/model.onnx",
        "onnx/old.onnx",
        "notes/onnx/old.onnx",
        "model-00001-of-00002.safetensors",
        "model.safetensors",
        "LICENSE",
    }
    pushed = dict.fromkeys(("onnx/export.json", "onnx/model.onnx", "model.safetensors"), b"")
    assert find_stale_files(remote, pushed) == ["model-00001-of-00002.safetensors", "onnx/old.onnx"]


@pytest.mark.parametrize(
    ("architecture", "tag"),
    [
        ("PrunedBertForSequenceClassification", "text-classification"),
        ("T5ForConditionalGeneration", "text2text-generation"),
        ("BertModel", None),
    ],
)
def test_pipeline_tag_is_that_of_the_architecture(architecture, tag):
    contents = {"config.json": config(architectures=[architecture])}
    assert pipeline_tag(contents) == tag
    assert ModelCard(minimal_card(contents, "A text.")).data.pipeline_tag == tag


def test_pipeline_tag_of_the_card_is_preferred(tmp_path):
    (tmp_path / "README.md").write_text("---\npipeline_tag: summarization\n---\n")
    contents = {
        "config.json": config(architectures=["T5ForConditionalGeneration"]),
        "README.md": tmp_path / "README.md",
    }
    assert pipeline_tag(contents) == "summarization"


def test_read_json_returns_an_object_for_any_content(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    assert read_json(None) == read_json(tmp_path / "list.json") == {}
    assert read_json(b'{"a": 1}') == {"a": 1}


def test_file_size_is_that_of_the_content(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert file_size_bytes(tmp_path / "file") == file_size_bytes(b"12345") == 5


@pytest.fixture
def exported_contents(tmp_path):
    """The files of a folder with an ONNX export."""
    (tmp_path / "onnx").mkdir()
    files = {"model.onnx": b"graph", "config.json": b"{}", "export.json": b'{"components": {"model": {}}}'}
    for name, data in files.items():
        (tmp_path / "onnx" / name).write_bytes(data)
    return {f"onnx/{name}": tmp_path / "onnx" / name for name in files}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("MAX_ONNX_FILE_BYTES", 1, "an ONNX file holds at most 2 GB"),
        ("find_spec", lambda name: None, "pip install onnx"),
    ],
)
def test_export_that_transformers_js_cannot_read_is_a_warning(exported_contents, monkeypatch, name, value, reason):
    warnings = []
    monkeypatch.setattr(onnx_repository.logger, "warning", warnings.append)
    monkeypatch.setattr(onnx_repository, name, value)
    assert transformers_js_files(exported_contents) == {}
    assert [warning.rpartition(": ")[2] for warning in warnings] == [reason]


@pytest.mark.parametrize("graph", [b"graph", b"\xff" * 50])
def test_damaged_export_is_a_user_error(exported_contents, graph):
    pytest.importorskip("onnx")
    exported_contents["onnx/model.onnx"].write_bytes(graph)
    with pytest.raises(UserError, match=r"model\.onnx cannot be read .*: export the model again"):
        transformers_js_files(exported_contents)


def test_exports_of_several_components_are_not_for_transformers_js(exported_contents):
    exported_contents["onnx/export.json"] = b'{"components": {"encoder": {}, "prefill": {}, "decode": {}}}'
    assert transformers_js_files(exported_contents) == {}


@pytest.fixture
def model_dir(tmp_path):
    """A folder with the two files that a model needs."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    (tmp_path / "out" / "model.safetensors").write_bytes(b"x")
    return tmp_path / "out"


@pytest.mark.parametrize(
    "name",
    [
        "data.PKL",
        "weights.Bin",
        "model.joblib",
        "arrays.npz",
        "arrays.npy",
        "credentials.json",
        "Credentials.JSON",
        "client_secret.json",
        "token.json",
        "hf_token.txt",
        "id_rsa",
        "key.pem",
        "service-account.json",
        "train.csv",
        "run.sh",
        "archive.zip",
        "notes/passwords.txt",
    ],
)
def test_only_files_of_a_model_are_pushed(model_dir, name):
    (model_dir / name).parent.mkdir(exist_ok=True)
    (model_dir / name).write_bytes(b"x")
    assert collect_files(model_dir).keys() == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("is_folder", [False, True])
def test_links_are_not_followed(model_dir, tmp_path, is_folder):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "vocab.txt").write_text("private")
    target = tmp_path / "elsewhere" if is_folder else tmp_path / "elsewhere" / "vocab.txt"
    (model_dir / ("more" if is_folder else "vocab.txt")).symlink_to(target)
    assert collect_files(model_dir).keys() == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("text", ["{", "", '{"auto_map": ', "\x00", "[" * 100_000])
def test_damaged_config_of_a_folder_is_a_user_error(model_dir, text):
    (model_dir / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json is not valid JSON"):
        collect_files(model_dir)
