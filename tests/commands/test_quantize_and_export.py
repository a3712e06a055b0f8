"""`hf-efficient quantize`, `export` and `measure --forms`: from the command line to what loads."""

import pytest
import torch
from reviews import flags, save_model, tiny_config
from transformers import AutoModelForSequenceClassification, BertModel, set_seed
from transformers.exporters import ExportedModel

from hf_efficient import CompressionReport
from hf_efficient.cli import main
from hf_efficient.variants.config import VARIANTS

RUNTIMES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "nncf")}


def need(*formats):
    for format in formats:
        for package in RUNTIMES[format]:
            pytest.importorskip(package, reason=f"the extra hf_efficient[{format}] is not installed")


def without_data(job_dir, **changes):
    given = {"model_name_or_path": job_dir / "model", "output_dir": job_dir / "out", **changes}
    return [part for name, value in given.items() for part in (f"--{name}", *map(str, _listed(value)))]


def _listed(value):
    return value if isinstance(value, (list, tuple)) else [value]


def test_quantize_needs_no_data(job_dir):
    assert main(["quantize", *without_data(job_dir, scheme="codebook", bits=4)]) == 0
    report = CompressionReport.load(job_dir / "out")
    assert [row.role for row in report.models] == ["teacher", "quantized"]
    assert report.models[1].bytes_on_disk < 0.6 * report.models[0].bytes_on_disk
    assert report.models[1].metrics == {}
    assert report.dataset is None
    loaded = AutoModelForSequenceClassification.from_pretrained(job_dir / "out", trust_remote_code=True)
    assert loaded.config.codebooks
    assert "no evaluation set" in (job_dir / "out" / "README.md").read_text()


def test_quantize_measures_what_is_kept_where_data_is_named(job_dir):
    assert main(["quantize", *flags(job_dir, scheme="int8_weight_only", skip_modules="layer.0")]) == 0
    report = CompressionReport.load(job_dir / "out")
    assert report.row("quantized").metrics["accuracy"] > 0.9
    assert not any("trained" in stage for stage in report.stages)


def test_export_leaves_the_model_as_it_is(job_dir):
    need("onnx", "openvino")
    command = ["export", *flags(job_dir), "--export", "onnx", "openvino"]
    assert main(command) == 0
    report = CompressionReport.load(job_dir / "out")
    assert [(row.role, row.name) for row in report.models] == [
        ("teacher", "model"),
        ("onnx", "onnx int8"),
        ("openvino", "openvino int8"),
    ]
    assert all(row.metrics["accuracy"] > 0.9 for row in report.models)
    assert all(row.ratios.metric_retained for row in report.models)
    before = AutoModelForSequenceClassification.from_pretrained(job_dir / "model").state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(job_dir / "out").state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    for format in ("onnx", "openvino"):
        assert ExportedModel.from_pretrained(job_dir / "out", subfolder=format).config.num_labels == 2
    card = (job_dir / "out" / "README.md").read_text()
    assert "A model in forms for several runtimes, measured." in card


def test_export_in_float_needs_no_data(job_dir):
    need("onnx")
    given = without_data(job_dir, export="onnx", export_quantization="none")
    assert main(["export", *given]) == 0
    assert CompressionReport.load(job_dir / "out").row("onnx").name == "onnx float32"


def test_measure_puts_the_forms_of_a_model_side_by_side(job_dir):
    need("onnx", "openvino")
    asked = ["float32", "bfloat16", "int8", "onnx_int8", "openvino_int8"]
    command = ["measure", str(job_dir / "model"), "--forms", *asked, "--latency_sequence_length", "16"]
    files = ["--validation_file", str(job_dir / "dev.csv"), "--train_file", str(job_dir / "train.csv")]
    assert main([*command, *files, "--output_dir", str(job_dir / "measured")]) == 0
    report = CompressionReport.load(job_dir / "measured")
    assert [row.name for row in report.models] == asked
    assert [row.latency_ms.runtime for row in report.models] == [
        "torch float32",
        "torch bfloat16",
        "torch int8",
        "onnxruntime int8",
        "openvino int8",
    ]
    for row in report.models:
        assert row.metrics["accuracy"] > 0.9
        assert row.samples_per_second > 0
        assert row.bytes_on_disk > 0
    assert report.models[1].bytes_on_disk < 0.6 * report.models[0].bytes_on_disk


