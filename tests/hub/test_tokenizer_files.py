"""Tests of the tokenizer's files that other libraries read."""

import json

import pytest

from hf_efficient.hub.tokenizer_files import complete_tokenizer_files


@pytest.mark.parametrize(
    ("config", "length", "expected"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, int(1e30), 512),
        ({"model_type": "bert", "max_position_embeddings": 512}, None, 512),
        ({"model_type": "bert", "max_position_embeddings": 512}, 128, 128),
        ({"model_type": "pruned_bert", "max_position_embeddings": 40}, 512, 40),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, int(1e30), 512),
        ({"model_type": "pruned_xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, int(1e30), 512),
        ({"model_type": "t5", "n_positions": 512}, int(1e30), 512),
        ({"model_type": "pruned_mt5"}, 1e30, 512),
    ],
)
def test_length_of_the_tokenizer_is_what_the_model_reads(tmp_path, config, length, expected):
    tokenizer = {"model_max_length": length, "cls_token": "[CLS]", "mask_token": {"content": "<mask>", "lstrip": True}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    complete_tokenizer_files(tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written == {**tokenizer, "model_max_length": expected}
    special_tokens = json.loads((tmp_path / "special_tokens_map.json").read_text())
    assert special_tokens == {"cls_token": "[CLS]", "mask_token": "<mask>"}


def test_folder_without_a_tokenizer_is_left_alone(tmp_path):
    complete_tokenizer_files(tmp_path)
    assert list(tmp_path.iterdir()) == []
