"""Copies of models in half precision, which GPUs compute faster than float32."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from hf_efficient.models import is_quantized

HALF_TYPES = ("bfloat16", "float16")
CONVERTED_ROLES = ("teacher", "student", "model")


def half_precision_types(device: torch.device) -> tuple[str, ...]:
    """Return the half-precision types that `device` multiplies matrices in: on a CUDA device those of `HALF_TYPES`."""
    if device.type != "cuda":
        return ()
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return HALF_TYPES if has_bfloat16 else ("float16",)


def half_precision_forms(models: Mapping[str, PreTrainedModel], device: torch.device) -> dict[str, PreTrainedModel]:
    """Return copies in half precision of those of `models`, by role, that are in float32.

    Their roles are the data type, "bfloat16"; that of a student's teacher has its role before it, "teacher bfloat16".
    """
    forms = {}
    for role in CONVERTED_ROLES:
        model = models.get(role)
        if model is None or model.dtype != torch.float32 or is_quantized(model):
            continue
        for dtype in half_precision_types(device):
            form_role = f"{role} {dtype}" if role == "teacher" and "student" in models else dtype
            forms[form_role] = copy.deepcopy(model).to(getattr(torch, dtype))
    return forms
