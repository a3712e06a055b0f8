import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from hf_efficient import measure, quantize
from hf_efficient.measurement import comparison
from hf_efficient.measurement.comparison import compare, model_inputs
from hf_efficient.measurement.cost import compressed_bytes, count_flops, count_parameters, saved_bytes
from hf_efficient.measurement.report import CompressionReport
from hf_efficient.measurement.report_rows import GenerationLatency, Ratios
from hf_efficient.pruning.connection_criteria import block_linears
from hf_efficient.pruning.selection import remove_units
from hf_efficient.pruning.sparsity import sparsify


@pytest.fixture
def durations(monkeypatch):
    """Return a function that sets the durations of models by role, in milliseconds; each model still runs once."""

    def set_durations(**milliseconds):
        def time_interleaved(calls, repeats):
            assert [call() is not None for call in calls.values()] == [True] * len(milliseconds)
            return {name: milliseconds[name] for name in calls}

        monkeypatch.setattr(comparison, "time_interleaved", time_interleaved)

    return set_durations


def test_rows_hold_the_measurements(make_model, make_batch, select, durations):
    teacher, batch = make_model(), make_batch()
    student = remove_units(teacher, select("uneven widths"))
    durations(teacher=[9.0, 12.0, 8.0], student=[3.0, 3.0, 30.0])
    rows = compare(
        {"teacher": teacher.train(), "student": student},
        batch,
        metrics={"teacher": {"accuracy": 0.8, "f1": 0.6}, "student": {"accuracy": 0.6}},
        metric="accuracy",
        names={"student": "small"},
        structures={"student": student.config.structure},
    )
    assert [(row.name, row.role) for row in rows] == [("teacher", "teacher"), ("small", "student")]
    assert [row.latency_ms.p50 for row in rows] == [9.0, 3.0]
    assert (rows[1].latency_ms.batch_size, rows[1].latency_ms.sequence_length) == (3, 9)
    assert [row.samples_per_second for row in rows] == pytest.approx([3 / 0.009, 3 / 0.003])
    assert [row.parameters for row in rows] == [count_parameters(teacher), count_parameters(student)]
    assert rows[0].nonzero_parameters == rows[0].parameters
    assert rows[1].bytes_on_disk == saved_bytes(student)
    assert (rows[0].structure, rows[1].structure) == (None, student.config.structure)
    assert rows[1].bytes_on_disk < rows[1].peak_memory_bytes < rows[0].peak_memory_bytes
    assert rows[1].energy_joules_per_sample is None
    assert rows[0].ratios == Ratios(1, 1, 1, 1, metric_difference=0)
    assert rows[1].ratios == Ratios(
        speedup=3.0,
        size=saved_bytes(teacher) / saved_bytes(student),
        flops=count_flops(teacher, batch) / count_flops(student, batch),
        metric_retained=pytest.approx(0.75),
        metric_difference=pytest.approx(-0.2),
    )


def test_throughput_on_real_texts_replaces_that_of_timed_batches(make_model, make_batch):
    models = {"teacher": make_model(), "student": make_model(), "onnx": make_model()}
    rows = compare(models, make_batch(), repeats=1, throughput={"teacher": 12.5, "student": 40.0})
    assert [row.samples_per_second for row in rows] == [12.5, 40.0, None]


def test_compiled_forward_pass_is_timed_instead_of_the_model(make_model, make_batch, durations):
    calls, model = [], make_model()
    durations(teacher=[2.0, 2.0, 2.0], student=[1.0, 1.0, 1.0])

    def compiled(**inputs):
        calls.append(inputs.keys())
        return inputs

    rows = compare({"teacher": make_model(), "student": model}, make_batch(), compiled={"student": compiled})
    assert calls == [make_batch().keys()] * 3  # two to measure its memory, when it is not the first call
    assert [row.latency_ms.runtime for row in rows] == ["torch float32", "torch.compile float32"]
    assert rows[1].parameters == count_parameters(model)


