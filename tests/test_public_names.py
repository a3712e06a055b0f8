import logging

import pytest

import hf_efficient
from hf_efficient.quantization.torchao_import import suppress_torchao_warnings


@pytest.mark.parametrize("name", hf_efficient.__all__)
def test_public_name_exists(name):
    assert getattr(hf_efficient, name) is not None


def test_public_names_are_sorted_and_the_promised_ones_are_among_them():
    constants = [name for name in hf_efficient.__all__ if name.isupper()]
    classes = [name for name in hf_efficient.__all__ if name[0].isupper() and not name.isupper()]
    functions = [name for name in hf_efficient.__all__ if name.islower()]
    assert hf_efficient.__all__ == sorted(constants) + sorted(classes) + sorted(functions)
    assert {
        "EfficientTrainer", "EfficientSeq2SeqTrainer", "DistillationConfig", "PruningConfig", "QuantizationConfig",
        "CompressionReport", "prune", "quantize", "measure",
    } <= set(hf_efficient.__all__)  # fmt: skip


def test_torchao_is_quiet_only_for_a_while(caplog):
    logger = logging.getLogger("torchao")
    before = logger.level
    with suppress_torchao_warnings():
        logger.warning("kernels for another machine")
        logger.error("a real problem")
    assert logger.level == before
    assert [record.message for record in caplog.records] == ["a real problem"]


def test_torchao_speaks_again_after_an_error():
    levels = {name: logging.getLogger(name).level for name in ("", "torchao")}
    with pytest.raises(RuntimeError, match="in between"), suppress_torchao_warnings():
        raise RuntimeError("in between")
    assert {name: logging.getLogger(name).level for name in levels} == levels
