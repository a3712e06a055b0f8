"""Size, speed, memory and energy of models, compared with each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from hf_efficient.errors import UserError
from hf_efficient.measurement.cost import (
    compressed_bytes,
    count_flops,
    count_nonzero_parameters,
    count_parameters,
    is_int8,
    saved_bytes,
)
from hf_efficient.measurement.energy import EnergyCounter
from hf_efficient.measurement.latency import (
    sample_inputs,
    summarize_latency,
    synchronize,
    time_interleaved,
)
from hf_efficient.measurement.memory import peak_bytes
from hf_efficient.measurement.report_rows import GenerationLatency, ModelRow, with_ratios
from hf_efficient.measurement.runtimes import RUNTIME_TITLES, build_runner, check_runtime

MIN_ZERO_DIFFERENCE = 0.01
ENERGY_SECONDS = 5.0
NEW_TOKENS = 20


def measure(model: nn.Module, inputs: Mapping[str, torch.Tensor], name: str = "model", repeats: int = 60) -> ModelRow:
    """Return the size, the operations, the latency and the memory of `model` on `inputs`.

    | argument | meaning |
    | --- | --- |
    | model | any torch module; it is put into eval mode |
    | inputs | keyword arguments of its forward pass, tensors (batch, tokens) |
    | name | what the model is called in tables |
    | repeats | the number of forward passes whose median is the latency |

    Raises UserError if `model` or `inputs` are something else.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model is a {type(model).__name__}: give a torch module, such as from_pretrained returns")
    if not isinstance(inputs, Mapping) or not any(map(torch.is_tensor, inputs.values())):
        raise UserError(
            "inputs hold no tensors: give the arguments of the forward pass by name, such as "
            "dict(tokenizer(['a text'], return_tensors='pt'))"
        )
    return compare({name: model}, inputs, repeats=repeats)[0]


def compare(
    models: Mapping[str, nn.Module],
    inputs: Mapping[str, torch.Tensor],
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    metric: str | None = None,
    names: Mapping[str, str] | None = None,
    structures: Mapping[str, Mapping[str, Any]] | None = None,
    compiled: Mapping[str, Callable[..., Any]] | None = None,
    repeats: int = 60,
    runtimes: Mapping[str, str] | None = None,
    throughput: Mapping[str, float] | None = None,
) -> tuple[ModelRow, ...]:
    """Return a row for each of `models`, timed alternately, with ratios relative to the role "teacher".

    | argument | meaning |
    | --- | --- |
    | models | the models by role: "teacher", "student", ... |
    | inputs | tensors (batch, tokens), the same for all models |
    | metrics | by role, the metrics on the evaluation data |
    | metric | the name of the metric that models are compared by |
    | names | by role, what the model is called in tables; the role by default |
    | structures | by role, the heads and neurons of each layer |
    | compiled | by role, the compiled forward pass to time instead of the model's own |
    | repeats | the number of forward passes that are timed |
    | runtimes | by role, the name in `RUNTIMES` of the runtime to time the model in; torch by default |
    | throughput | by role, texts a second on real data; None: batch size of `inputs` / latency |

    A module that runs outside of torch names its runtime in an attribute `runtime`, "openvino int8"; it has no
    parameters to count.

    Raises UserError if a runtime is unknown or not installed.
    """
    compiled = {} if compiled is None else compiled
    runtimes = {} if runtimes is None else runtimes
    for runtime in runtimes.values():
        check_runtime(runtime)
    for model in models.values():
        model.eval()
    calls = {
        role: partial(compiled[role], **inputs)
        if role in compiled
        else build_runner(runtimes.get(role, "torch"), model, inputs)
        for role, model in models.items()
    }
    durations = time_interleaved(calls, repeats)
    generation = _time_generation(
        {role: model for role, model in models.items() if role not in compiled}, inputs, repeats
    )
    first_input = next(iter(inputs.values()))
    (batch_size, *_, length), device = first_input.shape, first_input.device
    rows = []
    for role, model in models.items():
        runtime = "compiled" if role in compiled else runtimes.get(role, "torch")
        external_runtime: str | None = getattr(model, "runtime", None)
        title = external_runtime or f"{RUNTIME_TITLES.get(runtime, runtime)} {_dtype_name(model)}"
        latency = summarize_latency(durations[role], batch_size, length, title)
        row = ModelRow(
            name=(names or {}).get(role, role),
            role=role,
            metrics=(metrics or {}).get(role, {}),
            bytes_on_disk=_bytes_on_disk(model),
            latency_ms=latency,
            generation_ms=generation.get(role),
            samples_per_second=batch_size / latency.p50 * 1e3 if throughput is None else throughput.get(role),
            energy_joules_per_sample=_energy_per_sample(calls[role], batch_size, device),
            structure=(structures or {}).get(role),
        )
        if external_runtime is None:
            row = replace(
                row,
                parameters=count_parameters(model),
                nonzero_parameters=count_nonzero_parameters(model),
                flops=count_flops(model, inputs),
            )
            if runtime in ("torch", "compiled"):
                row = replace(row, peak_memory_bytes=_peak_memory_bytes(row.bytes_on_disk, calls[role], device))
        rows.append(row)
    return with_ratios(_with_compressed_sizes(rows, models), metric)


