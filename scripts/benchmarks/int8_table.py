"""The tables of `int8_forms.py`, in Markdown, from its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_efficient.measurement.formatting import format_bytes, format_number

UNPRUNED = "float32, unpruned"
TITLES = {
    "float32": "float32, torch",
    "int8_static": "**int8 static, torch**",
    "int8_dynamic": "**int8 dynamic, torch**",
    "torchao": "int8 of torchao, as loaded",
    "torchao_compiled": "int8 of torchao, compiled",
    "onnx": "float32, ONNX Runtime",
    "onnx_int8": "int8, ONNX Runtime",
    "openvino": "float32, OpenVINO",
    "openvino_int8": "int8, OpenVINO",
    UNPRUNED: "float32 of the unpruned model, torch",
}


def render(results: Mapping[str, Any]) -> str:
    """Return the tables of all results."""
    machine = results["machine"]
    limit = f"; torch limited to {machine['limited_to']}" if machine.get("limited_to") else ""
    parts = [
        f"# Int8 on {machine['processor']}",
        f"{machine['threads']} threads; {', '.join(machine['instructions'])}{limit}; native int8 uses "
        f"`{machine['kernel']}`; torch {machine['packages']['torch']}. Written by `scripts/benchmarks/int8`.",
    ]
    latencies: dict[str, dict[str, dict[str, float]]] = {}
    for key, value in results.items():
        if key.startswith("latency "):
            _, model, point = key.split(" ")
            latencies.setdefault(model, {})[point] = value
    for model, points in latencies.items():
        ordered = dict(sorted(points.items(), key=lambda item: [int(number) for number in item[0].split("x")]))
        parts += [f"## {model}", _latency_table(ordered)]
    rows = {name: results[f"accuracy {name}"] for name in TITLES if f"accuracy {name}" in results}
    if rows:
        parts += ["## Predictions of minilm-sst2", _accuracy_table(rows)]
    memory = {name: results[f"memory {name}"] for name in TITLES if f"memory {name}" in results}
    if "float32" in memory:
        parts += ["## Resident memory of minilm-sst2", _memory_table(memory)]
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _latency_table(points: Mapping[str, Mapping[str, float]]) -> str:
    """Return speeds against float32, for students also against the unpruned model."""
    names = [name for name in TITLES if any(point.get(name) for point in points.values())]
    rows = []
    for name in names:
        cells = []
        for point in points.values():
            if point.get(name) is None:
                cells.append("")
            elif name in ("float32", UNPRUNED):
                cells.append(f"{format_number(point[name])} ms")
            else:
                cells.append(f"{point['float32'] / point[name]:.2f}x")
        rows.append([TITLES[name], *cells])
    if UNPRUNED in names:
        for name in ("float32", "int8_static", "openvino_int8"):
            cells = [f"{point[UNPRUNED] / point[name]:.2f}x" if point.get(name) else "" for point in points.values()]
            rows.append([f"{TITLES[name]}: against the unpruned model", *cells])
    text = "Speed against float32 of the same model, in torch, at batch size x tokens; medians of alternate calls.\n\n"
    return text + _table(["", *points], rows)


def _accuracy_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    text = (
        "Accuracy on 872 texts. Agreement with float32, and the root mean square of the difference of the logits' "
        "margin, on these and 3,000 training texts that were not used for calibration. Differences of the logits of "
        "200 texts alone and in batches of 20.\n\n"
    )
    header = ["", "accuracy", "agreement", "margin noise", "batch: median", "70th percentile", "largest"]
    keys = ("batch_median", "batch_percentile_70", "batch_largest")
    cells = [
        [
            TITLES[name],
            f"{row['accuracy']:.2%}",
            f"{row['agreement']:.2%}",
            f"{row['margin_noise']:.3f}",
            *(f"{row[key]:.1e}" for key in keys),
        ]
        for name, row in rows.items()
    ]
    text += _table(header, cells)
    lines = [
        f"* {TITLES[name]}: {row['without_kernels_agreement']:.2%} of predictions are the same and the "
        f"margin differs by {row['without_kernels_margin_noise']:.3f}; agreement of that with float32: "
        f"{row['without_kernels_to_float_agreement']:.2%}, noise {row['without_kernels_to_float_margin_noise']:.3f}."
        for name, row in rows.items()
        if "without_kernels_agreement" in row
    ]
    if lines:
        text += "\n\nWith inputs in float, as on machines without a kernel, against this machine:\n\n" + "\n".join(
            lines
        )
    return text


def _memory_table(memory: Mapping[str, Mapping[str, float]]) -> str:
    text = "Added to the resident memory of a process by the saved model and its first batch of 8 x 64 tokens.\n\n"
    whole = memory["float32"]
    rows = [
        [TITLES[name], *(f"{format_bytes(row[key])} ({row[key] / whole[key]:.0%})" for key in ("used", "file"))]
        for name, row in memory.items()
    ]
    return text + _table(["", "memory", "file"], rows)
