"""The configs of a compression, together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.distillation.defaults import resolve_defaults
from hf_efficient.exporters.config import ExportConfig
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.quantization.config import QuantizationConfig


@dataclass(frozen=True)
class Techniques:
    """Which techniques a trainer applies; a config that requests nothing stands for a technique that is not used."""

    distillation: DistillationConfig | None = None
    pruning: PruningConfig = field(default_factory=PruningConfig)
    quantization: QuantizationConfig = field(default_factory=lambda: QuantizationConfig(scheme=None))
    export: ExportConfig = field(default_factory=ExportConfig)

    @property
    def quantizes(self) -> bool:
        """Whether the model is quantized at the end."""
        return self.quantization.scheme is not None

    @property
    def compresses(self) -> bool:
        """Whether the model changes otherwise than by plain fine-tuning."""
        return self.distillation is not None or self.pruning.removes_anything or self.quantizes

    @property
    def trains(self) -> bool:
        """Whether there is anything to train: a quantization alone, without `aware`, trains nothing."""
        needs_training = self.distillation is not None or self.pruning.removes_anything or self.quantization.aware
        return needs_training or not self.quantizes

    def resolve_defaults(self, model: PreTrainedModel, teachers: Sequence[PreTrainedModel]) -> Techniques:
        """Return the techniques with the defaults of a distillation of `model`; without `teachers`, from itself."""
        if self.distillation is None:
            return self
        return dataclasses.replace(self, distillation=resolve_defaults(self.distillation, model, teachers))

    def describe_supervision(self, of_embeddings: bool = False) -> str:
        """Return, to follow "trained for N steps" in the report, what the model is trained on.

        `of_embeddings`: the model is a sentence embedder.
        """
        teacher = "" if self.distillation is None else f" on {self.distillation.describe(of_embeddings)}"
        return f"{teacher}, with fake quantization" if self.quantization.aware else teacher

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the settings of the techniques that are used, by name."""
        configs = {
            "distillation": self.distillation,
            "pruning": self.pruning if self.pruning.removes_anything or self.pruning.vocabulary else None,
            "quantization": self.quantization if self.quantizes else None,
            "export": self.export if self.export.formats else None,
        }
        return {name: dataclasses.asdict(config) for name, config in configs.items() if config is not None}
