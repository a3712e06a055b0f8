"""Models that FSDP shards while they are trained, and that are complete before and after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_efficient.errors import UserError
from hf_efficient.models.sentence_modules import copy_sentence_modules


def uses_fsdp(accelerator: Accelerator) -> bool:
    """Whether FSDP was requested and has an effect: on CPUs accelerate ignores it."""
    return getattr(accelerator.state, "fsdp_plugin", None) is not None


def check_fsdp_config(accelerator: Accelerator, model: Any) -> None:
    """Raise UserError if FSDP was requested in a configuration, or for a model, that is not supported."""
    if not uses_fsdp(accelerator):
        return
    plugin: Any = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise UserError("FSDP 1 hides the weights of single layers: give fsdp_config={'version': 2}")
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise UserError("checkpoints hold complete models: give fsdp_config={'state_dict_type': 'FULL_STATE_DICT'}")
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"FSDP is supported for a PreTrainedModel only, not for {type(model).__name__}: leave fsdp out"
        )
    if model.all_tied_weights_keys:
        raise UserError(
            f"{type(model).__name__} ties weights of several modules, and accelerate's FSDP would shard each of them "
            "alone: leave fsdp out"
        )


class FSDPSession(TrainerCallback):
    """Shards the model while it is trained; afterwards every process holds the complete model again.

    Scoring, removing units, measuring and saving need the complete model.
    """

    def __init__(self) -> None:
        self._model_class: type[PreTrainedModel] | None = None

    @contextmanager
    def train(self, trainer: Any) -> Iterator[None]:
        """Enable FSDP in `trainer` within the context, then install the gathered model by its `install_model`."""
        if isinstance(trainer.model, FSDPModule):
            raise UserError("a training run was interrupted while FSDP had sharded the model: build a new trainer")
        self._model_class = type(trainer.model)
        enabled = trainer.is_fsdp_enabled = uses_fsdp(trainer.accelerator)
        try:
            yield
        finally:
            trainer.is_fsdp_enabled = False  # evaluation would shard the model again
        if enabled:
            trainer.install_model(gather_full_model(trainer.model, self._model_class))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let `save_pretrained` find the code of the class that FSDP derived its own from: it looks in the module."""
        if isinstance(kwargs["model"], FSDPModule) and self._model_class is not None:
            type(kwargs["model"]).__module__ = self._model_class.__module__


def gather_full_model(model: Any, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """Return the complete model of `model`, a `model_class` sharded by FSDP; all processes must call it."""
    weights = {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).cpu()
        for name, value in model.state_dict().items()
    }
    with torch.random.fork_rng(devices=[]):
        full = model_class._from_config(
            model.config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    full.load_state_dict(weights)
    for name, parameter in model.named_parameters():
        full.get_parameter(name).requires_grad_(parameter.requires_grad)
    if full.can_generate():
        full.generation_config = model.generation_config
    copy_sentence_modules(model, full)
    return full.train(model.training)
