"""Models for other runtimes answer as torch does, whatever the head and shape; what cannot work is refused."""

import math

import pytest
import torch
from heads import BERT_HEADS, HEADS
from trainers import build, collate, rows
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoConfig,
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.exporters import ExportedModel

from hf_efficient import (
    DistillationConfig,
    EfficientTrainer,
    ExportConfig,
    PruningConfig,
    QuantizationConfig,
    export,
    load_exported,
    quantize,
)
from hf_efficient.exporters.config import check_export_format
from hf_efficient.exporters.runtime_models import DECODE
from hf_efficient.pruning.selection import remove_units

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "nncf")}
UNEVEN = "uneven widths"
EXACT = {"openvino": {"config": {"INFERENCE_PRECISION_HINT": "f32"}}}


def need(format):
    for package in PACKAGES[format]:
        pytest.importorskip(package, reason=f"the extra hf_efficient[{format}] is not installed")


@pytest.fixture(params=PACKAGES)
def runtime(request):
    need(request.param)
    return request.param


def largest_difference(found, expected):
    return max(
        float((found[name] - value).abs().max())
        for name, value in expected.items()
        if torch.is_tensor(value) and value.is_floating_point()
    )


def test_any_batch_and_length_is_answered_as_in_torch(runtime, make_model, select, tmp_path):
    model = remove_units(make_model(), select(UNEVEN)).eval()
    written = export(model, tmp_path / "there", runtime)
    assert written.difference < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    loaded = ExportedModel.from_pretrained(tmp_path / "there", **EXACT.get(runtime, {}))
    for batch_size, length in ((1, 3), (5, 17), (2, 40)):
        ids = torch.randint(1, 100, (batch_size, length))
        mask = torch.ones_like(ids)
        mask[-1, length // 2 + 1 :] = 0
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": (ids > 50).long()}
        with torch.no_grad():
            assert largest_difference(loaded(**batch), model(**batch)) < 1e-4


def test_uneven_shapes_need_no_code_there(runtime, make_model, select, tmp_path):
    export(remove_units(make_model(), select(UNEVEN)), tmp_path / "there", runtime)
    config = AutoConfig.from_pretrained(tmp_path / "there")
    assert config.model_type == "bert"
    assert config.architectures == ["BertForSequenceClassification"]
    assert not list((tmp_path / "there").glob("*.py"))


@pytest.mark.parametrize("head", BERT_HEADS)
def test_every_head_is_exported(head, make_model, select, tmp_path):
    need("onnx")
    assert export(remove_units(make_model(head), select(UNEVEN, head)), tmp_path / "there", "onnx").difference < 1e-4


@pytest.mark.parametrize(
    "head", [name for name in HEADS if name.endswith("ForSequenceClassification") and "T5" not in name]
)
def test_every_encoder_is_exported(head, make_model, tmp_path):
    need("onnx")
    assert export(make_model(head), tmp_path / "there", "onnx").difference < 1e-4


@pytest.mark.parametrize(
    ("runtime", "form"), [("onnx", "int8"), ("openvino", "int8"), ("openvino", "int8_weight_only")]
)
def test_eight_bits_are_smaller_and_nearly_the_same(runtime, form, tmp_path):
    need(runtime)
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 512}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=2000))
    calibration = (
        [collate(list(rows(8, seed=seed))) for seed in range(3)] if (runtime, form) != ("onnx", "int8") else None
    )
    if form == "int8_weight_only":
        calibration = None
    export(model, tmp_path / "float", runtime)
    written = export(model, tmp_path / "there", runtime, form, calibration)
    assert 1e-6 < written.difference < 0.1
    sizes = [load_exported(tmp_path / name).bytes_on_disk for name in ("float", "there")]
    assert sizes[1] < 0.4 * sizes[0]


def test_a_module_is_evaluated_like_any_other(runtime, make_model, make_batch, tmp_path):
    model = make_model()
    export(model, tmp_path / "there", runtime)
    module = load_exported(tmp_path / "there")
    batch = make_batch()
    plain = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert "loss" not in module(**plain)
    found = module(**plain, labels=torch.zeros(len(batch["input_ids"]), dtype=torch.long))
    assert math.isnan(found.loss)
    with torch.no_grad():
        assert largest_difference({"logits": found.logits}, {"logits": model(**plain).logits}) < 0.05
    assert module.bytes_on_disk > 4 * 10_000
    assert module.runtime == {"onnx": "onnxruntime float32", "openvino": "openvino float32"}[runtime]


def test_a_wrong_export_is_refused_and_leaves_the_old_one(make_model, tmp_path, monkeypatch):
    need("onnx")
    export(make_model(seed=1), tmp_path / "there", "onnx")
    before = (tmp_path / "there" / "export.json").read_bytes()
    monkeypatch.setattr("hf_efficient.exporters.export._max_relative_difference", lambda *_: 0.5)
    with pytest.raises(RuntimeError, match=r"differs from torch by 5.0e-01 .* do not use it"):
        export(make_model(seed=2), tmp_path / "there", "onnx")
    assert (tmp_path / "there" / "export.json").read_bytes() == before


