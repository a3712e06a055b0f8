"""Sentence embedders: their embeddings are those of sentence-transformers, and their files are kept."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from embedders import save_embedder, texts, write_modules
from transformers import AutoModel, AutoTokenizer

from hf_efficient import PruningConfig, QuantizationConfig, prune, quantize
from hf_efficient.errors import UserError
from hf_efficient.models.sentence_files import (
    AutoSentenceEmbedder,
    build_sentence_modules,
    has_sentence_modules,
    read_sentence_modules,
)
from hf_efficient.models.sentence_modules import find_sentence_modules, pool

WITH_DENSE = ("Transformer", "Pooling", "Dense", "Normalize")
MODULE_FILES = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json")
# In a process that cannot import this package.
ENCODE = """
import json, sys
sys.modules["hf_efficient"] = None
from sentence_transformers import SentenceTransformer
for folder in sys.argv[2:]:
    model = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    print(json.dumps(model.encode(json.loads(sys.argv[1]), batch_size=3).tolist()))
"""


def embed(folder, rows):
    model, tokenizer = AutoSentenceEmbedder.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(rows, padding=True, return_tensors="pt")).sentence_embedding


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("kinds", [("Transformer", "Pooling"), WITH_DENSE], ids=["pooling", "dense"])
def test_embeddings_are_those_of_sentence_transformers(tmp_path, pooling, kinds):
    library = pytest.importorskip("sentence_transformers")
    save_embedder(tmp_path, pooling=pooling, kinds=kinds)
    expected = library.SentenceTransformer(str(tmp_path), device="cpu").encode(texts(7), convert_to_tensor=True)
    torch.testing.assert_close(embed(tmp_path, texts(7)), expected)


def test_last_token_is_the_last_that_is_no_padding():
    hidden, mask = torch.arange(12.0).view(2, 3, 2), torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert pool("lasttoken", hidden, mask).tolist() == [[2, 3], [10, 11]]
    assert pool("cls", hidden, mask).tolist() == [[0, 1], [8, 9]]


@pytest.fixture
def embedder(tmp_path):
    return AutoSentenceEmbedder.from_pretrained(save_embedder(tmp_path / "model", kinds=WITH_DENSE)).eval()


def test_what_is_made_of_an_embedder_is_one(embedder):
    batch = {"input_ids": torch.randint(5, 100, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.long)}
    expected = embedder(**batch).sentence_embedding
    student = prune(embedder, PruningConfig(heads=0.5, neurons=0.5, criterion="magnitude"))
    for model in (copy.deepcopy(embedder), student, quantize(student, QuantizationConfig("int8_dynamic"))):
        assert find_sentence_modules(model) is find_sentence_modules(embedder)
        assert model(**batch).sentence_embedding.shape == expected.shape
    assert torch.equal(copy.deepcopy(embedder)(**batch).sentence_embedding, expected)


def test_padding_has_no_effect_however_the_mask_is_given(embedder):
    ids, mask = torch.randint(5, 100, (1, 6)), torch.tensor([[1, 1, 1, 1, 0, 0]])
    alone = embedder(ids[:, :4]).sentence_embedding
    torch.testing.assert_close(embedder(ids, mask).sentence_embedding, alone)
    torch.testing.assert_close(embedder(ids, attention_mask=mask).sentence_embedding, alone)


def test_files_of_the_modules_are_kept_byte_for_byte(embedder, tmp_path):
    student = prune(embedder, PruningConfig(neurons=0.5, criterion="magnitude"))
    student.save_pretrained(tmp_path / "student")
    for name in (*MODULE_FILES, "2_Dense/model.safetensors", "2_Dense/config.json"):
        assert (tmp_path / "student" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    assert type(AutoModel.from_pretrained(tmp_path / "student")).__name__ == type(student).__name__


@pytest.mark.slow
def test_another_process_encodes_as_we_do(embedder, tmp_path):
    pytest.importorskip("sentence_transformers")
    student = prune(embedder, PruningConfig(heads=0.5, neurons=0.3, criterion="magnitude"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    folders = [str(tmp_path / name) for name in ("student", "int8")]
    for model, folder in zip((student, quantize(student, QuantizationConfig("int8_dynamic"))), folders, strict=True):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    command = [sys.executable, "-c", ENCODE, json.dumps(texts(7)), *folders]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    for folder, expected in zip(folders, output.splitlines()[-2:], strict=True):
        torch.testing.assert_close(embed(folder, texts(7)), torch.tensor(json.loads(expected)))


def test_a_model_without_modules_has_mean_pooling(tmp_path):
    save_embedder(tmp_path, modules=False)
    assert not has_sentence_modules(tmp_path)
    model = AutoSentenceEmbedder.from_pretrained(tmp_path)
    assert find_sentence_modules(model).pooling == ("mean",)


def test_new_modules_are_read_as_they_were_built(tmp_path):
    save_embedder(tmp_path / "model", modules=False)
    build_sentence_modules(32, ("cls",), is_normalized=True).write(tmp_path / "model")
    read = read_sentence_modules(tmp_path / "model")
    assert read.pooling == ("cls",)
    assert read.normalizes
    library = pytest.importorskip("sentence_transformers")
    expected = library.SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(texts(3))
    torch.testing.assert_close(embed(tmp_path / "model", texts(3)), torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "modules.json").write_text("["), "not valid JSON"),
        (lambda folder: (folder / "1_Pooling/config.json").write_text('{"include_prompt": false}'), "include_prompt"),
        (lambda folder: (folder / "1_Pooling/config.json").write_text('{"pooling_mode": "weightedmean"}'), "weighted"),
        (lambda folder: (folder / "2_Dense/model.safetensors").unlink(), "needs model.safetensors"),
        (lambda folder: (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}'), "do_lower_case"),
    ],
)
def test_modules_that_are_not_supported_are_refused(tmp_path, change, message):
    change(save_embedder(tmp_path, kinds=WITH_DENSE))
    with pytest.raises(UserError, match=message):
        read_sentence_modules(tmp_path)


def test_other_kinds_of_modules_are_refused(tmp_path):
    write_modules(tmp_path, kinds=("Transformer", "Pooling", "LSTM"))
    with pytest.raises(UserError, match="supported are a Transformer and a Pooling"):
        read_sentence_modules(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", "{}", "modules.json of .* holds a dict, not a list"),
        ("modules.json", '[{"type": "Transformer"}]', "no list of modules with a type and a path"),
        ("modules.json", '[{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "../x"}]', "'../x'"),
        ("1_Pooling/config.json", "[]", "1_Pooling/config.json of .* holds a list"),
        ("sentence_bert_config.json", "{", "is not valid JSON"),
    ],
)
def test_damaged_and_hostile_files_end_in_a_sentence(tmp_path, file, content, message):
    folder = save_embedder(tmp_path / "model")
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=message):
        read_sentence_modules(str(folder))
