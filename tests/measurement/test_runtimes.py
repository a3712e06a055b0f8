import gc
import logging
import warnings

import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from hf_efficient.measurement import runtimes
from hf_efficient.measurement.runtimes import RUNTIME_PACKAGES, RUNTIMES, build_runner, check_runtime
from hf_efficient.pruning.selection import remove_units

EXPORTED = ("onnx", "openvino")
REAL = [pytest.param(name, marks=pytest.mark.slow) if name == "compiled" else name for name in RUNTIMES]


def require(runtime):
    for package in RUNTIME_PACKAGES.get(runtime, ()):
        pytest.importorskip(package, reason=f"the extra hf_efficient[{runtime}] is not installed")


def answer(runtime, model, inputs):
    require(runtime)
    return build_runner(runtime, model, inputs)()


def expected(model, inputs):
    with torch.no_grad():
        return model(**inputs)


@pytest.mark.parametrize("runtime", REAL)
def test_every_runtime_answers_as_torch_does(runtime, make_model, make_batch, assert_same_weights):
    require(runtime)
    model, batch = make_model(num_hidden_layers=1).train(), make_batch()
    call = build_runner(runtime, model, batch)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert_same_weights(model, make_model(num_hidden_layers=1))
    wanted = expected(model, batch)
    del model
    gc.collect()
    found = call()
    assert type(found) is type(wanted)
    assert not found.logits.requires_grad
    torch.testing.assert_close(found.logits, wanted.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("runtime", REAL)
def test_uneven_shapes_run_everywhere(runtime, make_model, make_batch, select):
    model, batch = remove_units(make_model(), select("all of these")), make_batch()
    found = answer(runtime, model, batch)
    torch.testing.assert_close(found.logits, expected(model, batch).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("runtime", REAL)
def test_encoder_and_decoder_run_everywhere(runtime):
    sizes = {"d_model": 16, "d_kv": 4, "num_heads": 2, "d_ff": 32, "num_layers": 1, "vocab_size": 50}
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**sizes)).eval()
    ids = torch.arange(12).view(2, 6) + 3
    inputs = {"input_ids": ids, "attention_mask": (ids != 8).long(), "decoder_input_ids": ids[:, :4]}
    found = answer(runtime, model, inputs)
    assert found.logits.shape == (2, 4, 50)
    torch.testing.assert_close(found.logits, expected(model, inputs).logits, atol=1e-4, rtol=1e-4)


def test_compiling_many_models_never_falls_back(make_model, make_batch, monkeypatch):
    graphs = []
    compile_model = torch.compile

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_model(f, backend=counting, **options))
    batch = make_batch()
    # Not by monkeypatch, which deletes what it finds in no __dict__: torch hides settings that were deleted.
    with torch._dynamo.config.patch(recompile_limit=1, accumulated_recompile_limit=1):
        calls = [build_runner("compiled", make_model(num_hidden_layers=1, seed=seed), batch) for seed in range(3)]
    assert len(graphs) == 3
    for seed, call in enumerate(calls):
        torch.testing.assert_close(call().logits, expected(make_model(num_hidden_layers=1, seed=seed), batch).logits)
    assert len(graphs) == 3


@pytest.mark.parametrize("runtime", EXPORTED)
def test_export_says_nothing_and_runs_on_as_many_threads_as_torch(
    runtime, make_model, make_batch, monkeypatch, caplog, capfd
):
    require(runtime)
    exported = []
    call_of = runtimes._exported_call
    monkeypatch.setattr(runtimes, "_exported_call", lambda model, inputs: exported.append(model) or call_of(model, inputs))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        build_runner(runtime, make_model(num_hidden_layers=0), make_batch())()
    heard = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert (*capfd.readouterr(), said, heard) == ("", "", [], [])
    assert logging.root.manager.disable == logging.NOTSET
    runner = exported[0].runners["model"]
    if runtime == "onnx":
        assert runner.session.get_session_options().intra_op_num_threads == 1
    else:
        assert runner.compiled_model.get_property("INFERENCE_NUM_THREADS") == 1


def test_errors_are_not_hidden(make_batch):
    class Broken(nn.Linear):
        def forward(self, **inputs):
            raise RuntimeError("no forward pass here")

    require("onnx")
    with pytest.raises(Exception, match="no forward pass here"):
        build_runner("onnx", Broken(2, 2), make_batch())
    assert logging.root.manager.disable == logging.NOTSET


def test_unknown_runtime_names_those_there_are():
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
def test_missing_package_names_the_extra_before_any_work(runtime, missing, message, monkeypatch, make_batch):
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None if name in missing else name)
    with pytest.raises(ValueError, match=message):
        build_runner(runtime, None, make_batch())
    check_runtime("torch")


def test_installed_extras_pass():
    check_runtime("compiled")
    for runtime in EXPORTED:
        require(runtime)
        check_runtime(runtime)
