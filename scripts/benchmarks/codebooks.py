"""Codebooks of 3 and 4 bits against uniform quantization of the same size: accuracy, bytes, error of the weights.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/codebooks.py [--bits 3 4]

A few minutes on two cores. Results in out/codebooks/results.json.
"""

from __future__ import annotations

import argparse
import copy

from sst2 import OUT, Results, Sst2

from hf_efficient import QuantizationConfig, quantize
from hf_efficient.measurement.cost import saved_bytes
from hf_efficient.models.codebook import Codebook
from hf_efficient.quantization.codebook import compare_with_uniform, quantize_uniformly


def run(sst2: Sst2, bits: int) -> dict[str, float]:
    """Return the figures of a model with codebooks of so many bits, and the accuracy with evenly spaced values."""
    teacher = sst2.teacher()
    small = quantize(teacher, QuantizationConfig("codebook", bits=bits))
    uniform = copy.deepcopy(teacher)
    for name, module in small.named_modules():
        if isinstance(module, Codebook):
            weight = uniform.get_parameter(f"{name}.weight")
            weight.data.copy_(quantize_uniformly(weight.data, bits, module.group))
    return {
        "accuracy": sst2.accuracy(small),
        "accuracy_of_even_steps": sst2.accuracy(uniform),
        "bytes": saved_bytes(small),
        **(compare_with_uniform(teacher, small) or {}),
    }


def main() -> None:
    """Measure what has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", nargs="+", type=int, default=[3, 4])
    args = parser.parse_args()
    results, sst2 = Results(OUT / "codebooks" / "results.json"), Sst2()
    for bits in args.bits:
        key = f"codebook of {bits} bits"
        if key not in results:
            results[key] = run(sst2, bits)


if __name__ == "__main__":
    main()
