"""What 8 bits and codebooks keep and save, and how fast each form of a model is. Half an hour on two quiet cores.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/eight_bits.py [--parts kept trained codebooks speed writer]

| part | what is measured |
| --- | --- |
| kept | every 8-bit form of `minilm-sst2`: accuracy on 872 rows and bytes |
| trained | the same after quantization-aware training, seeds 0 1 2, last checkpoint |
| codebooks | k-means of 3 and 4 bits against even steps in as much room |
| speed | latency of every form, taken in turn, of an encoder of BERT-base's shape and of `minilm-sst2` |
| writer | translations of `t5-multi30k` by its 8-bit forms: sacreBLEU, and how many are those of torch in 8 bits |

`pip install 'hf_efficient[onnx,openvino]' sacrebleu` first. Ranges of OpenVINO come from 300 training rows. Results in
out/eight_bits/results.json and .png.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from matplotlib.figure import Figure
from sst2 import ASSETS, OUT, Results, Sst2, accuracy
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    set_seed,
)

from hf_efficient import DistillationConfig, QuantizationConfig, export, load_exported, quantize
from hf_efficient.measurement.comparison import compare, model_inputs
from hf_efficient.measurement.cost import saved_bytes
from hf_efficient.models.codebook import Codebook
from hf_efficient.quantization.codebook import compare_with_uniform, quantize_uniformly
from hf_efficient.variants.config import VARIANTS

KEPT = ("float32", "int8", "int8_weight_only", "onnx_int8", "openvino_int8", "openvino_int8_weight_only")
FAST = ("float32", "bfloat16", "int8", "int8_compiled", "onnx_int8", "openvino_int8")
SHAPES = ((1, 32), (1, 64), (1, 128), (8, 64), (8, 128), (32, 64))
AWARE_STEPS, AWARE_LEARNING_RATE = 500, 2e-5


def forms_of(model: PreTrainedModel, names: tuple[str, ...], calibration: Any) -> Iterator[tuple[str, Any]]:
    """Yields `model` in each of the forms."""
    inputs = model_inputs(model, 1, 64)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            yield name, VARIANTS[name](model, inputs, calibration, Path(folder))


def size(model: Any) -> int:
    """Returns the bytes of the weights on disk."""
    return int(getattr(model, "bytes_on_disk", 0)) or saved_bytes(model)


def kept(results: Results, sst2: Sst2) -> None:
    """Measures accuracy and bytes of every 8-bit form."""
    for name, made in forms_of(sst2.teacher(), KEPT, sst2.sample(300, 0)):
        results[f"kept {name}"] = {
            "accuracy": accuracy(made.model, sst2.data["evaluation"], sst2.collate),
            "bytes": size(made.model),
        }
    small = quantize(sst2.teacher(), QuantizationConfig(embedding_bits=4))
    results["kept int8, embeddings in 4 bits"] = {"accuracy": sst2.accuracy(small), "bytes": size(small)}


def trained(results: Results, sst2: Sst2) -> None:
    """Trains for 8 bits, and measures what ships."""
    for seed in (0, 1, 2):
        set_seed(seed)
        folder = OUT / "eight_bits" / f"aware-{seed}"
        trainer = sst2.train(
            sst2.teacher(),
            folder,
            {
                "max_steps": AWARE_STEPS,
                "learning_rate": AWARE_LEARNING_RATE,
                "warmup_steps": 30,
                "seed": seed,
                "logging_steps": 100,
            },
            distillation=DistillationConfig(temperature=2.0, hard_label_weight=0.1, hidden_weight=10.0),
            quantization=QuantizationConfig(aware=True, compile=False),
        )
        results[f"trained seed {seed}"] = {"accuracy": trainer.report.row("quantized").metrics["accuracy"]}


def codebooks(results: Results, sst2: Sst2) -> None:
    """Measures codebooks against even steps, which take no less room."""
    for bits in (3, 4):
        teacher = sst2.teacher()
        small = quantize(teacher, QuantizationConfig("codebook", bits=bits))
        even = copy.deepcopy(teacher)
        for name, module in small.named_modules():
            if isinstance(module, Codebook):
                weight = even.get_parameter(f"{name}.weight")
                weight.data.copy_(quantize_uniformly(weight.data, bits, module.group))
        results[f"codebook of {bits} bits"] = {
            "accuracy": sst2.accuracy(small),
            "accuracy_of_even_steps": sst2.accuracy(even),
            "bytes": size(small),
            **(compare_with_uniform(teacher, small) or {}),
        }


def speed(results: Results, sst2: Sst2) -> None:
    """Measures latencies of every form at several shapes, in turn."""
    torch.manual_seed(0)
    wide = BertForSequenceClassification(BertConfig()).eval()
    calibration = sst2.sample(300, 0)
    for title, model in (("BERT-base, random weights", wide), ("minilm-sst2", sst2.teacher())):
        made = {name: form for name, form in forms_of(model, FAST, calibration) if form is not None}
        for batch_size, length in SHAPES:
            inputs = model_inputs(model, batch_size, length)
            rows = compare(
                {("teacher" if name == "float32" else name): form.model for name, form in made.items()},
                inputs,
                compiled={name: form.forward for name, form in made.items() if form.forward is not None},
                repeats=60 if batch_size == 1 else 20,
            )
            latencies = {row.role: row.latency_ms.p50 for row in rows if row.latency_ms}
            results[f"speed of {title} at {batch_size}x{length}"] = {
                "float32": latencies.pop("teacher"),
                **latencies,
            }


def writer(results: Results, sst2: Sst2) -> None:
    """Measures translations by 8-bit forms."""
    import sacrebleu

    name, data = ASSETS / "models" / "t5-multi30k", ASSETS / "data" / "multi30k_en_de"
    files = {split: str(data / f"{split}.parquet") for split in ("train", "test")}
    pairs = {split: rows["translation"] for split, rows in load_dataset("parquet", data_files=files).items()}
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSeq2SeqLM.from_pretrained(name, dtype=torch.float32).eval()
    texts, expected = ([pair[language] for pair in pairs["test"]] for language in ("en", "de"))

    def translate(writes: Any) -> list[str]:
        found: list[str] = []
        for start in range(0, len(texts), 16):
            batch = tokenizer(texts[start : start + 16], padding=True, return_tensors="pt")
            ids = writes.generate(**batch, max_new_tokens=80, num_beams=1)
            found += tokenizer.batch_decode(ids, skip_special_tokens=True)
        return found

    def calibration() -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, 300, 30):
            few = pairs["train"][start : start + 30]
            read, write = (
                tokenizer([pair[name] for pair in few], padding=True, return_tensors="pt") for name in ("en", "de")
            )
            yield {**read, "labels": write["input_ids"]}

    forms = (("onnx", "int8"), ("openvino", "int8_weight_only"), ("openvino", "int8"))
    found = {"float32": translate(model), "int8": translate(quantize(model))}
    sizes = {"float32": size(model), "int8": size(quantize(model))}
    for format, form in forms:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / format
            export(model, path, format, form, calibration() if (format, form) == forms[-1] else None)
            exported = load_exported(path, form)
            found[f"{format}_{form}"], sizes[f"{format}_{form}"] = translate(exported), size(exported)
    for form, written in found.items():
        results[f"translations by {form}"] = {
            "sacrebleu": sacrebleu.corpus_bleu(written, [expected]).score,
            "as_torch_int8": statistics.mean(a == b for a, b in zip(written, found["int8"], strict=True)),
            "bytes": sizes[form],
        }


PARTS = {"kept": kept, "trained": trained, "codebooks": codebooks, "speed": speed, "writer": writer}


def draw(results: Results) -> None:
    """Draws what is kept, and how much faster, as results.png."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    points = {key.removeprefix("kept "): value for key, value in results.found.items() if key.startswith("kept ")}
    whole = points["float32"]["bytes"]
    for index, (name, point) in enumerate(points.items()):
        left.plot(100 * point["bytes"] / whole, 100 * point["accuracy"], f"C{index}o", label=name)
    left.axhline(100 * points["float32"]["accuracy"], color="grey", linestyle="--", linewidth=1)
    left.set_xlabel("bytes, % of float32")
    left.set_ylabel("accuracy on SST-2, %")
    left.set_title("minilm-sst2")
    left.legend(frameon=False)
    speeds = {key: value for key, value in results.found.items() if key.startswith("speed of BERT-base")}
    for index, form in enumerate(name for name in FAST if name != "float32"):
        ratios = [value["float32"] / value[form] if form in value else 0.0 for value in speeds.values()]
        places = [place + (index - 2) * 0.16 for place in range(len(ratios))]
        right.bar(places, ratios, 0.16, label=form)
    right.axhline(1, color="grey", linestyle="--", linewidth=1)
    right.set_xticks(range(len(speeds)), [key.rpartition(" ")[2] for key in speeds])
    right.set_xlabel("batch x tokens")
    right.set_title("BERT-base's shape: times as fast as float32 in torch")
    right.set_ylim(top=1.25 * right.get_ylim()[1])
    right.legend(frameon=False, ncols=3, loc="upper center")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(OUT / "eight_bits" / "results.png", dpi=140)


def main() -> None:
    """Measures the parts that were asked for, and draws once all are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    args = parser.parse_args()
    results, sst2 = Results(OUT / "eight_bits" / "results.json"), Sst2()
    for part in args.parts:
        PARTS[part](results, sst2)
    if any(key.startswith("speed") for key in results.found) and "kept float32" in results:
        draw(results)


if __name__ == "__main__":
    main()
