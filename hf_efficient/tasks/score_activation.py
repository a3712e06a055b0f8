"""Rerankers of sentence-transformers (CrossEncoder): the activation of the score, and the loss that belongs to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers import PreTrainedConfig

from hf_efficient.data.labels import label_number
from hf_efficient.errors import UserError
from hf_efficient.models.inputs import ACTIVATION_FIELD, OLD_ACTIVATION_FIELD, score_activation, task_head_of
from hf_efficient.models.sentence_files import MODULES_FILE, SETTINGS_FILE, read_model_file

SIGMOID = "torch.nn.modules.activation.Sigmoid"


def set_score_activation(config: PreTrainedConfig, activation: str) -> None:
    """Write the activation into `config` under the names that all versions of CrossEncoder, and servers, read."""
    setattr(config, ACTIVATION_FIELD, {**(getattr(config, ACTIVATION_FIELD, None) or {}), "activation_fn": activation})
    setattr(config, OLD_ACTIVATION_FIELD, activation)


def complete_score_activation(config: PreTrainedConfig, name: str, local_files_only: bool = False) -> None:
    """Give `config`, of the model `name`, the activation that its files name, if it is a CrossEncoder with one output.

    Raises UserError if it has modules or a prompt that this package would leave out.
    """
    head = task_head_of((config.architectures or [""])[0])
    if head != "SequenceClassification" or config.num_labels != 1 or not name:
        return
    settings = _read_json(name, SETTINGS_FILE, local_files_only)
    if not isinstance(settings, dict) or settings.get("model_type", "CrossEncoder") != "CrossEncoder":
        return
    _check_modules(name, _read_json(name, MODULES_FILE, local_files_only), settings)
    if settings.get("activation_fn"):
        set_score_activation(config, settings["activation_fn"])


def configure_score_loss(
    config: PreTrainedConfig,
    teacher_config: PreTrainedConfig | None,
    splits: DatasetDict,
    label_column: str | None,
    is_ranking: bool,
    is_new: bool,
) -> None:
    """Choose the loss of a model with one output, and write it into `config`, with the activation of the score.

    | activation | labels | loss |
    | --- | --- | --- |
    | sigmoid, also that of a new model for ranking (`is_new`) | 0 to 1 | binary cross entropy |
    | another, or not known | 0 and 1, for ranking | binary cross entropy |
    | another, or not known | any numbers | mean squared error |

    Binary cross entropy is that of `problem_type="multi_label_classification"` with one label. Without an activation
    of its own the model gets that of its teacher. Raises UserError if the labels are not those of a sigmoid.
    """
    activation = score_activation(config)
    if activation is None and teacher_config is not None:
        activation = score_activation(teacher_config)
    if activation is None and is_ranking and is_new and teacher_config is None:
        activation = SIGMOID
    if activation is not None:
        set_score_activation(config, activation)
    labels = _training_labels(splits, label_column)
    if activation is not None and activation.rpartition(".")[2] == "Sigmoid":
        outside = [label for label in labels if not 0 <= label <= 1]
        if outside:
            raise UserError(
                f"column {label_column!r} of the training data has the label {outside[0]:g}, and the scores of this "
                f"model end with a sigmoid ({activation}): give labels from 0 to 1, such as divided by the highest one"
            )
        is_binary = True
    else:
        is_binary = is_ranking and set(labels) <= {0.0, 1.0}
    config.problem_type = "multi_label_classification" if is_binary else "regression"


def _training_labels(splits: DatasetDict, column: str | None) -> list[float]:
    if column is None or "train" not in splits or column not in splits["train"].column_names:
        return []
    numbers = map(label_number, splits["train"][column][:])
    return [number for number in numbers if number is not None]


def _check_modules(name: str, modules: Any, settings: dict[str, Any]) -> None:
    types = [str(module.get("type")) for module in modules or () if isinstance(module, dict)]
    if len(types) > 1:
        raise UserError(
            f"the reranker {name!r} consists of {', '.join(types)}: only those that are one model of Transformers "
            "with a classification head can be compressed"
        )
    prompt = (settings.get("prompts") or {}).get(settings.get("default_prompt_name"))
    if prompt:
        raise UserError(
            f"the reranker {name!r} puts the prompt {prompt!r} in front of every query, which is not done here: write "
            f"it into the texts of your data, and set default_prompt_name to null in {SETTINGS_FILE}"
        )


def _read_json(name: str, file: str, local_files_only: bool) -> Any:
    """Return the content of a JSON file of the model `name`; None if it has no such file."""
    if not Path(name).is_dir():
        try:
            validate_repo_id(name)
        except HFValidationError:  # a folder that is no longer there
            return None
    content = read_model_file(name, file, local_files_only)
    if content is None:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} of {name!r} is not valid JSON ({error}): save the model again") from error
