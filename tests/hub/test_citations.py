import pytest

from hf_efficient.hub.citations import CITATIONS, list_citations


@pytest.mark.parametrize(
    ("configs", "names"),
    [
        ({}, []),
        ({"distillation": {}}, ["distillation"]),
        ({"distillation": {"attention_weight": 1.0}}, ["layers", "distillation"]),
        ({"distillation": {"relation_weight": 1.0, "targets": "both"}}, ["relations", "targets", "distillation"]),
        ({"pruning": {"criterion": "fisher"}}, ["fisher", "pruning"]),
        ({"pruning": {"criterion": "random", "ramp": 0.5, "rewind": "weights"}}, ["gradual", "rewinding", "pruning"]),
        ({"quantization": {"scheme": "int8_dynamic"}}, ["quantization"]),
        ({"quantization": {"scheme": "int8_static"}}, ["outliers", "rounding", "quantization"]),
        ({"quantization": {"scheme": "codebook"}, "distillation": {}}, ["distillation", "codebook"]),
    ],
)
def test_papers_are_those_of_the_techniques_used(configs, names):
    assert list_citations(configs) == [CITATIONS[name] for name in names]
