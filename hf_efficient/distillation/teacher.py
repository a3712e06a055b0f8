"""Frozen teachers: one, or several that answer together."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.distillation.activations import ActivationKey, Activations, capture_activations
from hf_efficient.distillation.head_outputs import get_head_outputs
from hf_efficient.errors import UserError
from hf_efficient.models.inputs import is_label, select_inputs

TeacherOutputs = dict[str, torch.Tensor]


class Teacher(nn.Module):
    """Models that are asked and never trained: in eval mode and without gradients whatever happens around them.

    | argument | meaning |
    | --- | --- |
    | models | with the same task head and labels; they are frozen in place, or copied where `dtype` is another |
    | weights | of their outputs, which sum to 1 |
    | dtype | what they compute in; None: each in its own |
    | token_ids | (student's vocabulary,) the teachers' id of each of the student's tokens; None: the same |

    Answers of several are weighted means of logits: the geometric mean of their distributions.
    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.

    Raises ValueError: the teachers answer different things.
    """

    def __init__(
        self,
        models: Sequence[PreTrainedModel],
        weights: Sequence[float] = (1.0,),
        dtype: torch.dtype | None = None,
        token_ids: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        answers = [get_head_outputs(model) for model in models]
        if any(other != answers[0] for other in answers):
            raise UserError(
                f"teachers that answer together need one kind of task head, these are "
                f"{', '.join(type(model).__name__ for model in models)}"
            )
        self.head_outputs, self.weights = answers[0], tuple(weights)
        self.models = nn.ModuleList(_freeze(model, dtype) for model in models)
        self.token_ids = token_ids

    @property
    def model(self) -> PreTrainedModel:
        """The first teacher, which is the only one that is looked into."""
        first: Any = self.models[0]
        return first

    def train(self, mode: bool = True) -> Teacher:
        """Leaves the teachers in eval mode."""
        return self

    @torch.no_grad()
    def predict(
        self, inputs: Mapping[str, torch.Tensor], wanted: Collection[ActivationKey] = ()
    ) -> tuple[TeacherOutputs, Activations]:
        """Return the teachers' answers by the name of the output, in the student's tokens, and the wanted signals."""
        # What a decoder reads is made of the labels; other heads would compute a loss that nobody wants.
        encodes = self.head_outputs is not None and self.head_outputs.decoder_reads_labels
        known = {name: value for name, value in inputs.items() if encodes or not is_label(name)}
        if self.token_ids is not None:
            for name in known.keys() & {"input_ids", "decoder_input_ids", "labels"}:
                ids = known[name]
                known[name] = torch.where(ids < 0, ids, self.token_ids.to(ids.device)[ids.clamp(min=0)])
        here = next(iter(known.values())).device
        found: TeacherOutputs = {}
        signals: Activations = {}
        for model, weight in zip(self.models, self.weights, strict=True):
            read = {name: value.to(model.device) for name, value in select_inputs(model, known).items()}
            if wanted:
                with capture_activations(self.model, wanted) as seen:
                    outputs: Any = model(**read)
                signals = {signal: states.to(here) for signal, states in seen.items()}
            else:
                outputs = model(**read)
            for name in self.head_outputs.outputs if self.head_outputs is not None else ():
                answer = outputs[name].to(here)
                if self.token_ids is not None and predicts_tokens(model):
                    answer = answer[..., self.token_ids.to(here)]
                weighed = answer if len(self.weights) == 1 else weight * answer.float()
                found[name] = found[name] + weighed if name in found else weighed
        return found, signals


def load_teacher(
    name: str,
    auto_class: Any,
    requires_trained_head: bool,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """Return the model called `name`, in its own dtype.

    Raises ValueError: with `requires_trained_head`, it has none to give, for its task head was never trained.
    """
    teacher: PreTrainedModel
    teacher, info = auto_class.from_pretrained(
        name,
        trust_remote_code=trust_remote_code,
        attn_implementation=attn_implementation,
        output_loading_info=True,
    )
    if requires_trained_head and info["missing_keys"]:
        raise UserError(
            f"teacher {name!r} holds no weights for {', '.join(sorted(info['missing_keys']))}: its answers would be "
            "drawn at random; name a model that is fine-tuned for the task, or learn without soft labels "
            "(logits_weight=0)"
        )
    return teacher


def predicts_tokens(model: PreTrainedModel) -> bool:
    """Whether the answers are distributions over the vocabulary."""
    return type(model).__name__.endswith(("ForMaskedLM", "ForConditionalGeneration"))


def _freeze(model: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    if dtype is not None and dtype != model.dtype:
        model = copy.deepcopy(model).to(dtype)
    return model.eval().requires_grad_(False)
