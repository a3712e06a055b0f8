"""Accuracy, size and latency of int8 and codebooks, in torch, ONNX Runtime and OpenVINO.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/eight_bits.py [--parts kept trained codebooks speed writer]

| part | what is measured |
| --- | --- |
| kept | accuracy on 872 rows and bytes of every 8-bit variant of `minilm-sst2` |
| trained | accuracy after quantization-aware training, seeds 0 1 2, last checkpoint |
| codebooks | k-means with 3 and 4 bits against uniform quantization of the same size |
| speed | latencies, measured alternately, of an encoder with the shape of BERT-base and of `minilm-sst2` |
| writer | translations of 8-bit variants of `t5-multi30k`: sacreBLEU, and the fraction equal to those of torch int8 |

About half an hour on two cores. `pip install 'hf_efficient[onnx,openvino]'` first. Activation ranges of OpenVINO are
calibrated on 300 training rows. Results in out/eight_bits/results.json and .png.
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

ACCURACY_VARIANTS = ("float32", "int8", "int8_weight_only", "onnx_int8", "openvino_int8", "openvino_int8_weight_only")
SPEED_VARIANTS = ("float32", "bfloat16", "int8", "int8_compiled", "onnx_int8", "openvino_int8")
SHAPES = ((1, 32), (1, 64), (1, 128), (8, 64), (8, 128), (32, 64))
AWARE_STEPS, AWARE_LEARNING_RATE = 500, 2e-5


def build_variants(model: PreTrainedModel, names: tuple[str, ...], calibration: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, variant of `model`)."""
    inputs = model_inputs(model, 1, 64)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            yield name, VARIANTS[name](model, inputs, calibration, Path(folder))


def size(model: Any) -> int:
    """Return the bytes of the weights on disk."""
    return int(getattr(model, "bytes_on_disk", 0)) or saved_bytes(model)


def measure_accuracy(results: Results, sst2: Sst2) -> None:
    """Measure accuracy and bytes of every variant."""
    for name, variant in build_variants(sst2.teacher(), ACCURACY_VARIANTS, sst2.sample(300, 0)):
        results[f"kept {name}"] = {
            "accuracy": accuracy(variant.model, sst2.data["evaluation"], sst2.collate),
            "bytes": size(variant.model),
        }
    small = quantize(sst2.teacher(), QuantizationConfig(embedding_bits=4))
    results["kept int8, embeddings in 4 bits"] = {"accuracy": sst2.accuracy(small), "bytes": size(small)}


def train_quantized(results: Results, sst2: Sst2) -> None:
    """Train with fake quantization, and measure the int8 model."""
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


def compare_codebooks(results: Results, sst2: Sst2) -> None:
    """Compare codebooks with uniform quantization of at least the same size."""
    for bits in (3, 4):
        teacher = sst2.teacher()
        small = quantize(teacher, QuantizationConfig("codebook", bits=bits))
        uniform = copy.deepcopy(teacher)
        for name, module in small.named_modules():
            if isinstance(module, Codebook):
                weight = uniform.get_parameter(f"{name}.weight")
                weight.data.copy_(quantize_uniformly(weight.data, bits, module.group))
        results[f"codebook of {bits} bits"] = {
            "accuracy": sst2.accuracy(small),
            "accuracy_of_even_steps": sst2.accuracy(uniform),
            "bytes": size(small),
            **(compare_with_uniform(teacher, small) or {}),
        }


def measure_speed(results: Results, sst2: Sst2) -> None:
    """Measure latencies of every variant at several batch sizes and sequence lengths, alternately."""
    torch.manual_seed(0)
    wide = BertForSequenceClassification(BertConfig()).eval()
    calibration = sst2.sample(300, 0)
    for title, model in (("BERT-base, random weights", wide), ("minilm-sst2", sst2.teacher())):
        variants = {
            name: each for name, each in build_variants(model, SPEED_VARIANTS, calibration) if each is not None
        }
        for batch_size, length in SHAPES:
            inputs = model_inputs(model, batch_size, length)
            rows = compare(
                {("teacher" if name == "float32" else name): each.model for name, each in variants.items()},
                inputs,
                compiled={name: each.forward for name, each in variants.items() if each.forward is not None},
                repeats=60 if batch_size == 1 else 20,
            )
            latencies = {row.role: row.latency_ms.p50 for row in rows if row.latency_ms}
            results[f"speed of {title} at {batch_size}x{length}"] = {
                "float32": latencies.pop("teacher"),
                **latencies,
            }


