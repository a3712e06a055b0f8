import copy
import logging
import warnings

import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from hf_efficient.measurement import runtimes
from hf_efficient.measurement.runtimes import RUNTIME_PACKAGES, build_runner, check_runtime
from hf_efficient.pruning.selection import remove_units

EXPORTED = ("onnx", "openvino")


def require(runtime):
    for package in RUNTIME_PACKAGES.get(runtime, ()):
        pytest.importorskip(package, reason=f"the extra hf_efficient[{runtime}] is not installed")


def forward(model, inputs):
    with torch.no_grad():
        return model(**inputs)


@pytest.fixture
def bert(make_model, make_batch, select):
    """Return a pruned classifier and a batch for it."""
    return remove_units(make_model(), select("all of these")), make_batch()


@pytest.fixture
def t5():
    """Return an encoder-decoder model and a batch for it, with padding."""
    sizes = {"d_model": 16, "d_kv": 4, "num_heads": 2, "d_ff": 32, "num_layers": 1, "vocab_size": 50}
    torch.manual_seed(0)
    ids = torch.arange(12).view(2, 6) + 3
    inputs = {"input_ids": ids, "attention_mask": (ids != 8).long(), "decoder_input_ids": ids[:, :4]}
    return T5ForConditionalGeneration(T5Config(**sizes)), inputs


@pytest.mark.parametrize(
    ("runtime", "family"),
    [
        ("torch", "bert"),
        ("torch", "t5"),
        pytest.param("compiled", "bert", marks=pytest.mark.slow),
        ("onnx", "bert"),
        ("openvino", "t5"),
    ],
)
def test_every_runtime_returns_the_outputs_of_the_model_and_prints_nothing(
    runtime, family, request, assert_same_weights, monkeypatch, caplog, capfd
):
    require(runtime)
    exported = []
    exported_call = runtimes._exported_call
    monkeypatch.setattr(
        runtimes, "_exported_call", lambda model, inputs: exported.append(model) or exported_call(model, inputs)
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    model, batch = request.getfixturevalue(family)
    original = copy.deepcopy(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call = build_runner(runtime, model.train(), batch)
    records = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert (*capfd.readouterr(), caught, records) == ("", "", [], [])
    assert logging.root.manager.disable == logging.NOTSET

    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert_same_weights(model, original)
    expected, outputs = forward(model, batch), call()
    assert type(outputs) is type(expected)
    assert outputs.logits.shape == expected.logits.shape
    assert not outputs.logits.requires_grad
    torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-4, rtol=1e-4)
    assert len(exported) == (runtime in EXPORTED)
    for exported_model in exported:
        runner = exported_model.runners["model"]
        if runtime == "onnx":
            assert runner.session.get_session_options().intra_op_num_threads == 1
        else:
            assert runner.compiled_model.get_property("INFERENCE_NUM_THREADS") == 1


def test_compiling_many_models_never_falls_back_to_eager_mode(make_model, make_batch, monkeypatch):
    graphs = []
    compile_model = torch.compile

    def counting_backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compile_model(function, backend=counting_backend, **options)
    )
    models = [make_model(num_hidden_layers=1, seed=seed) for seed in range(3)]
    batch = make_batch()
    # Not by monkeypatch, which deletes settings that are not in __dict__: torch hides deleted settings.
    with torch._dynamo.config.patch(recompile_limit=1, accumulated_recompile_limit=1):
        calls = [build_runner("compiled", model, batch) for model in models]
    assert len(graphs) == 3
    for model, call in zip(models, calls, strict=True):
        torch.testing.assert_close(call().logits, forward(model, batch).logits)
    assert len(graphs) == 3


def test_errors_of_an_export_are_raised(make_batch):
    class Broken(nn.Linear):
        def forward(self, **inputs):
            raise RuntimeError("no forward pass here")

    require("onnx")
    with pytest.raises(Exception, match="no forward pass here"):
        build_runner("onnx", Broken(2, 2), make_batch())
    assert logging.root.manager.disable == logging.NOTSET


def test_unknown_runtime_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="'tensorrt' is unknown: give one of torch, compiled, onnx, openvino"):
        check_runtime("tensorrt")


@pytest.mark.parametrize(
    ("runtime", "missing", "message"),
    [
        ("onnx", {"onnxruntime"}, r"needs onnxruntime, which is not installed: pip install 'hf_efficient\[onnx\]'"),
        ("onnx", {"onnx", "onnxscript"}, r"needs onnx, onnxscript, which are not installed"),
        ("openvino", {"openvino"}, r"needs openvino, .* pip install 'hf_efficient\[openvino\]'"),
    ],
)
def test_missing_package_is_named_with_its_extra(runtime, missing, message, monkeypatch, make_batch):
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None if name in missing else name)
    with pytest.raises(ValueError, match=message):
        build_runner(runtime, None, make_batch())
    check_runtime("torch")


def test_installed_runtimes_pass_the_check():
    check_runtime("compiled")
    for runtime in EXPORTED:
        require(runtime)
        check_runtime(runtime)