# ---- in the trainer ----


def test_exports_are_rows_beside_the_student(runtime, tmp_path):
    techniques = {
        "distillation": DistillationConfig(),
        "pruning": PruningConfig(neurons=0.5, recovery=False),
        "quantization": QuantizationConfig(compile=False),
        "export": ExportConfig([runtime]),
    }
    trainer = build(tmp_path, techniques=techniques)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    assert [row.role for row in trainer.report.models] == ["teacher", "student", "quantized", runtime]
    row = trainer.report.row(runtime)
    assert row.name == f"{runtime} int8"
    assert set(row.metrics) == {"accuracy"}
    assert row.parameters is row.flops is None
    assert row.latency_ms.runtime == {"onnx": "onnxruntime int8", "openvino": "openvino int8"}[runtime]
    weights = [path for path in (tmp_path / runtime).iterdir() if path.suffix != ".json"]
    assert row.bytes_on_disk == sum(path.stat().st_size for path in weights) > 0
    assert row.ratios.speedup is not None
    assert any(stage.startswith(f"exported to {runtime} (int8), within") for stage in trainer.report.stages)
    assert trainer.report.final.role == "quantized"
    assert ExportedModel.from_pretrained(tmp_path, subfolder=runtime).config.model_type == "bert"
    card = (tmp_path / "README.md").read_text()
    assert f'ExportedModel.from_pretrained(name, subfolder="{runtime}")' in card
    assert trainer.report.configs["export"] == {"export": [runtime], "export_quantization": "int8"}


def test_an_exported_student_answers_as_the_student_that_was_trained(tmp_path):
    need("onnx")
    techniques = {"export": ExportConfig(["onnx"], "none"), "distillation": DistillationConfig()}
    trainer = build(tmp_path, techniques=techniques)
    trainer.train()
    batch = collate(list(rows(8, seed=5)))
    batch.pop("labels")
    found = ExportedModel.from_pretrained(tmp_path / "onnx")(
        **batch, token_type_ids=torch.zeros_like(batch["input_ids"])
    )
    with torch.no_grad():
        assert largest_difference(found, trainer.model.eval()(**batch)) < 1e-4
    metrics = trainer.report.row("onnx").metrics
    assert metrics == {"accuracy": trainer.report.row("student").metrics["accuracy"]}


def test_exporting_alone_trains_as_trainer_does(tmp_path):
    need("onnx")
    trainer = build(tmp_path / "a", techniques={"export": ExportConfig(["onnx"])})
    plain = build(tmp_path / "b")
    trainer.train()
    plain.train()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name])
    assert [(row.role, row.name) for row in trainer.report.models] == [("teacher", "model"), ("onnx", "onnx int8")]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((["tflite"],), "format='tflite' is unknown: give one of onnx, openvino"),
        ((["onnx"], "int8_weight_only"), "unknown for onnx: give one of int8, or none for float32"),
        ((["openvino"], "int4"), "quantization='int4' is unknown for openvino: give one of int8, int8_weight_only"),
    ],
)
def test_unknown_forms_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        ExportConfig(*settings)


def test_known_forms_are_taken():
    for form in (None, "int8", "int8_weight_only"):
        check_export_format("openvino", form)
    assert ExportConfig(["onnx", "onnx"], "none").formats == ("onnx",)
    assert ExportConfig(["onnx"], "none").quantization is None


def test_ranges_need_data(make_model, tmp_path):
    need("openvino")
    with pytest.raises(ValueError, match="give `calibration`, batches of your data"):
        export(make_model(), tmp_path / "there", "openvino", "int8")
    with pytest.raises(ValueError, match="the calibration data is empty"):
        export(make_model(), tmp_path / "there", "openvino", "int8", [])
    assert not (tmp_path / "there").exists()


def test_a_trainer_without_data_is_refused_before_anything_is_done(tmp_path, make_model):
    need("openvino")
    with pytest.raises(ValueError, match="and there is none: give train_dataset"):
        EfficientTrainer(model=make_model(), export=ExportConfig(["openvino"]))


def test_quantized_models_are_refused(make_model, tmp_path):
    need("onnx")
    small = quantize(make_model(), QuantizationConfig("int8_weight_only"))
    with pytest.raises(ValueError, match="the model is quantized already: export its float form"):
        export(small, tmp_path / "there", "onnx")


