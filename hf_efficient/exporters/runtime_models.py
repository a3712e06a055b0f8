"""Exported models as torch modules: they are called, evaluated, timed and generate text like any model."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, GenerationMixin

from hf_efficient.errors import UserError
from hf_efficient.exporters.signal_stack import ordinary_signal_stack
from hf_efficient.measurement.cost import folder_bytes
from hf_efficient.measurement.runtimes import RUNTIME_TITLES, check_runtime, suppress_output
from hf_efficient.models.inputs import TOKEN_TYPES, is_label

# Components of an exported encoder-decoder: the encoder, the decoder's first call, and its calls with a filled cache.
ENCODER, PREFILL, DECODE = "encoder", "prefill", "decode"
# What files raise that are cut short or hold something else, and the modules of such errors of the runtimes.
DAMAGE_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)
RUNTIME_MODULES = ("onnx", "google.protobuf", "openvino")


class RuntimeModel(nn.Module):
    """An exported model as a module without parameters, to be evaluated and timed like any other.

    | attribute | meaning |
    | --- | --- |
    | bytes_on_disk | size of the exported folder |
    | runtime, title | names of the runtime and of the model in tables, with the quantization |
    """

    def __init__(self, exported: Any, directory: Path, quantization: str | None) -> None:
        super().__init__()
        self.exported = exported
        self.config = exported.config
        self.bytes_on_disk = folder_bytes(directory)
        format = _export_format(exported)
        suffix = quantization_title(quantization)
        self.runtime, self.title = f"{RUNTIME_TITLES.get(format, format)} {suffix}", f"{format} {suffix}"

    def forward(self, token_type_ids: torch.Tensor | None = None, **inputs: Any) -> Any:
        """Return the outputs of the exported model; if labels are given, with a loss of NaN.

        Losses are not exported, and `Trainer` needs one to evaluate. Token types are a named argument, since what has
        none does not get them; an export without that input ignores them.
        """
        if token_type_ids is not None:
            inputs[TOKEN_TYPES] = token_type_ids
        outputs = self.exported(**fill_missing_inputs(inputs, self.exported.components["model"].metadata.kwargs))
        if any(is_label(name) for name in inputs):
            outputs["loss"] = torch.tensor(math.nan)
        return outputs


class _RuntimeEncoder(nn.Module):
    """The encoder of an exported model."""

    main_input_name = "input_ids"

    def __init__(self, runner: Any) -> None:
        super().__init__()
        self.runner = runner

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> Any:
        """Return the encoder's outputs, with hidden states (batch, tokens, hidden)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.runner(input_ids=input_ids, attention_mask=mask)


