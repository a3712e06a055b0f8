"""Half precision is measured on GPUs alone."""

import pytest
import torch

from hf_efficient.variants import half_precision
from hf_efficient.variants.half_precision import half_precision_forms, half_precision_types

CUDA = torch.device("cuda")


@pytest.mark.parametrize(("has_bfloat16", "types"), [(True, ("bfloat16", "float16")), (False, ("float16",))])
def test_types_are_those_of_the_device(monkeypatch, has_bfloat16, types):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    assert half_precision_types(CUDA) == types
    assert half_precision_types(torch.device("cpu")) == ()


def test_teacher_and_student_are_converted(make_model, monkeypatch):
    monkeypatch.setattr(half_precision, "half_precision_types", lambda device: ("bfloat16", "float16"))
    models = {"teacher": make_model(), "student": make_model(seed=1), "quantized": make_model()}
    forms = half_precision_forms(models, CUDA)
    assert {role: form.dtype for role, form in forms.items()} == {
        "teacher bfloat16": torch.bfloat16,
        "teacher float16": torch.float16,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
    assert models["student"].dtype == torch.float32
    weight = models["student"].classifier.weight
    assert torch.equal(forms["float16"].classifier.weight, weight.half())


def test_model_in_half_precision_has_no_further_form(make_model, monkeypatch):
    monkeypatch.setattr(half_precision, "half_precision_types", lambda device: ("float16",))
    assert half_precision_forms({"student": make_model().half()}, CUDA) == {}
    assert list(half_precision_forms({"teacher": make_model()}, CUDA)) == ["float16"]  # of the model itself
