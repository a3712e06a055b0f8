"""Importing torchao without its warnings, which a user cannot act on."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGER_NAMES = ("torchao", "torch.utils._pytree", "torchao.kernel")


@contextmanager
def suppress_torchao_warnings() -> Iterator[None]:
    """Suppress the warnings of torchao's import, such as that it cannot load kernels built for other machines."""
    loggers = [logging.getLogger(name) for name in ("", *_LOGGER_NAMES)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
