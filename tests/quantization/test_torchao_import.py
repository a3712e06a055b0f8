import logging

import pytest

from hf_efficient.quantization.torchao_import import suppress_torchao_warnings


def test_warnings_of_torchao_are_suppressed_only_within_the_context(caplog):
    logger = logging.getLogger("torchao")
    before = logger.level
    with suppress_torchao_warnings():
        logger.warning("kernels for another machine")
        logger.error("a real problem")
    assert logger.level == before
    assert [record.message for record in caplog.records] == ["a real problem"]


def test_warnings_of_torchao_are_shown_again_after_an_error():
    levels = {name: logging.getLogger(name).level for name in ("", "torchao")}
    with pytest.raises(RuntimeError, match="in between"), suppress_torchao_warnings():
        raise RuntimeError("in between")
    assert {name: logging.getLogger(name).level for name in levels} == levels
