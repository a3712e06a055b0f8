"""Tests of which modules are quantized, and of settings that contradict each other."""

import re

import pytest
import torch
from trainers import build

from hf_efficient import QuantizationConfig, quantize
from hf_efficient.quantization.module_selection import MIN_EMBEDDING_ROWS, select_embeddings, select_linears
from hf_efficient.quantization.validation import check_quantization


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"bits": 4},
            "bits=4 sets the bits of codebooks, and int8_static has 8: give scheme='codebook', or embedding_bits",
        ),
        ({"quantize_embeddings": False, "embedding_bits": 4}, "contradict each other: give one"),
    ],
)
def test_contradicting_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        QuantizationConfig(**settings)


@pytest.mark.parametrize(
    "pattern", [r"bert\.encoder\.layer\.0", r"encoder\.layer\.0", r"layer\.0\.", r"layer\.[0]{1,2}"]
)
def test_skip_modules_matches_full_names_and_names_in_the_base_model(make_model, pattern):
    names = [name for name, _ in select_linears(make_model(), QuantizationConfig(skip_modules=pattern))]
    assert len(names) == 2 * 6
    assert not any("layer.0." in name for name in names)


def test_skip_modules_keeps_commas_of_repetitions():
    config = QuantizationConfig(skip_modules=r"layer\.\d{1,2}\.attention, pooler")
    assert config.skip_patterns == (r"layer\.\d{1,2}\.attention", "pooler")


def test_pattern_without_a_match_is_a_warning(make_model, monkeypatch):
    warnings = []
    monkeypatch.setattr("hf_efficient.quantization.module_selection.logger.warning", warnings.append)
    check_quantization(make_model(), QuantizationConfig(skip_modules="decoder, query"))
    assert warnings == [
        "skip_modules='decoder' matches no module of BertForSequenceClassification: nothing is skipped"
    ]


def test_relative_position_bias_stays_in_float(make_model):
    assert not list(select_embeddings(make_model("T5ForConditionalGeneration"), QuantizationConfig()))


def test_tables_of_few_rows_stay_in_float(make_model):
    tables = dict(select_embeddings(make_model(vocab_size=16), QuantizationConfig()))
    assert list(tables) == ["embeddings.word_embeddings", "embeddings.position_embeddings"]  # without token types
    assert tables["embeddings.word_embeddings"].num_embeddings == MIN_EMBEDDING_ROWS
    smaller = select_embeddings(make_model(vocab_size=15), QuantizationConfig())
    assert [name for name, _ in smaller] == ["embeddings.position_embeddings"]


def test_skipping_all_codebooks_is_refused(make_model):
    config = QuantizationConfig(aware=True, embedding_bits=4, skip_modules="embeddings")
    with pytest.raises(ValueError, match="no weight of BertForSequenceClassification would become a codebook"):
        check_quantization(make_model(), config)


@pytest.mark.parametrize("head", ["T5ForConditionalGeneration", "BertForSequenceClassification"])
def test_codebooks_load_and_run_in_float16(make_model, make_batch, tmp_path, head):
    quantize(make_model(head), QuantizationConfig("codebook", bits=8)).save_pretrained(tmp_path)
    small = type(quantize(make_model(head), QuantizationConfig("codebook"))).from_pretrained(
        tmp_path, dtype=torch.float16
    )
    batch = make_batch(head, labelled=head.startswith("T5"))
    assert torch.isfinite(small(**batch).logits).all()


def test_bf16_full_eval_measures_models_in_their_own_dtype(tmp_path):
    techniques = {"quantization": QuantizationConfig()}
    trainer = build(tmp_path, techniques=techniques, bf16_full_eval=True)
    trainer.train()
    assert [row.latency_ms.runtime for row in trainer.report.models] == ["torch float32", "torch int8"]
    assert trainer.args.bf16_full_eval


def test_interrupted_training_restores_the_modules(tmp_path, monkeypatch):
    trainer = build(tmp_path, techniques={"quantization": QuantizationConfig(aware=True)})
    before = [type(module) for module in trainer.model.modules()]

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "training_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [type(module) for module in trainer.model.modules()] == before
