"""Papers of the techniques that a model card cites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CITATIONS = {
    "layers": "Jiao et al. 2020, *TinyBERT: Distilling BERT for Natural Language Understanding*, arXiv 1909.10351",
    "relations": "Wang et al. 2021, *MiniLMv2: Multi-Head Self-Attention Relation Distillation ...*, arXiv 2012.15828",
    "targets": "Kim and Rush 2016, *Sequence-Level Knowledge Distillation*, arXiv 1606.07947",
    "distillation": "Hinton et al. 2015, *Distilling the Knowledge in a Neural Network*, arXiv 1503.02531",
    "activation": "Hu et al. 2016, *Network Trimming: A Data-Driven Neuron Pruning Approach ...*, arXiv 1607.03250",
    "fisher": "Kwon et al. 2022, *A Fast Post-Training Pruning Framework for Transformers*, arXiv 2204.09656",
    "gradual": "Zhu and Gupta 2017, *To prune, or not to prune: exploring the efficacy ...*, arXiv 1710.01878",
    "magnitude_l1": "Li et al. 2017, *Pruning Filters for Efficient ConvNets*, arXiv 1608.08710",
    "movement": "Sanh et al. 2020, *Movement Pruning: Adaptive Sparsity by Fine-Tuning*, arXiv 2005.07683",
    "rewinding": "Renda et al. 2020, *Comparing Rewinding and Fine-tuning in ... Pruning*, arXiv 2003.02389",
    "snip": "Lee et al. 2019, *SNIP: Single-shot Network Pruning based on Connection Sensitivity*, arXiv 1810.02340",
    "taylor": "Michel et al. 2019, *Are Sixteen Heads Really Better than One?*, arXiv 1905.10650",
    "wanda": "Sun et al. 2024, *A Simple and Effective Pruning Approach for Large Language Models*, arXiv 2306.11695",
    "magnitude": "Han et al. 2015, *Learning both Weights and Connections ...*, arXiv 1506.02626",
    "pruning": "Kurtic et al. 2023, *ZipLM: Inference-Aware Structured Pruning of Language Models*, arXiv 2302.04089",
    "codebook": "Han et al. 2016, *Deep Compression: ... Trained Quantization and Huffman Coding*, arXiv 1510.00149",
    "outliers": "Dettmers et al. 2022, *LLM.int8(): 8-bit Matrix Multiplication ...*, arXiv 2208.07339",
    "rounding": "Frantar et al. 2023, *GPTQ: Accurate Post-Training Quantization for ...*, arXiv 2210.17323",
    "quantization": "Jacob et al. 2018, *Quantization and Training of Neural Networks for ...*, arXiv 1712.05877",
}


def list_citations(configs: Mapping[str, Any]) -> list[str]:
    """Return the papers of the techniques that `configs`, those of a report, use."""
    used = [name for name in ("pruning", "distillation", "quantization") if name in configs]
    scheme = (configs.get("quantization") or {}).get("scheme")
    if scheme == "codebook":
        used[used.index("quantization")] = "codebook"
    pruning = configs.get("pruning") or {}
    criterion = str(pruning.get("criterion"))
    distillation = configs.get("distillation") or {}
    methods = {
        "gradual": pruning.get("ramp"),
        "rewinding": pruning.get("rewind"),
        criterion: pruning,
        "layers": any(distillation.get(f"{name}_weight") for name in ("hidden", "embedding", "attention")),
        "relations": distillation.get("relation_weight"),
        "targets": distillation.get("targets", "gold") != "gold",
        "outliers": scheme == "int8_static",
        "rounding": scheme == "int8_static",
    }
    used = [name for name, is_used in methods.items() if is_used] + used
    return [CITATIONS[name] for name in used if name in CITATIONS]