def test_models_are_timed_in_the_given_runtimes(make_model, make_batch, durations, monkeypatch):
    built = []

    def build_runner(runtime, model, inputs):
        built.append((runtime, model, inputs.keys()))
        return lambda: runtime

    monkeypatch.setattr(comparison, "build_runner", build_runner)
    durations(**{"teacher": [4.0], "in onnx": [2.0], "in openvino": [1.0]})
    model, batch = make_model(), make_batch()
    models = dict.fromkeys(("teacher", "in onnx", "in openvino"), model)
    monkeypatch.setattr(comparison, "check_runtime", lambda runtime: None)
    rows = compare(models, batch, runtimes={"in onnx": "onnx", "in openvino": "openvino"})
    assert built == [(runtime, model, batch.keys()) for runtime in ("torch", "onnx", "openvino")]
    assert [row.latency_ms.runtime for row in rows] == ["torch float32", "onnxruntime float32", "openvino float32"]
    assert [row.ratios.speedup for row in rows] == [1.0, 2.0, 4.0]


def test_unknown_runtime_is_refused_before_anything_is_measured(make_model, make_batch):
    with pytest.raises(ValueError, match="runtime 'tensorrt' is unknown"):
        compare({"teacher": make_model()}, make_batch(), runtimes={"teacher": "tensorrt"})


def test_module_that_runs_outside_of_torch_names_its_runtime(make_model, make_batch):
    class External(torch.nn.Module):
        runtime, bytes_on_disk = "openvino int8", 1234

        def forward(self, **inputs):
            return inputs

        def __len__(self):
            raise TypeError("has no length")  # like a compiled module, which has no truth value

    teacher, row = compare({"teacher": make_model(), "openvino": External()}, make_batch(), repeats=1)
    assert row.latency_ms.runtime == "openvino int8"
    assert (row.bytes_on_disk, row.ratios.size) == (1234, teacher.bytes_on_disk / 1234)
    assert (row.parameters, row.nonzero_parameters, row.flops, row.peak_memory_bytes) == (None,) * 4


def test_models_are_measured_in_eval_mode(make_model, make_batch, durations):
    model = make_model().train()
    durations(model=[1.0, 1.0, 1.0])
    compare({"model": model}, make_batch())
    assert not model.training


def test_sparse_models_and_the_first_are_compressed(make_model, make_batch, select, durations):
    teacher = make_model()
    models = {
        "teacher": teacher,
        "cut": remove_units(teacher, select("a layer gone")),
        "sparse": sparsify(teacher, n_m="2:4"),
    }
    models["quantized"] = quantize(models["sparse"])
    durations(**{role: [1.0, 1.0, 1.0] for role in models})
    rows = compare(models, make_batch())
    assert [row.compressed_bytes_on_disk for row in rows] == [
        compressed_bytes(teacher), None, compressed_bytes(models["sparse"]), compressed_bytes(models["quantized"])
    ]  # fmt: skip
    assert rows[2].bytes_on_disk == rows[0].bytes_on_disk
    assert rows[2].density == 1 - 3 * (2 * 32 * 32 + 32 * 64) / count_parameters(teacher)


@pytest.mark.parametrize(("fraction", "measured"), [(0.01, False), (0.02, True)])
def test_dense_models_are_not_compressed(make_model, make_batch, durations, fraction, measured):
    durations(teacher=[1.0, 1.0, 1.0], sparse=[1.0, 1.0, 1.0])
    rows = compare({"teacher": make_model(), "sparse": sparsify(make_model(), fraction=fraction)}, make_batch())
    assert [row.compressed_bytes_on_disk is not None for row in rows] == [measured] * 2


def test_zeros_from_rounding_do_not_count_as_sparsity(make_model, make_batch, durations):
    durations(teacher=[1.0, 1.0, 1.0], quantized=[1.0, 1.0, 1.0])
    model = make_model()
    with torch.no_grad():
        for linear in block_linears(model).values():
            linear.weight[:, 0] = 5  # one large weight makes the quantization steps of its row wide
    rows = compare({"teacher": model, "quantized": quantize(model)}, make_batch())
    assert rows[0].density - rows[1].density > 0.01
    assert [row.compressed_bytes_on_disk for row in rows] == [None, None]


def test_measure_returns_a_row_without_ratios(make_model, make_batch):
    row = measure(make_model(), make_batch(), name="my model", repeats=2)
    assert (row.name, row.ratios) == ("my model", Ratios())
    assert row.latency_ms.p90 >= row.latency_ms.p50 > 0
    assert row.flops == count_flops(make_model(), make_batch())


