"""Signals after OpenVINO has compiled and deleted models."""

import os
import signal

import pytest

from hf_efficient.exporters.export import export
from hf_efficient.exporters.runtime_models import load_exported


def test_signals_arrive_after_models_are_deleted(make_model, tmp_path):
    pytest.importorskip("openvino")
    for name in ("first", "second"):
        export(make_model(), tmp_path / name, "openvino")
    first, second = load_exported(tmp_path / "first"), load_exported(tmp_path / "second")
    del first, second
    arrived = []
    previous = signal.signal(signal.SIGUSR1, lambda number, _: arrived.append(number))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert arrived == [signal.SIGUSR1]