def test_a_missing_runtime_is_named(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_efficient.measurement.runtimes.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'hf_efficient\[onnx\]'"):
        export(make_model(), tmp_path / "there", "onnx")
    assert not (tmp_path / "there").exists()


# ---- what writes text ----


def sentences(model, count=3):
    ids = torch.randint(2, 100, (count, 7), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 1
    mask = torch.ones_like(ids)
    ids[0, 4:], mask[0, 4:] = 0, 0
    ids[0, 3] = 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    ("head", "shape", "runtime"),
    [
        ("T5ForConditionalGeneration", UNEVEN, "onnx"),
        ("T5ForConditionalGeneration", "a block without heads", "openvino"),
        ("MT5ForConditionalGeneration", UNEVEN, "onnx"),
    ],
)
def test_a_pruned_writer_writes_the_same(runtime, head, shape, make_model, select, tmp_path):
    need(runtime)
    model = remove_units(make_model(head), select(shape, head)).eval()
    assert export(model, tmp_path / "there", runtime).difference < 1e-4
    writer = load_exported(tmp_path / "there", full_precision=True)
    texts = sentences(model)
    for settings in ({}, {"num_beams": 3}, {"use_cache": False}):
        asked = {"max_new_tokens": 12, "min_new_tokens": 12, **settings}
        assert writer.generate(**texts, **asked).tolist() == model.generate(**texts, **asked).tolist()
    labels = torch.randint(2, 100, (3, 5))
    with torch.no_grad():
        expected = model(**texts, labels=labels).logits
    assert (writer(**texts, labels=labels).logits - expected).abs().max() < 1e-3 * expected.abs().max()
    assert AutoConfig.from_pretrained(tmp_path / "there").model_type == model.config.model_type.removeprefix("pruned_")
    if runtime == "onnx":
        options = writer.runners[DECODE].session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize("form", ["int8", "int8_weight_only"])
def test_a_writer_in_eight_bits_is_smaller(form, tmp_path):
    need("openvino")
    torch.manual_seed(0)
    sizes = {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 256, "num_layers": 2, "vocab_size": 1000}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()
    batches = [{**sentences(model), "labels": torch.randint(2, 100, (3, 5))} for _ in range(2)]
    export(model, tmp_path / "float", "openvino")
    export(model, tmp_path / "there", "openvino", form, batches if form == "int8" else None)
    writer = load_exported(tmp_path / "there", form)
    assert writer.bytes_on_disk < 0.45 * load_exported(tmp_path / "float").bytes_on_disk
    assert writer.runtime == f"openvino {form.replace('_', ' ')}"
    assert writer.generate(**sentences(model), max_new_tokens=4).shape == (3, 5)


def test_calibrating_a_writer_needs_what_is_to_be_written(make_model, tmp_path):
    need("openvino")
    model = make_model("T5ForConditionalGeneration")
    with pytest.raises(ValueError, match="calibration needs labels, what is to be written"):
        export(model, tmp_path / "there", "openvino", "int8", [sentences(model)])
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    "head",
    [name for name, (family, _) in HEADS.items() if family.model_type == "t5" and "Conditional" not in name],
)
def test_every_head_of_t5_is_exported(head, make_model, tmp_path):
    need("onnx")
    assert export(make_model(head), tmp_path / "there", "onnx").difference < 1e-4


# ---- what a review found ----


def test_other_files_are_never_replaced(make_model, tmp_path):
    need("onnx")
    model = make_model()
    model.save_pretrained(tmp_path / "mine")
    for folder in (tmp_path / "mine", tmp_path):
        before = sorted(path.name for path in folder.iterdir())
        with pytest.raises(ValueError, match="holds other files than an export: name a folder of its own"):
            export(model, folder, "onnx")
        assert sorted(path.name for path in folder.iterdir()) == before


def test_the_model_stays_as_it_is(make_model, tmp_path):
    need("onnx")
    model = make_model().bfloat16().train()
    written = export(model, tmp_path / "there", "onnx")
    assert written.difference < 1e-4
    assert model.training
    assert model.dtype == torch.bfloat16


def test_unknown_architectures_are_refused_before_training(tmp_path):
    need("onnx")
    config = AlbertConfig(vocab_size=60, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=32)
    with pytest.raises(TypeError, match="albert"):
        build(tmp_path, model=AlbertForSequenceClassification(config), techniques={"export": ExportConfig(["onnx"])})


def test_one_runtime_is_a_list_too():
    with pytest.raises(ValueError, match=r"export='onnx' must be a list: give \['onnx'\]"):
        ExportConfig("onnx")


def test_a_float_export_is_measured_as_precisely_as_it_was_checked(make_model, tmp_path):
    need("openvino")
    techniques = {"export": ExportConfig(["openvino"], "none")}
    trainer = build(tmp_path, techniques=techniques)
    trainer.train()
    batch = collate(list(rows(8, seed=5)))
    batch.pop("labels")
    with torch.no_grad():
        expected = trainer.model.eval()(**batch).logits
    assert (trainer._exported["openvino"](**batch).logits - expected).abs().max() < 1e-5 * expected.abs().max()


def test_what_was_trained_is_kept_when_an_export_fails(tmp_path, monkeypatch):
    need("onnx")

    def fail(*_, **__):
        raise RuntimeError("no kernel for that")

    monkeypatch.setattr("hf_efficient.trainer.reporting.export", fail)
    trainer = build(tmp_path, techniques={"export": ExportConfig(["onnx"])})
    with pytest.raises(RuntimeError, match="no kernel"):
        trainer.train()
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "_student")
    assert torch.equal(saved.classifier.weight, trainer.model.classifier.weight)