def test_loaded_int8_model_is_measured_without_flops(make_model, make_batch, tmp_path):
    model = quantize(make_model())
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path)
    row = measure(model, make_batch(), repeats=1)
    assert row.flops is None
    assert row.latency_ms.runtime == "torch int8"
    assert row.parameters == count_parameters(make_model())
    assert 0.9 * row.parameters < row.nonzero_parameters <= row.parameters
    assert row.bytes_on_disk == saved_bytes(model)


def test_runtime_includes_the_dtype(make_model, make_batch):
    row = measure(make_model().to(torch.bfloat16), make_batch(), repeats=1)
    assert row.latency_ms.runtime == "torch bfloat16"


@pytest.mark.parametrize(("family", "pruned"), [("Roberta", True), ("XLMRoberta", False), ("Camembert", True)])
def test_positions_that_start_after_the_padding_id_leave_fewer_tokens(make_model, select, family, pruned):
    model = make_model(f"{family}Model", max_position_embeddings=40, pad_token_id=5, bos_token_id=0, eos_token_id=2)
    model = remove_units(model, select("all of these", f"{family}Model")) if pruned else model
    inputs = model_inputs(model, 2, 128)
    assert inputs["input_ids"].shape == (2, 40 - 5 - 1)
    assert model(**inputs).last_hidden_state.shape == (2, 34, 32)
    with pytest.raises(RuntimeError, match="index 40 is out of bounds"):
        model(input_ids=torch.full((1, 35), 7))
    assert model_inputs(model, 1, 7)["attention_mask"].shape == (1, 7)


@pytest.mark.parametrize(
    ("head", "padding"), [("BertModel", 0), ("RobertaModel", 1), ("DistilBertModel", 9), ("ElectraModel", 0)]
)
def test_inputs_contain_no_padding(make_model, head, padding):
    model = make_model(head, vocab_size=10, pad_token_id=padding)
    ids = model_inputs(model, 16, 30)["input_ids"]
    assert sorted(set(range(10)) - {padding}) == ids.unique().tolist()


def test_inputs_are_no_longer_than_the_model_accepts(make_model):
    inputs = model_inputs(make_model(), 2, 128)
    assert inputs["input_ids"].shape == (2, 40)
    assert int(inputs["input_ids"].max()) < 100
    assert model_inputs(make_model(), 1, 7)["attention_mask"].shape == (1, 7)


def test_generation_is_timed_by_its_first_and_further_tokens(monkeypatch):
    sizes = {"d_model": 16, "d_kv": 4, "num_heads": 2, "d_ff": 32, "num_layers": 1, "vocab_size": 50}
    models = {
        role: T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)) for role in ("teacher", "x")
    }
    milliseconds = {
        "teacher 1": [8.0],
        "teacher 20": [46.0],
        "x 1": [4.0],
        "x 20": [23.0],
        "teacher": [9.0],
        "x": [9.0],
    }
    outputs = {}

    def time_interleaved(calls, *args, **kwargs):
        outputs.update({name: call() for name, call in calls.items()})
        return {name: milliseconds[name] for name in calls}

    monkeypatch.setattr("hf_efficient.measurement.comparison.time_interleaved", time_interleaved)
    inputs = model_inputs(models["teacher"].eval(), 3, 7)
    rows = compare(models, inputs)
    assert rows[0].generation_ms == GenerationLatency(8.0, 2.0, 20, 3, 7)
    assert rows[1].ratios.generation == 2.0
    assert rows[1].ratios.speedup == 1.0
    shapes = {name: ids.shape for name, ids in outputs.items() if torch.is_tensor(ids)}
    assert shapes == {"teacher 1": (3, 2), "teacher 20": (3, 21), "x 1": (3, 2), "x 20": (3, 21)}
    report = CompressionReport(models=rows)
    assert CompressionReport.from_json(report.to_json()).models == rows
    _, *lines = report.markdown().splitlines()
    assert "| first token | 8.00 ms | 4.00 ms |" in lines
    assert "| next token | 2.00 ms | 1.00 ms |" in lines
    assert "| generation speed-up | 1.00x | 2.00x |" in lines


def test_model_that_does_not_generate_has_no_generation_time(make_model, make_batch):
    row = compare({"teacher": make_model()}, make_batch(), repeats=1)[0]
    assert row.generation_ms is None
    assert "token |" not in CompressionReport(models=(row,)).markdown()
