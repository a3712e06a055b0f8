"""Configuration of a job: everything that `hf-efficient compress` and the commands derived from it work from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hf_efficient.data.config import DataConfig
from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.errors import UserError
from hf_efficient.exporters.config import ExportConfig
from hf_efficient.field_checks import check_field_types
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.tasks import TASKS

if TYPE_CHECKING:
    from transformers import TrainingArguments


@dataclass(frozen=True)
class ModelConfig:
    """The model, its teachers and its task.

    Raises UserError if two fields contradict each other.
    """

    model_name_or_path: str = field(metadata={"help": "Model to compress: a directory, or a name on the Hub."})
    teacher_name_or_path: list[str] | None = field(
        default=None,
        metadata={
            "help": "Teacher, or several whose predictions are averaged; by default the model itself.",
            "nargs": "+",
        },
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Tokenizer of a model whose directory has none: a directory, or a name on the Hub."},
    )
    student_layers: str | None = field(
        default=None,
        metadata={"help": "Distil into these layers of the model: 3, or 0,2,5, or encoder=4,decoder=1."},
    )
    student_config: str | None = field(
        default=None,
        metadata={"help": "Distil into a new model, such as hidden_size=128,num_hidden_layers=4."},
    )
    task: str | None = field(
        default=None,
        metadata={"help": f"Task; by default inferred from the model and the data. One of {', '.join(TASKS)}."},
    )
    distil: bool | None = field(
        default=None,
        metadata={"help": "Learn from a teacher; by default where one is named, or pruning or `aware` is given."},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention implementation of Transformers, such as sdpa or eager."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace the model or the unfinished run in output_dir."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the model's repository."})

    def __post_init__(self) -> None:
        check_field_types(self)
        if self.student_layers and self.student_config:
            raise UserError("student_layers and student_config each define the student: give one")
        if self.creates_student and self.distil is False:
            raise UserError("a student created from the model learns from a teacher: leave out --distil False")

    @property
    def creates_student(self) -> bool:
        """Whether the student is a new model rather than the named one."""
        return bool(self.student_layers or self.student_config)


@dataclass(frozen=True)
class JobConfig:
    """All settings of a job.

    | field | meaning |
    | --- | --- |
    | given_arguments | the fields of `training` that the user gave; None: all of them are as they should be |
    | fine_tuning | arguments of the fine-tuning of a model without a task head; None: those of `training` |

    Raises UserError if a training argument does not fit the metrics of the tasks.
    """

    model: ModelConfig
    data: DataConfig
    distillation: DistillationConfig
    pruning: PruningConfig
    quantization: QuantizationConfig
    training: TrainingArguments
    export: ExportConfig = field(default_factory=ExportConfig)
    given_arguments: frozenset[str] | None = None
    fine_tuning: TrainingArguments | None = None

    def __post_init__(self) -> None:
        if not self.training.eval_do_concat_batches:
            raise UserError(
                "eval_do_concat_batches=False gives the metric a list of batches, and the metrics of the tasks read "
                "all rows together: leave it out"
            )

    @property
    def uses_distillation(self) -> bool:
        """Whether the model learns from a teacher."""
        if self.model.distil is not None:
            return self.model.distil
        if self.model.creates_student:
            return True
        if self.pruning.before_training:
            return self.model.teacher_name_or_path is not None
        return self.model.teacher_name_or_path is not None or self.pruning.removes_anything or self.quantization.aware

    @property
    def compresses(self) -> bool:
        """Whether anything but plain fine-tuning or exporting was requested."""
        is_quantized = self.quantization.scheme is not None
        return self.uses_distillation or self.pruning.removes_anything or self.pruning.vocabulary or is_quantized

    @property
    def needs_dataset(self) -> bool:
        """Whether data is needed to train, or to choose what is removed; quantizing and exporting need none."""
        trains = self.quantization.scheme is None or self.quantization.aware
        trains = trains and self.training.num_train_epochs > 0
        return trains or self.uses_distillation or self.pruning.removes_anything or self.pruning.vocabulary