def _time_generation(
    models: Mapping[str, Any], inputs: Mapping[str, torch.Tensor], repeats: int
) -> dict[str, GenerationLatency]:
    """Return by role the time of greedy generation of those of `models` that generate text, timed alternately."""
    generators = {role: model for role, model in models.items() if getattr(model, "can_generate", bool)()}
    if not generators:
        return {}
    calls = {
        f"{role} {tokens}": generation_call(model, inputs, tokens)
        for role, model in generators.items()
        for tokens in (1, NEW_TOKENS)
    }
    durations = time_interleaved(calls, max(1, repeats // 6), warmup=1, turn=5)
    batch_size, length = inputs["input_ids"].shape
    result = {}
    for role in generators:
        first, full = (statistics.median(durations[f"{role} {tokens}"]) for tokens in (1, NEW_TOKENS))
        result[role] = GenerationLatency(first, (full - first) / (NEW_TOKENS - 1), NEW_TOKENS, batch_size, length)
    return result


def generation_call(model: Any, inputs: Mapping[str, torch.Tensor], tokens: int) -> Callable[[], object]:
    """Return a call in which `model` generates `tokens` tokens from `inputs`, greedily and with a cache."""
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "num_beams": 1}
    return partial(model.eval().generate, **texts, **options)


def _peak_memory_bytes(weights: int | None, call: Callable[[], object], device: torch.device) -> int | None:
    """Return the bytes of the weights plus the peak of the tensors that `call` allocates, when it is not the first."""
    with torch.inference_mode():
        call()
        activations = peak_bytes(call, device)
    return None if weights is None or activations is None else weights + activations


def _energy_per_sample(call: Callable[[], object], batch_size: int, device: torch.device) -> float | None:
    """Return the energy of one sample in joules, measured over several seconds of calls; None without a counter.

    Counters measure the machine, so nothing is measured where several processes do the same work.
    """
    counter, calls = EnergyCounter(device), 0
    if torch.distributed.is_initialized() or not counter.counts:
        return None
    with counter, torch.inference_mode():
        end = time.perf_counter() + ENERGY_SECONDS
        while time.perf_counter() < end:
            call()
            synchronize()
            calls += 1
    return None if counter.energy is None else counter.energy.joules / (calls * batch_size)


def _bytes_on_disk(model: nn.Module) -> int | None:
    if hasattr(model, "save_pretrained"):
        return saved_bytes(model)
    size: int | None = getattr(model, "bytes_on_disk", None)
    return size


def _with_compressed_sizes(rows: Sequence[ModelRow], models: Mapping[str, nn.Module]) -> list[ModelRow]:
    """Return `rows` with the compressed sizes of the models with zeros, and of the first model to compare with.

    Compression is slow, so it is skipped unless a model has more zeros than the first.
    """
    first_density = rows[0].density or 1.0
    sparse_roles = [
        row.role for row in rows[1:] if row.density is not None and first_density - row.density >= MIN_ZERO_DIFFERENCE
    ]
    # Quantization rounds small weights to zero; that alone is not sparsity.
    if all(_dtype_name(models[role]) == "int8" for role in sparse_roles):
        return list(rows)
    return [
        replace(row, compressed_bytes_on_disk=compressed_bytes(models[row.role]))
        if row.bytes_on_disk is not None and row.role in (rows[0].role, *sparse_roles)
        else row
        for row in rows
    ]


def model_inputs(model: nn.Module, batch_size: int, sequence_length: int) -> dict[str, torch.Tensor]:
    """Return random inputs (batch, tokens) for `model` on its device, without padding.

    They are no longer than the model accepts. An encoder-decoder model gets texts that end with the end token, which
    occurs nowhere else, and decoder inputs of the same length. A multiple-choice model gets one choice a text:
    (batch, 1, tokens).
    """
    config: Any = model.config
    length = min(sequence_length, _max_positions(model) or sequence_length)
    inputs = sample_inputs(config.vocab_size, batch_size, length, torch.device("cpu"))
    is_encoder_decoder = getattr(config, "is_encoder_decoder", False)
    end = getattr(config, "eos_token_id", None) if is_encoder_decoder else None
    special = [token for token in (getattr(config, "pad_token_id", None), end) if isinstance(token, int)]
    ids = inputs["input_ids"]
    for token in special:
        ids[ids == token] = next(other for other in range(config.vocab_size) if other not in special)
    if is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.clone()
        if isinstance(end, int):
            ids[:, -1] = end
    if type(model).__name__.endswith("ForMultipleChoice"):
        inputs = {name: tensor.unsqueeze(1) for name, tensor in inputs.items()}
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _max_positions(model: nn.Module) -> int | None:
    """Return the number of tokens that `model` accepts; None if its positions are not limited by a table.

    RoBERTa and similar models count positions from the one after the padding id, which leaves a part of the table
    unused.
    """
    config: Any = model.config
    rows: int | None = getattr(config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        padding_index = getattr(module, "padding_idx", None)
        if rows is not None and padding_index is not None and name.endswith("position_embeddings"):
            return rows - int(padding_index) - 1
    return rows


def _dtype_name(model: nn.Module) -> str:
    """Return "int8" for a quantized model, else the data type of its first parameter, "float32"."""
    if is_int8(model):
        return "int8"
    return str(next(model.parameters()).dtype).rpartition(".")[2]
