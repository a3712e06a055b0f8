"""The machine and the versions of packages that a measurement was made with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

INSTRUCTION_SETS = ("avx2", "avx512_f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
BFLOAT16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")
VERSIONED_PACKAGES = ("hf_efficient", "torch", "transformers", "torchao", "datasets", "accelerate", "optimum")


def describe_environment() -> dict[str, Any]:
    """Return the processor, its cores and instruction sets, the accelerator, the system and package versions."""
    versions: dict[str, str | None] = {}
    for package in VERSIONED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": [name for name in INSTRUCTION_SETS if torch.cpu.get_capabilities().get(name)],
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions,
    }


def has_fast_bfloat16(device: torch.device | None = None) -> bool | None:
    """Whether `device` multiplies matrices in bfloat16 faster than in float32; None where that is not known.

    By default it is the accelerator, or the processor where there is none. An x86 processor needs AMX or AVX512-BF16.
    """
    device = device or torch.accelerator.current_accelerator() or torch.device("cpu")
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    if device.type != "cpu" or capabilities.get("architecture") != "x86_64":
        return None
    return any(capabilities.get(name) for name in BFLOAT16_INSTRUCTIONS)


def processor_name() -> str:
    """Return the name of the processor's model, or of its architecture where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
