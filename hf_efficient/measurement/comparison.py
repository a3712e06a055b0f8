"""Models side by side: size counted, speed taken in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from hf_efficient.measurement.cost import (
    compressed_bytes,
    count_flops,
    count_nonzero_parameters,
    count_parameters,
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
from hf_efficient.measurement.runtimes import TITLES, build_runner, check_runtime

MIN_ZERO_DIFFERENCE = 0.01
ENERGY_SECONDS = 5.0
NEW_TOKENS = 20


def measure(model: nn.Module, inputs: Mapping[str, torch.Tensor], name: str = "model", repeats: int = 60) -> ModelRow:
    """Return what `model` costs on `inputs`, tensors (batch, tokens): size, operations and latency."""
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
) -> tuple[ModelRow, ...]:
    """Return a row for each of `models`, latencies taken in turn, ratios against the one in the role "teacher".

    | argument | meaning |
    | --- | --- |
    | models | by role: "teacher", "student", ... |
    | inputs | tensors (batch, tokens), the same for all |
    | metrics | by role, what was found on the evaluation set; `metric` names the one that counts |
    | names | by role, what to call the model in tables; None: the role |
    | structures | by role, what is left of each layer |
    | compiled | by role, what torch.compile made of the model, to be timed in its place |
    | runtimes | by role, the name in `RUNTIMES` of where the model is timed; None: torch |

    A module that runs elsewhere than in torch says so in `runtime`, "openvino int8", and has no parameters to count.

    Raises ValueError: a runtime is unknown or not installed.
    """
    compiled, runtimes = compiled or {}, runtimes or {}
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
    generations = _generations(
        {role: model for role, model in models.items() if role not in compiled}, inputs, repeats
    )
    batch_size, *_, length = next(iter(inputs.values())).shape
    device = next(iter(inputs.values())).device
    rows = []
    for role, model in models.items():
        runtime = "compiled" if role in compiled else runtimes.get(role, "torch")
        elsewhere = getattr(model, "runtime", None)
        title = elsewhere or f"{TITLES.get(runtime, runtime)} {str(_dtype(model)).rpartition('.')[2]}"
        latency = summarize_latency(durations[role], batch_size, length, title)
        in_torch = elsewhere is None and runtime in ("torch", "compiled")
        size = _bytes_on_disk(model)
        rows.append(
            ModelRow(
                name=(names or {}).get(role, role),
                role=role,
                metrics=(metrics or {}).get(role, {}),
                parameters=None if elsewhere else count_parameters(model),
                nonzero_parameters=None if elsewhere else count_nonzero_parameters(model),
                flops=None if elsewhere else count_flops(model, inputs),
                bytes_on_disk=size,
                latency_ms=latency,
                generation_ms=generations.get(role),
                samples_per_second=batch_size / latency.p50 * 1e3,
                peak_memory_bytes=_peak(size, calls[role], device) if in_torch else None,
                energy_joules_per_sample=_joules(calls[role], batch_size, device),
                structure=(structures or {}).get(role),
            )
        )
    return with_ratios(_with_compressed_sizes(rows, models), metric)


def _generations(
    models: Mapping[str, Any], inputs: Mapping[str, torch.Tensor], repeats: int
) -> dict[str, GenerationLatency]:
    """Return how fast those of `models` write that do, each token greedily, taking turns."""
    writers = {role: model for role, model in models.items() if getattr(model, "can_generate", bool)()}
    if not writers:
        return {}
    calls = {
        f"{role} {tokens}": generation_call(model, inputs, tokens)
        for role, model in writers.items()
        for tokens in (1, NEW_TOKENS)
    }
    durations = time_interleaved(calls, max(1, repeats // 6), warmup=1, turn=5)
    batch_size, length = inputs["input_ids"].shape
    found = {}
    for role in writers:
        first, whole = (statistics.median(durations[f"{role} {tokens}"]) for tokens in (1, NEW_TOKENS))
        found[role] = GenerationLatency(first, (whole - first) / (NEW_TOKENS - 1), NEW_TOKENS, batch_size, length)
    return found


def generation_call(model: Any, inputs: Mapping[str, torch.Tensor], tokens: int) -> Callable[[], object]:
    """Return a call that lets `model` write so many tokens to `inputs`, greedily and with a cache."""
    asked = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "num_beams": 1}
    return partial(model.eval().generate, **{name: inputs[name] for name in ("input_ids", "attention_mask")}, **asked)


def _peak(weights: int | None, call: Callable[[], object], device: torch.device) -> int | None:
    """Return the bytes of the weights and of the most tensors that are alive at one time during `call`."""
    with torch.inference_mode():
        alive = peak_bytes(call, device)
    return None if weights is None or alive is None else weights + alive


def _joules(call: Callable[[], object], batch_size: int, device: torch.device) -> float | None:
    """Return the energy of one sample, counted over some seconds of calls; None where no counter can be read.

    Counters are the machine's: beside other processes that do the same nothing is counted.
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
    return counter.energy.joules / (calls * batch_size) if counter.energy else None


