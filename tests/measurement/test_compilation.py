"""A model is compiled once for all batches, and not for longer than the limit."""

import threading
import time

import pytest
import torch

from hf_efficient.measurement import compilation
from hf_efficient.measurement.compilation import compile_model, time_limit


@pytest.fixture
def compilations(monkeypatch):
    """Replace the backend of torch.compile by one that keeps the graphs; return a list of their numbers of runs."""
    runs, compile = [], torch.compile

    def backend(graph, inputs):
        number = len(runs)
        runs.append(0)

        def run(*arguments):
            runs[number] += 1
            return graph.forward(*arguments)

        return run

    monkeypatch.setattr(torch, "compile", lambda model, dynamic: compile(model, dynamic=dynamic, backend=backend))
    torch.compiler.reset()
    yield runs
    torch.compiler.reset()


@pytest.fixture
def warnings(monkeypatch):
    messages = []
    monkeypatch.setattr(compilation.logger, "warning", messages.append)
    return messages


def batch(texts, tokens):
    return {"input": torch.arange(texts * tokens, dtype=torch.float32).view(texts, tokens)}


class Doubling(torch.nn.Module):
    def forward(self, input, factor=None):
        return input * (2 if factor is None else factor)


@pytest.mark.parametrize(("texts", "count"), [(4, 1), (1, 2)])
def test_model_is_compiled_once_for_all_sizes(compilations, texts, count):
    forward = compile_model(Doubling().train(), batch(texts, 8))
    assert len(compilations) == count  # torch compiles other code for a single text
    before = sum(compilations)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            for size in ((texts, 8), (3, 5), (7, 9)):
                inputs = batch(*size)  # in inference mode it is an inference tensor
                assert torch.equal(forward(**inputs), 2 * inputs["input"])
    assert sum(compilations) == before + 9
    assert len(compilations) == count


def test_what_would_need_another_compilation_runs_uncompiled(compilations):
    forward = compile_model(Doubling(), batch(4, 8))
    runs = list(compilations)
    assert torch.equal(forward(**batch(3, 5), factor=torch.tensor(3.0)), 3 * batch(3, 5)["input"])
    assert compilations == runs


def test_model_that_cannot_be_compiled_gives_a_warning(monkeypatch, warnings):
    def fail(model, dynamic):
        raise RuntimeError("no C++ compiler\nand many lines more")

    monkeypatch.setattr(torch, "compile", fail)
    assert compile_model(Doubling(), batch(2, 2)) is None
    assert warnings == ["the model is not measured under torch.compile, which fails on this machine: no C++ compiler"]


def sleep(seconds):
    """Sleep in small steps, as a compiler that executes Python."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def test_compilation_ends_at_the_limit(monkeypatch, warnings):
    def slow(**_):
        try:
            sleep(10)
        except Exception:  # as compilers do
            return

    monkeypatch.setattr(torch, "compile", lambda model, dynamic: slow)
    assert compile_model(Doubling(), batch(2, 2), limit_seconds=0.05) is None
    assert warnings == ["the model is not measured under torch.compile, which takes longer than 0.05 s"]


def test_limit_ends_with_its_context():
    with time_limit(0.05):
        pass
    sleep(0.1)


def test_limit_is_that_of_one_thread():
    ended = []

    def work():
        try:
            with time_limit(0.05):
                sleep(10)
        except BaseException as error:
            ended.append(type(error).__name__)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == ["_TimeLimitError"]
