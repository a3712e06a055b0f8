"""The settings of a compression, all in one place."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_efficient.data.config import DataConfig
from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.errors import UserError
from hf_efficient.exporters.config import ExportConfig
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.tasks import TASKS


@dataclass(frozen=True)
class ModelConfig:
    """Which models the job is about."""

    model_name_or_path: str = field(metadata={"help": "The model to make small: a folder, or a name on the Hub."})
    teacher_name_or_path: list[str] | None = field(
        default=None,
        metadata={
            "help": "The model to learn from, or several that answer together; the model itself when left out.",
            "nargs": "+",
        },
    )
    student_layers: str | None = field(
        default=None,
        metadata={"help": "Keep this many layers, or these: 3, or 0,2,5, or encoder=4,decoder=1; then distil."},
    )
    student_config: str | None = field(
        default=None,
        metadata={"help": "Distil into a new model: hidden_size=128,num_hidden_layers=4,num_attention_heads=4."},
    )
    task: str | None = field(default=None, metadata={"help": f"One of {', '.join(TASKS)}; inferred when left out."})
    distil: bool | None = field(
        default=None,
        metadata={
            "help": "Learn from a teacher; on when one is named, or pruning or training for 8 bits is asked for."
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "How attention is computed, such as sdpa or eager; by default as Transformers finds fastest."
        },
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace a model that output_dir already holds."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the model's repository."})

    def __post_init__(self) -> None:
        if self.student_layers and self.student_config:
            raise UserError("student_layers and student_config each make the student: give one")
        if self.creates_student and self.distil is False:
            raise UserError("a student that is made of a model learns from a teacher: leave out --distil False")

    @property
    def creates_student(self) -> bool:
        """Whether the student is a new model rather than the named one."""
        return bool(self.student_layers or self.student_config)


@dataclass(frozen=True)
class JobConfig:
    """All settings of a compression."""

    model: ModelConfig
    data: DataConfig
    distillation: DistillationConfig
    pruning: PruningConfig
    quantization: QuantizationConfig
    training: TrainingArguments
    export: ExportConfig = field(default_factory=ExportConfig)

    @property
    def uses_distillation(self) -> bool:
        """Whether a teacher is learnt from."""
        if self.model.distil is not None:
            return self.model.distil
        if self.model.creates_student:
            return True
        if self.pruning.before_training:
            return self.model.teacher_name_or_path is not None
        return self.model.teacher_name_or_path is not None or self.pruning.active or self.quantization.aware

    @property
    def needs_dataset(self) -> bool:
        """Whether there is anything to learn, or to choose by data: quantizing and exporting alone need none."""
        trains = self.quantization.scheme is None or self.quantization.aware
        trains = trains and self.training.num_train_epochs > 0
        return trains or self.uses_distillation or self.pruning.active or self.pruning.vocabulary
