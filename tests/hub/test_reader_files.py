"""Folders of embedders and rerankers have the files that servers and older versions of sentence-transformers read."""

import json

import pytest
import readers
import torch
from reviews import save_model, tiny_config
from transformers import BertForSequenceClassification, BertModel, RobertaConfig, RobertaModel, set_seed

from hf_efficient import PruningConfig, prune
from hf_efficient.hub.reader_files import complete_reader_files

WORDS = "anna wolf ran sat in berlin paris the park who where it rains snows"
TEXTS = ["anna ran in the park", "it rains"]


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    """Return a folder with an embedder that version 6 saved."""
    library = pytest.importorskip("sentence_transformers")
    folder = tmp_path_factory.mktemp("embedder")
    set_seed(0)
    save_model(folder / "base", BertModel(tiny_config()), (WORDS,))
    models = library.sentence_transformer.modules
    transformer = library.base.modules.Transformer(str(folder / "base"))
    pooling = models.Pooling(transformer.get_embedding_dimension(), "mean")
    model = library.SentenceTransformer(modules=[transformer, pooling, library.base.modules.Normalize()])
    model.max_seq_length = 24
    model.save_pretrained(str(folder / "new"))
    return folder / "new"


def test_every_reader_reads_a_completed_embedder(embedder):
    library = pytest.importorskip("sentence_transformers")
    before = library.SentenceTransformer(str(embedder)).encode(TEXTS)
    # As it is saved by version 6, some of them cannot read it.
    for check in (readers.check_old_sentence_transformers, readers.check_text_embeddings_inference):
        with pytest.raises((AssertionError, KeyError)):
            check(embedder)
    complete_reader_files(embedder)
    readers.check_old_sentence_transformers(embedder)
    readers.check_text_embeddings_inference(embedder, has_graph=False)
    readers.check_vllm(embedder)
    assert readers.read(embedder, "sentence_bert_config.json") == {"max_seq_length": 24, "do_lower_case": False}
    loaded = library.SentenceTransformer(str(embedder))
    assert loaded.max_seq_length == 24
    torch.testing.assert_close(torch.from_numpy(loaded.encode(TEXTS)), torch.from_numpy(before))


def test_complete_files_stay_as_they_are(embedder):
    complete_reader_files(embedder)
    first = content(embedder)
    complete_reader_files(embedder)
    assert content(embedder) == first


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"embedding_dimension": 8, "pooling_mode": "cls", "include_prompt": True}, ["cls_token"]),
        ({"embedding_dimension": 8, "pooling_mode": ["mean", "max"]}, ["max_tokens", "mean_tokens"]),
        ({"embedding_dimension": 8, "pooling_mode": "lasttoken", "include_prompt": False}, ["lasttoken"]),
        ({"word_embedding_dimension": 8, "pooling_mode_cls_token": True}, ["cls_token"]),
    ],
)
def test_pooling_has_the_keys_of_all_versions(tmp_path, config, expected):
    modules = [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    save_model(tmp_path, BertModel(tiny_config()), (WORDS,))
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    complete_reader_files(tmp_path)
    written = readers.read(tmp_path, "1_Pooling/config.json")
    assert written["word_embedding_dimension"] == 8
    assert sorted(key.removeprefix("pooling_mode_") for key, value in written.items() if value is True) == expected
    assert written.get("include_prompt") is (False if config.get("include_prompt") is False else None)


def test_texts_of_a_pruned_roberta_fit_into_its_positions(tmp_path):
    """Servers that know the model type subtract the two positions that come before the first."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(vocab_size=300, max_position_embeddings=34, **sizes)
    model = prune(RobertaModel(config), PruningConfig(heads=0.5, criterion="magnitude"))
    save_model(tmp_path, model, (WORDS,))
    (tmp_path / "modules.json").write_text("[]")
    complete_reader_files(tmp_path)
    assert readers.read(tmp_path, "config.json")["model_type"] == "pruned_roberta"
    assert readers.read(tmp_path, "sentence_bert_config.json")["max_seq_length"] == 32


def test_a_reranker_has_labels_and_a_length(tmp_path):
    config = tiny_config(num_labels=1, sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})
    save_model(tmp_path, BertForSequenceClassification(config), (WORDS,))
    complete_reader_files(tmp_path)
    readers.check_text_embeddings_inference(tmp_path, has_graph=False)
    readers.check_vllm(tmp_path)


def test_other_models_get_no_files_of_embedders(tmp_path):
    save_model(tmp_path, BertForSequenceClassification(tiny_config()), (WORDS,))
    complete_reader_files(tmp_path)
    assert not (tmp_path / "sentence_bert_config.json").exists()
    assert readers.read(tmp_path, "config.json")["id2label"] == {"0": "negative", "1": "positive"}
