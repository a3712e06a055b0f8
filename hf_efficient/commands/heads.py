"""The labels of the head that a model gets for a task."""

from __future__ import annotations

from transformers import PreTrainedConfig
from transformers.utils import logging

from hf_efficient.data.label_names import is_default_name, model_label_names, set_label_names
from hf_efficient.data.labels import Classes
from hf_efficient.errors import UserError
from hf_efficient.tasks.task import Task

logger = logging.get_logger(__name__)


def configure_head(
    config: PreTrainedConfig, teacher_config: PreTrainedConfig | None, task: Task, classes: Classes | None
) -> None:
    """Give the config of a model without a task head the labels of its teacher, or else those of the data.

    Names of labels that the config has already are kept where the data agrees with them. Raises UserError if the data
    contradicts them and the config does not say that the model has no head for the task.
    """
    if teacher_config is not None:
        if task.has_labels:
            set_label_names(config, model_label_names(teacher_config))
            config.problem_type = teacher_config.problem_type
        return
    if task.problem_type:
        config.problem_type = task.problem_type
        config.num_labels = 1 if task.problem_type == "regression" else config.num_labels
    if classes is None:
        return
    names = model_label_names(config)
    if not all(map(is_default_name, names)):
        try:
            if set(classes.ids(names).values()) == set(range(len(names))) or not config.architectures:
                set_label_names(config, names)
                return
        except UserError:
            if not config.architectures:
                raise
        logger.warning(f"the labels of the model ({', '.join(names)}) are replaced by those of the data")
    set_label_names(config, classes.names)