def test_forms_of_several_models_are_named_after_both(job_dir):
    command = ["measure", str(job_dir / "model"), str(job_dir / "model"), "--forms", "float32", "int8_weight_only"]
    assert main([*command, "--output_dir", str(job_dir / "measured"), "--latency_sequence_length", "8"]) == 0
    names = [row.name for row in CompressionReport.load(job_dir / "measured").models]
    assert names == ["model float32", "model int8_weight_only"] * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["measure", "nowhere", "--forms", "int3"], f"variant 'int3' is unknown: give one of {', '.join(VARIANTS)}"),
        (["quantize"], "in which form? give --scheme, one of int8_dynamic, int8_weight_only, codebook"),
        (["quantize", "--scheme", "codebook", "--layers", "0.5"], "quantize neither prunes nor trains"),
        (["quantize", "--scheme", "int8_dynamic", "--aware", "True"], "quantize neither prunes nor trains"),
        (["export"], "for which runtime? give --export, one or more of onnx, openvino"),
        (["export", "--export", "onnx", "--scheme", "int8_dynamic"], "export leaves the model as it is"),
        (["export", "--export", "tensorrt"], "format='tensorrt' is unknown: give one of onnx, openvino"),
    ],
)
def test_what_cannot_work_is_said(job_dir, capsys, arguments, said):
    given = [] if arguments[0] == "measure" else without_data(job_dir)
    assert main([*arguments, *given]) == 2
    assert said in capsys.readouterr().err
    assert not (job_dir / "out").exists()


def test_ranges_need_rows_that_nothing_is_judged_on(job_dir, capsys):
    need("openvino")
    command = ["measure", str(job_dir / "model"), "--forms", "openvino_int8"]
    assert main([*command, "--validation_file", str(job_dir / "dev.csv")]) == 2
    assert "variant openvino_int8 needs calibration data that no metric is measured on" in capsys.readouterr().err
    assert main(["export", *without_data(job_dir, export="openvino")]) == 2
    assert "OpenVINO's int8 fixes the ranges of activations on training data" in capsys.readouterr().err


def test_a_model_without_a_head_is_not_quantized_for_a_task(job_dir, capsys):
    set_seed(0)
    save_model(job_dir / "base", BertModel(tiny_config()))
    given = without_data(job_dir, model_name_or_path=job_dir / "base", scheme="int8_weight_only")
    assert main(["quantize", *given]) == 2
    assert "has no head for text-classification" in capsys.readouterr().err


def test_overwriting_leaves_nothing_of_the_first_model(job_dir):
    need("onnx")
    assert main(["export", *without_data(job_dir, export="onnx", export_quantization="none")]) == 0
    command = ["quantize", *without_data(job_dir, scheme="codebook"), "--overwrite_output_dir"]
    assert main(command) == 0
    assert not (job_dir / "out" / "onnx").exists()


def test_an_overwriting_that_was_interrupted_is_not_finished(job_dir, monkeypatch):
    given = without_data(job_dir, scheme="int8_weight_only")
    assert main(["quantize", *given]) == 0
    with monkeypatch.context() as patched:
        patched.setattr("hf_efficient.trainer.trainer.quantize", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(["quantize", *without_data(job_dir, scheme="codebook"), "--overwrite_output_dir"])
    assert main(["quantize", *without_data(job_dir, scheme="codebook"), "--resume_from_checkpoint", "True"]) == 0
    assert CompressionReport.load(job_dir / "out").configs["quantization"]["scheme"] == "codebook"


def test_a_push_that_failed_is_made_when_resumed(job_dir, monkeypatch):
    pushed = []
    monkeypatch.setattr(
        "hf_efficient.hub.publisher.push_output_dir", lambda folder, args: pushed.append((folder, args.hub_model_id))
    )
    assert main(["quantize", *without_data(job_dir, scheme="int8_weight_only")]) == 0
    given = without_data(job_dir, scheme="int8_weight_only", resume_from_checkpoint=True, hub_model_id="me/x")
    assert main(["quantize", *given]) == 0
    assert pushed == []
    assert main(["quantize", *given, "--push_to_hub"]) == 0
    assert pushed == [(job_dir / "out", "me/x")]


def test_steps_of_a_recipe_train_nothing_here(job_dir):
    assert main(["quantize", *without_data(job_dir, scheme="int8_weight_only", max_steps=3)]) == 0
    assert not any("trained" in stage for stage in CompressionReport.load(job_dir / "out").stages)


def test_a_quantized_model_has_no_other_forms(job_dir, capsys):
    assert main(["quantize", *without_data(job_dir, scheme="int8_weight_only")]) == 0
    assert main(["measure", str(job_dir / "out"), "--forms", "float32"]) == 2
    assert "out is quantized already: leave out --variants, or give its float model" in capsys.readouterr().err


def test_the_card_of_codebooks_tells_of_codebooks(job_dir):
    assert main(["quantize", *without_data(job_dir, scheme="codebook")]) == 0
    card = (job_dir / "out" / "README.md").read_text()
    assert "Weights are indices into codebooks" in card
    assert "Deep Compression" in card
    for untrue in ("differ in width", "Eight bits", "What was removed", "Jacob"):
        assert untrue not in card