class RuntimeSeq2SeqModel(RuntimeModel, GenerationMixin):
    """An exported encoder-decoder with the interface of T5: `forward` and `generate`.

    The component `prefill` reads the encoder's outputs and the first tokens and fills the cache; `decode` adds one
    token at a time.
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
        """The device of inputs and outputs."""
        return self.exported.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the outputs."""
        return torch.float32

    @staticmethod
    def is_remote_code() -> bool:
        """Whether the class comes from a repository: no. `generate` asks for it."""
        return False

    @staticmethod
    def get_experts_implementation() -> dict[str, str]:
        """Return no implementations: there are no experts. `generate` asks for them."""
        return {}

    def can_generate(self) -> bool:
        """Whether the model has `generate`: yes."""
        return True

    def get_encoder(self, *_: Any, **__: Any) -> Any:
        """Return the encoder."""
        return self.encoder

    def forward(  # type: ignore[override]
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
        """Return logits (batch, decoder tokens, vocabulary) and, unless `use_cache` is False, the cache.

        If labels are given there is a loss of NaN too: losses are not exported.

        Raises UserError if neither `input_ids` nor `encoder_outputs` are given.
        """
        if encoder_outputs is None:
            if input_ids is None:
                raise UserError("give input_ids (batch, tokens), or the encoder_outputs of them")
            encoder_outputs = self.encoder(input_ids, attention_mask)
        if attention_mask is None:
            attention_mask = torch.ones(encoder_outputs.last_hidden_state.shape[:2], dtype=torch.long)
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = shift_right(labels, self.config)
        has_cache = past_key_values is not None and past_key_values.get_seq_length() > 0
        outputs = self.runners[DECODE if has_cache else PREFILL](
            # With shared memory OpenVINO would write the new cache over the one that it reads.
            share_inputs=False,
            attention_mask=attention_mask,
            encoder_outputs=encoder_outputs,
            decoder_input_ids=decoder_input_ids,
            past_key_values=past_key_values if has_cache else new_decoder_cache(),
        )
        if use_cache is False:
            outputs["past_key_values"] = None
        if labels is not None:
            outputs["loss"] = torch.tensor(math.nan)
        return outputs


@ordinary_signal_stack()
def load_exported(
    directory: str | os.PathLike[str], quantization: str | None = None, full_precision: bool = False
) -> RuntimeModel:
    """Return the model in a folder that `export` wrote; it runs on as many threads as torch uses now.

    | argument | meaning |
    | --- | --- |
    | quantization | what the model was exported with, for its name in tables |
    | full_precision | compute float32 in float32; by default OpenVINO uses bfloat16 on processors that support it |

    Raises UserError if the folder holds no export, or a damaged one, or the packages of the runtime are not installed.
    """
    folder = Path(directory)
    manifest = folder / transformers.exporters.base.EXPORT_MANIFEST_FILE
    if not manifest.is_file():
        raise UserError(f"{str(folder)!r} holds no export: give a folder that `export` wrote, such as out/onnx")
    with _explain_damage(folder), suppress_output():
        content = json.loads(manifest.read_text(encoding="utf-8"))
        check_runtime(content["export_format"])
        names = content["components"].keys()
        if not (names >= {"model"} or names >= {ENCODER, PREFILL, DECODE}):
            raise UserError(f"{manifest} names the components {sorted(names)}, which are no model: export it again")
        exported = transformers.exporters.ExportedModel.from_pretrained(folder)
        generates = DECODE in exported.components
        exported.to(**_session_options(_export_format(exported), full_precision, generates))
    return (RuntimeSeq2SeqModel if generates else RuntimeModel)(exported, folder, quantization)


@contextmanager
def _explain_damage(folder: Path) -> Iterator[None]:
    """Within the context the errors of files that are damaged become a UserError; those of the runtimes are theirs."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, DAMAGE_ERRORS) and not type(error).__module__.startswith(RUNTIME_MODULES):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"the export in {str(folder)!r} cannot be loaded ({reason}): export the model again, or download it again"
        ) from error


def quantization_title(quantization: str | None) -> str:
    """Return the name of a quantization in tables."""
    return (quantization or "float32").replace("_", " ")


def fill_missing_inputs(batch: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Return the inputs `names`; a missing mask is all ones, missing token types are all zeros, as in the model."""
    defaults = {"attention_mask": torch.ones_like, "token_type_ids": torch.zeros_like}
    return {name: batch[name] if name in batch else defaults[name](batch["input_ids"]) for name in names}


def new_decoder_cache() -> Any:
    """Return an empty decoder cache."""
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def shift_right(labels: torch.Tensor, config: Any) -> torch.Tensor:
    """Return the decoder inputs (batch, tokens) for `labels` (batch, tokens): shifted right by the start token."""
    start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    ids = torch.cat([start, labels[:, :-1]], dim=1)
    return ids.masked_fill(ids == -100, config.pad_token_id)


def _export_format(exported: Any) -> str:
    return str(getattr(exported.export_format, "value", exported.export_format))


def _session_options(format: str, full_precision: bool, generates: bool) -> dict[str, Any]:
    if format == "openvino":
        precision = {"INFERENCE_PRECISION_HINT": "f32"} if full_precision else {}
        return {"config": {"INFERENCE_NUM_THREADS": torch.get_num_threads(), **precision}}
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if generates:  # torch computes between two tokens; waiting threads that spin would slow it down
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return {"session_options": options}