def _bytes_on_disk(model: nn.Module) -> int | None:
    if hasattr(model, "save_pretrained"):
        return saved_bytes(model)
    size: Any = getattr(model, "bytes_on_disk", None)
    return size


def _with_compressed_sizes(rows: Sequence[ModelRow], models: Mapping[str, nn.Module]) -> list[ModelRow]:
    """Return `rows` with the compressed sizes of the models that have zeros, and of the first to compare with them.

    Compressing takes time: without a model that has more zeros than the first, nothing is compressed.
    """
    dense = rows[0].density or 1.0
    sparse = [row.role for row in rows[1:] if row.density is not None and dense - row.density >= MIN_ZERO_DIFFERENCE]
    # Small weights round to zero in eight bits: that alone removes no connection.
    if all(_dtype(models[role]) == "int8" for role in sparse):
        return list(rows)
    return [
        replace(row, compressed_bytes_on_disk=compressed_bytes(models[row.role]))
        if row.bytes_on_disk is not None and row.role in (rows[0].role, *sparse)
        else row
        for row in rows
    ]


def model_inputs(model: nn.Module, batch_size: int, sequence_length: int) -> dict[str, torch.Tensor]:
    """Return inputs (batch, tokens) for `model`, no longer than it can read and without padding, on its device.

    An encoder with a decoder reads texts that end with the end token, which stands nowhere else, and as many tokens in
    the decoder. Where one of several texts is chosen, there is just one to choose: (batch, 1, tokens).
    """
    config: Any = model.config
    length = min(sequence_length, _max_positions(model) or sequence_length)
    inputs = sample_inputs(config.vocab_size, batch_size, length, torch.device("cpu"))
    decodes = getattr(config, "is_encoder_decoder", False)
    end = getattr(config, "eos_token_id", None) if decodes else None
    special = [token for token in (getattr(config, "pad_token_id", None), end) if isinstance(token, int)]
    ids = inputs["input_ids"]
    for token in special:
        ids[ids == token] = next(other for other in range(config.vocab_size) if other not in special)
    if decodes:
        inputs["decoder_input_ids"] = ids.clone()
        if isinstance(end, int):
            ids[:, -1] = end
    if type(model).__name__.endswith("ForMultipleChoice"):
        inputs = {name: tensor.unsqueeze(1) for name, tensor in inputs.items()}
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _max_positions(model: nn.Module) -> int | None:
    """Return how many tokens `model` can read, None where its positions have no table.

    Models of the RoBERTa kind count positions from the one after the padding id, so a part of the table is never used.
    """
    config: Any = model.config
    rows: int | None = getattr(config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        unused = getattr(module, "padding_idx", None)
        if rows is not None and unused is not None and name.endswith("position_embeddings"):
            return rows - int(unused) - 1
    return rows


def _dtype(model: nn.Module) -> torch.dtype | str:
    quantized = any(hasattr(parameter, "tensor_data_names") for parameter in model.parameters())
    return "int8" if quantized else next(model.parameters()).dtype
