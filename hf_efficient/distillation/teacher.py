"""Frozen teachers: one model, or several whose outputs are averaged."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.distillation.activations import ActivationKey, Activations, capture_activations
from hf_efficient.distillation.head_outputs import get_head_outputs
from hf_efficient.errors import UserError
from hf_efficient.models.inputs import is_label, select_inputs, task_head_of
from hf_efficient.models.loading import load_pretrained

TeacherOutputs = dict[str, torch.Tensor]
# In front of the names of columns that only teachers read: their outputs, and inputs by a tokenizer of their own.
PREFIX = "teacher_"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOKEN_ID_COLUMNS = ("input_ids", "decoder_input_ids", "labels")


class Teacher(nn.Module):
    """Frozen models, always in eval mode, that predict without gradients.

    | argument | meaning |
    | --- | --- |
    | models | with the same task head and labels; frozen in place, or copied if `dtype` is another than theirs |
    | weights | of their outputs, which sum to 1 |
    | dtype | data type that they compute in; None: their own |
    | token_ids | (student's vocabulary,) the teachers' id of each of the student's tokens; None: the same ids |

    The outputs of several are weighted means of logits, that is, geometric means of their distributions.
    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.

    Raises UserError if the models have different task heads, or if there is not one weight for each.
    """

    def __init__(
        self,
        models: Sequence[PreTrainedModel],
        weights: Sequence[float] = (1.0,),
        dtype: torch.dtype | None = None,
        token_ids: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        if len(weights) != len(models):
            raise UserError(f"there are {len(models)} teachers and {len(weights)} weights: give one weight for each")
        head_outputs = [get_head_outputs(model) for model in models]
        if any(other != head_outputs[0] for other in head_outputs):
            raise UserError(
                f"several teachers need the same kind of task head, these are "
                f"{', '.join(type(model).__name__ for model in models)}"
            )
        self.head_outputs, self.weights = head_outputs[0], tuple(weights)
        self.models = nn.ModuleList(_freeze(model, dtype) for model in models)
        # On their device, since copying them there in every step would wait for it.
        self.token_ids = None if token_ids is None else token_ids.to(self.model.device)

    @property
    def model(self) -> PreTrainedModel:
        """The first teacher, whose intermediate outputs are compared."""
        first: Any = self.models[0]
        return first

    def train(self, mode: bool = True) -> Teacher:
        """Keep the teachers in eval mode."""
        return self

    @torch.no_grad()
    def predict(
        self, inputs: Mapping[str, torch.Tensor], keys: Collection[ActivationKey] = ()
    ) -> tuple[TeacherOutputs, Activations]:
        """Return the outputs of the task head by name, in the student's tokens, and the activations of `keys`."""
        inputs = self._to_teacher_inputs(inputs)
        device = next(iter(inputs.values())).device
        averaged: TeacherOutputs = {}
        activations: Activations = {}
        for model, weight in zip(self.models, self.weights, strict=True):
            model_inputs = {name: value.to(model.device) for name, value in select_inputs(model, inputs).items()}
            if keys:
                with capture_activations(self.model, keys) as captured:
                    outputs: Any = model(**model_inputs)
                activations = {key: value.to(device) for key, value in captured.items()}
            else:
                outputs = model(**model_inputs)
            for name in self.head_outputs.outputs if self.head_outputs is not None else ():
                logits = outputs[name].to(device)
                if self.token_ids is not None and predicts_tokens(model):
                    logits = logits[..., self.token_ids.to(device)]
                weighted = logits if len(self.weights) == 1 else weight * logits.float()
                averaged[name] = averaged[name] + weighted if name in averaged else weighted
        return averaged, activations

    def _to_teacher_inputs(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the inputs in the teachers' token ids, without labels unless the decoder reads them."""
        inputs = teacher_inputs_of(inputs)
        keeps_labels = self.head_outputs is not None and self.head_outputs.decoder_reads_labels
        teacher_inputs = {name: value for name, value in inputs.items() if keeps_labels or not is_label(name)}
        if self.token_ids is not None:
            for name in teacher_inputs.keys() & set(TOKEN_ID_COLUMNS):
                ids = teacher_inputs[name]
                teacher_inputs[name] = torch.where(ids < 0, ids, self.token_ids.to(ids.device)[ids.clamp(min=0)])
        return teacher_inputs


def has_teacher_inputs(names: Iterable[str]) -> bool:
    """Whether columns with these names hold the texts in the tokens of the teacher's own tokenizer too."""
    return f"{PREFIX}{INPUTS[0]}" in names


def teacher_inputs_of(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what a teacher reads of a batch: the texts in its own tokens if there are any, and never its outputs."""
    own = {name: batch[f"{PREFIX}{name}"] for name in INPUTS if f"{PREFIX}{name}" in batch}
    shared = {name: value for name, value in batch.items() if not name.startswith(PREFIX)}
    if not own:
        return shared
    return {**own, **{name: value for name, value in shared.items() if name not in INPUTS}}


def load_teacher(
    name: str,
    auto_class: Any,
    requires_trained_head: bool,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """Return the model called `name`, a folder or a repository on the Hub, in the data type of its weights.

    Raises UserError if its weights are incomplete; those of the task head only with `requires_trained_head`.
    """
    teacher, missing = load_pretrained(
        auto_class, name, trust_remote_code=trust_remote_code, attn_implementation=attn_implementation
    )
    if requires_trained_head and missing:
        raise UserError(
            f"teacher {name!r} has no weights for {', '.join(sorted(missing))}: its logits would be "
            "random; name a model that is fine-tuned for the task, or train without soft labels (logits_weight=0)"
        )
    return teacher


def predicts_tokens(model: PreTrainedModel) -> bool:
    """Whether the logits are distributions over the vocabulary."""
    return task_head_of(type(model).__name__) in ("MaskedLM", "ConditionalGeneration")


def _freeze(model: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    if dtype is not None and dtype != model.dtype:
        model = copy.deepcopy(model).to(dtype)
    return model.eval().requires_grad_(False)
