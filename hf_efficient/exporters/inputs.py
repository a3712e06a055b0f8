"""Sample inputs and calibration batches for exports."""

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
EXPORT_CALIBRATION_SAMPLES = 300  # NNCF's default


def sample_export_inputs(model: PreTrainedModel, batch_size: int, length: int) -> dict[str, torch.Tensor]:
    """Return random inputs (batch, tokens) with the names that a tokenizer returns for the model.

    Token types are included if the model has several. Inputs of multiple choice are (batch, choices, tokens).
    """
    inputs = model_inputs(model, batch_size, length)
    inputs["attention_mask"][-1, ..., length // 2 :] = 0
    if (getattr(model.config, "type_vocab_size", 0) or 0) > 1:
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    if "For" in type(model).__name__ and not generates_text(model):
        inputs.pop("decoder_input_ids", None)  # these heads compute the decoder's inputs themselves
    if type(model).__name__.endswith("ForMultipleChoice"):
        return {name: value.repeat(1, NUM_CHOICES, 1) for name, value in inputs.items()}
    return inputs


def component_inputs(
    model: PreTrainedModel, batch: Mapping[str, torch.Tensor]
) -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    """Return the components that `model` is exported as: by name, the module and its inputs for `batch`.

    A model that generates text has three: the encoder, the decoder without and the decoder with a filled cache.
    """
    if not generates_text(model):
        return {"model": (model, dict(batch))}
    encoder_inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    ids = batch["decoder_input_ids"]
    with torch.no_grad():
        encoder_outputs = model.get_encoder()(**encoder_inputs)
        shared = {"attention_mask": batch["attention_mask"], "encoder_outputs": encoder_outputs}
        prefill = model(**shared, decoder_input_ids=ids[:, :-1], past_key_values=new_decoder_cache(), use_cache=True)
    prefill_inputs = {"decoder_input_ids": ids[:, :-1], "past_key_values": new_decoder_cache()}
    decode_inputs = {"decoder_input_ids": ids[:, -1:], "past_key_values": prefill.past_key_values}
    return {
        ENCODER: (model.get_encoder(), encoder_inputs),
        PREFILL: (model, {**shared, **prefill_inputs, "use_cache": True}),
        DECODE: (model, {**shared, **decode_inputs, "use_cache": True}),
    }


def generates_text(model: Any) -> bool:
    """Whether `model` has `generate`."""
    return bool(getattr(model, "can_generate", bool)())


def take_calibration_batches(batches: Iterable[Mapping[str, torch.Tensor]]) -> list[Mapping[str, torch.Tensor]]:
    """Return the first batches, up to `EXPORT_CALIBRATION_SAMPLES` examples in total."""
    taken: list[Mapping[str, torch.Tensor]] = []
    for batch in batches:
        taken.append(batch)
        if sum(len(each["input_ids"]) for each in taken) >= EXPORT_CALIBRATION_SAMPLES:
            break
    return taken


def complete_batch(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the inputs of an export of `model` for a batch of data, on the device of the model.

    Raises UserError if the model generates text and the batch has no labels.
    """
    inputs = dict(batch)
    if generates_text(model) and "decoder_input_ids" not in inputs:
        if "labels" not in inputs:
            raise UserError(
                f"calibration batches have {', '.join(batch)}: a model that generates text needs labels too, the "
                "texts to generate"
            )
        inputs["decoder_input_ids"] = shift_right(inputs["labels"], model.config)
    names = list(sample_export_inputs(model, 1, 2))
    return {name: value.to(model.device) for name, value in fill_missing_inputs(inputs, names).items()}


def calibration_inputs(
    model: PreTrainedModel, batches: Iterable[Mapping[str, torch.Tensor]], components: list[str]
) -> dict[str, list[Any]]:
    """Return the inputs of each component for complete batches.

    Raises UserError if there are none.
    """
    inputs_by_component: dict[str, list[Any]] = {name: [] for name in components}
    for batch in batches:
        for name, (_, inputs) in component_inputs(model, batch).items():
            inputs_by_component[name].append(inputs)
    if not any(inputs_by_component.values()):
        raise UserError("the calibration data is empty: give at least one batch")
    return inputs_by_component
