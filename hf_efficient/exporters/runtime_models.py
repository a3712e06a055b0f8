"""Exported models in the place of torch modules: they are called, evaluated, timed, and they generate."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, GenerationMixin

from hf_efficient.errors import UserError
from hf_efficient.measurement.cost import folder_bytes
from hf_efficient.measurement.runtimes import TITLES, suppress_output
from hf_efficient.models.inputs import is_label

# What an encoder with a decoder is exported as: texts are read, first tokens written, then one after the other.
ENCODER, PREFILL, DECODE = "encoder", "prefill", "decode"


class RuntimeModel(nn.Module):
    """An exported model in the place of a module, for whoever evaluates or times modules; it has no parameters.

    It runs on as many threads as torch has now, and otherwise as `ExportedModel.from_pretrained` loads it.
    """

    def __init__(self, exported: Any, directory: Path, quantization: str | None) -> None:
        super().__init__()
        self.exported = exported
        self.config = exported.config
        self.bytes_on_disk = folder_bytes(directory)
        format = _export_format(exported)
        form = quantization_title(quantization)
        self.runtime, self.title = f"{TITLES.get(format, format)} {form}", f"{format} {form}"

    def forward(self, **inputs: Any) -> Any:
        """Return what the model that was exported answers; where labels are given, with a loss that is no number.

        A loss is not exported, and `Trainer` evaluates no model without one.
        """
        outputs = self.exported(**fill_missing_inputs(inputs, self.exported.components["model"].metadata.kwargs))
        if any(is_label(name) for name in inputs):
            outputs["loss"] = torch.tensor(math.nan)
        return outputs


class _RuntimeEncoder(nn.Module):
    """The part of an exported model that reads."""

    main_input_name = "input_ids"

    def __init__(self, runner: Any) -> None:
        super().__init__()
        self.runner = runner

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> Any:
        """Return hidden states, (batch, tokens, width)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.runner(input_ids=input_ids, attention_mask=mask)


class RuntimeSeq2SeqModel(RuntimeModel, GenerationMixin):
    """An exported encoder with a decoder: called like T5, and generating as every model of Transformers does.

    `prefill` reads the encoder's answer and the first tokens and fills the cache; `decode` goes on a token at a time.
    """

    main_input_name = "input_ids"
    base_model_prefix = "model"
    _is_stateful = False

    def __init__(self, exported: Any, directory: Path, quantization: str | None) -> None:
        super().__init__(exported, directory, quantization)
        self.generation_config = exported.generation_config or GenerationConfig.from_model_config(self.config)
        self.runners = exported.runners
        self.encoder = _RuntimeEncoder(self.runners[ENCODER])

    @property
    def device(self) -> torch.device:
        """Where tokens are expected: what runs elsewhere moves them there by itself."""
        return self.exported.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of what is answered."""
        return torch.float32

    @staticmethod
    def is_remote_code() -> bool:
        """It is ours."""
        return False

    @staticmethod
    def get_experts_implementation() -> dict[str, str]:
        """There are no experts in it, and so no ways to run them."""
        return {}

    def can_generate(self) -> bool:
        """It can."""
        return True

    def get_encoder(self, *_: Any, **__: Any) -> Any:
        """Return the part that reads the texts."""
        return self.encoder

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> Any:
        """Return logits (batch, decoder tokens, vocabulary) and the cache, unless `use_cache` is False.

        With labels there is a loss besides, that is no number.
        """
        if encoder_outputs is None:
            if input_ids is None:
                raise UserError("give input_ids (batch, tokens), or encoder_outputs made of them")
            encoder_outputs = self.encoder(input_ids, attention_mask)
        if attention_mask is None:
            attention_mask = torch.ones(encoder_outputs.last_hidden_state.shape[:2], dtype=torch.long)
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = shift_right(labels, self.config)
        begun = past_key_values is not None and past_key_values.get_seq_length() > 0
        outputs = self.runners[DECODE if begun else PREFILL](
            # OpenVINO would read the cache where it is, while it writes the next one there.
            share_inputs=False,
            attention_mask=attention_mask,
            encoder_outputs=encoder_outputs,
            decoder_input_ids=decoder_input_ids,
            past_key_values=past_key_values if begun else new_decoder_cache(),
        )
        if use_cache is False:
            outputs["past_key_values"] = None
        if labels is not None:
            outputs["loss"] = torch.tensor(math.nan)
        return outputs


def load_exported(
    directory: str | os.PathLike[str], quantization: str | None = None, full_precision: bool = False
) -> RuntimeModel:
    """Return the model in a folder that `export` wrote, on as many threads as torch has now.

    `quantization` is what it was exported with, for its name in tables. Left to itself OpenVINO computes in bfloat16
    what is in float, where the processor can; `full_precision` keeps it from that.
    """
    folder = Path(directory)
    with suppress_output():
        exported = transformers.exporters.ExportedModel.from_pretrained(folder)
        writes = DECODE in exported.components
        exported.to(**_session_options(_export_format(exported), full_precision, writes))
    return (RuntimeSeq2SeqModel if writes else RuntimeModel)(exported, folder, quantization)


def quantization_title(quantization: str | None) -> str:
    """Return what to call a quantization in a table."""
    return (quantization or "float32").replace("_", " ")


def fill_missing_inputs(batch: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Return just the inputs `names`, as the model would take those that are not there: no padding, one segment."""
    absent = {"attention_mask": torch.ones_like, "token_type_ids": torch.zeros_like}
    return {name: batch[name] if name in batch else absent[name](batch["input_ids"]) for name in names}


def new_decoder_cache() -> Any:
    """Return the cache of a decoder that has written nothing."""
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def shift_right(labels: torch.Tensor, config: Any) -> torch.Tensor:
    """Return what a decoder reads to write `labels`, (batch, tokens): the start token, and all but the last."""
    start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    ids = torch.cat([start, labels[:, :-1]], dim=1)
    return ids.masked_fill(ids == -100, config.pad_token_id)


def _export_format(exported: Any) -> str:
    return str(getattr(exported.export_format, "value", exported.export_format))


def _session_options(format: str, full_precision: bool, writes: bool) -> dict[str, Any]:
    if format == "openvino":
        precision = {"INFERENCE_PRECISION_HINT": "f32"} if full_precision else {}
        return {"config": {"INFERENCE_NUM_THREADS": torch.get_num_threads(), **precision}}
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if writes:  # between two tokens torch computes, on processors that waiting threads would keep busy
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return {"session_options": options}
