"""Sample inputs and calibration data of exports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.errors import UserError
from hf_efficient.exporters.runtime_models import (
    DECODE,
    ENCODER,
    PREFILL,
    fill_missing_inputs,
    new_decoder_cache,
    shift_right,
)
from hf_efficient.measurement.comparison import model_inputs

NUM_CHOICES = 4
EXPORT_CALIBRATION_SAMPLES = 300  # what NNCF takes by default


def sample_export_inputs(model: PreTrainedModel, batch_size: int, length: int) -> dict[str, torch.Tensor]:
    """Return what a tokenizer gives the model, (batch, tokens): types of tokens too where it knows several.

    Where one of several texts is chosen, they are (batch, choices, tokens).
    """
    inputs = model_inputs(model, batch_size, length)
    inputs["attention_mask"][-1, ..., length // 2 :] = 0
    if (getattr(model.config, "type_vocab_size", 0) or 0) > 1:
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    if "For" in type(model).__name__ and not generates_text(model):
        inputs.pop("decoder_input_ids", None)  # these heads make what the decoder reads by themselves
    if type(model).__name__.endswith("ForMultipleChoice"):
        return {name: value.repeat(1, NUM_CHOICES, 1) for name, value in inputs.items()}
    return inputs


def component_inputs(
    model: PreTrainedModel, batch: Mapping[str, torch.Tensor]
) -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    """Return the parts that `model` is exported as, by name, and what each is called with to answer `batch`."""
    if not generates_text(model):
        return {"model": (model, dict(batch))}
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    ids = batch["decoder_input_ids"]
    with torch.no_grad():
        read = {"attention_mask": batch["attention_mask"], "encoder_outputs": model.get_encoder()(**texts)}
        past = model(**read, decoder_input_ids=ids[:, :-1], past_key_values=new_decoder_cache(), use_cache=True)
    goes_on = {"decoder_input_ids": ids[:, -1:], "past_key_values": past.past_key_values}
    begins = {"decoder_input_ids": ids[:, :-1], "past_key_values": new_decoder_cache()}
    return {
        ENCODER: (model.get_encoder(), texts),
        PREFILL: (model, {**read, **begins, "use_cache": True}),
        DECODE: (model, {**read, **goes_on, "use_cache": True}),
    }


def generates_text(model: Any) -> bool:
    return bool(getattr(model, "can_generate", bool)())


def take_calibration_batches(batches: Iterable[Mapping[str, torch.Tensor]]) -> list[Mapping[str, torch.Tensor]]:
    """Return the first batches, as many as calibration looks at."""
    found: list[Mapping[str, torch.Tensor]] = []
    for batch in batches:
        found.append(batch)
        if sum(len(each["input_ids"]) for each in found) >= EXPORT_CALIBRATION_SAMPLES:
            break
    return found


def calibration_inputs(
    model: PreTrainedModel, batches: Iterable[Mapping[str, torch.Tensor]], parts: list[str]
) -> dict[str, list[Any]]:
    """Return, for each of `parts`, what it is called with for a few batches. Raises ValueError: there is none."""
    found: dict[str, list[Any]] = {name: [] for name in parts}
    names = list(sample_export_inputs(model, 1, 2))
    for batch in take_calibration_batches(batches):
        known = dict(batch)
        if generates_text(model) and "decoder_input_ids" not in known:
            if "labels" not in known:
                raise UserError(
                    f"calibration needs labels, what is to be written; the batches have {', '.join(batch)}"
                )
            known["decoder_input_ids"] = shift_right(known["labels"], model.config)
        known = {name: value.to(model.device) for name, value in fill_missing_inputs(known, names).items()}
        for name, (_, inputs) in component_inputs(model, known).items():
            found[name].append(inputs)
    if not any(found.values()):
        raise UserError("the calibration data is empty: at least one batch is needed")
    return found