def measure_translations(results: Results, sst2: Sst2) -> None:
    """Measure the translations of 8-bit variants."""
    import sacrebleu

    name, data = ASSETS / "models" / "t5-multi30k", ASSETS / "data" / "multi30k_en_de"
    files = {split: str(data / f"{split}.parquet") for split in ("train", "test")}
    pairs = {split: rows["translation"] for split, rows in load_dataset("parquet", data_files=files).items()}
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSeq2SeqLM.from_pretrained(name, dtype=torch.float32).eval()
    texts, expected = ([pair[language] for pair in pairs["test"]] for language in ("en", "de"))

    def translate(translator: Any) -> list[str]:
        translations: list[str] = []
        for start in range(0, len(texts), 16):
            batch = tokenizer(texts[start : start + 16], padding=True, return_tensors="pt")
            ids = translator.generate(**batch, max_new_tokens=80, num_beams=1)
            translations += tokenizer.batch_decode(ids, skip_special_tokens=True)
        return translations

    def calibration() -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, 300, 30):
            rows = pairs["train"][start : start + 30]
            sources, targets = (
                tokenizer([pair[name] for pair in rows], padding=True, return_tensors="pt") for name in ("en", "de")
            )
            yield {**sources, "labels": targets["input_ids"]}

    exports = (("onnx", "int8"), ("openvino", "int8_weight_only"), ("openvino", "int8"))
    texts_by_variant = {"float32": translate(model), "int8": translate(quantize(model))}
    sizes = {"float32": size(model), "int8": size(quantize(model))}
    for format, quantization in exports:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / format
            needs_calibration = (format, quantization) == exports[-1]
            export(model, path, format, quantization, calibration() if needs_calibration else None)
            exported = load_exported(path, quantization)
            variant = f"{format}_{quantization}"
            texts_by_variant[variant], sizes[variant] = translate(exported), size(exported)
    for variant, translations in texts_by_variant.items():
        results[f"translations by {variant}"] = {
            "sacrebleu": sacrebleu.corpus_bleu(translations, [expected]).score,
            "as_torch_int8": statistics.mean(
                a == b for a, b in zip(translations, texts_by_variant["int8"], strict=True)
            ),
            "bytes": sizes[variant],
        }


PARTS = {
    "kept": measure_accuracy,
    "trained": train_quantized,
    "codebooks": compare_codebooks,
    "speed": measure_speed,
    "writer": measure_translations,
}


def draw(results: Results) -> None:
    """Draw accuracy against size, and speed-ups, as results.png."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    points = {key.removeprefix("kept "): value for key, value in results.values.items() if key.startswith("kept ")}
    float_bytes = points["float32"]["bytes"]
    for index, (name, point) in enumerate(points.items()):
        left.plot(100 * point["bytes"] / float_bytes, 100 * point["accuracy"], f"C{index}o", label=name)
    left.axhline(100 * points["float32"]["accuracy"], color="grey", linestyle="--", linewidth=1)
    left.set_xlabel("bytes, % of float32")
    left.set_ylabel("accuracy on SST-2, %")
    left.set_title("minilm-sst2")
    left.legend(frameon=False)
    speeds = {key: value for key, value in results.values.items() if key.startswith("speed of BERT-base")}
    for index, variant in enumerate(name for name in SPEED_VARIANTS if name != "float32"):
        ratios = [value["float32"] / value[variant] if variant in value else 0.0 for value in speeds.values()]
        places = [place + (index - 2) * 0.16 for place in range(len(ratios))]
        right.bar(places, ratios, 0.16, label=variant)
    right.axhline(1, color="grey", linestyle="--", linewidth=1)
    right.set_xticks(range(len(speeds)), [key.rpartition(" ")[2] for key in speeds])
    right.set_xlabel("batch x tokens")
    right.set_title("Shape of BERT-base: speed-up over float32 in torch")
    right.set_ylim(top=1.25 * right.get_ylim()[1])
    right.legend(frameon=False, ncols=3, loc="upper center")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(OUT / "eight_bits" / "results.png", dpi=140)


def main() -> None:
    """Measure the given parts, and draw when all results exist."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    args = parser.parse_args()
    results, sst2 = Results(OUT / "eight_bits" / "results.json"), Sst2()
    for part in args.parts:
        PARTS[part](results, sst2)
    if any(key.startswith("speed") for key in results.values) and "kept float32" in results:
        draw(results)


if __name__ == "__main__":
    main()
