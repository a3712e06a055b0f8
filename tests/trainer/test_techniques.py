"""Which techniques are used, and what follows for a run and for the report."""

import pytest

from hf_efficient import DistillationConfig, ExportConfig, PruningConfig, QuantizationConfig
from hf_efficient.trainer.techniques import Techniques

DISTILLATION, PRUNING = DistillationConfig(), PruningConfig(heads=0.5)
INT8, AWARE = QuantizationConfig(), QuantizationConfig(aware=True)


@pytest.mark.parametrize(
    ("techniques", "compresses", "trains", "quantizes"),
    [
        (Techniques(), False, True, False),
        (Techniques(export=ExportConfig(["onnx"])), False, True, False),
        (Techniques(distillation=DISTILLATION), True, True, False),
        (Techniques(pruning=PRUNING), True, True, False),
        (Techniques(quantization=INT8), True, False, True),
        (Techniques(quantization=AWARE), True, True, True),
        (Techniques(pruning=PRUNING, quantization=INT8), True, True, True),
    ],
    ids=["none", "export", "distillation", "pruning", "quantization", "aware", "pruning and quantization"],
)
def test_quantization_alone_does_not_train(techniques, compresses, trains, quantizes):
    assert (techniques.compresses, techniques.trains, techniques.quantizes) == (compresses, trains, quantizes)


@pytest.mark.parametrize(
    ("techniques", "description"),
    [
        (Techniques(), ""),
        (Techniques(distillation=DISTILLATION), f" on {DISTILLATION.describe()}"),
        (Techniques(quantization=AWARE), ", with fake quantization"),
        (
            Techniques(distillation=DISTILLATION, quantization=AWARE),
            f" on {DISTILLATION.describe()}, with fake quantization",
        ),
    ],
    ids=["labels", "teacher", "aware", "teacher and aware"],
)
def test_supervision_is_described_for_the_report(techniques, description):
    assert techniques.describe_supervision() == description


def test_report_holds_the_settings_of_the_techniques_that_are_used():
    assert Techniques().to_dict() == {}
    settings = Techniques(DISTILLATION, PRUNING, INT8, ExportConfig(["onnx"])).to_dict()
    assert list(settings) == ["distillation", "pruning", "quantization", "export"]
    assert settings["pruning"]["heads"] == 0.5
    assert settings["export"]["export"] == ["onnx"]


def test_report_holds_the_settings_of_a_vocabulary_that_was_trimmed_before():
    assert Techniques(pruning=PruningConfig(vocabulary=True)).to_dict()["pruning"]["vocabulary"]
