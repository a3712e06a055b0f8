"""Models that FSDP shares out among the processes while they are trained, and that are whole again afterwards."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import TrainOutput

from hf_efficient.errors import UserError


class Sharding(Trainer):
    """A trainer whose model is shared out by FSDP only while `train` runs: it is scored, cut, measured, saved whole.

    Raises ValueError: FSDP was asked for in a form that is not supported, or for such a model.
    """

    _whole_class: type | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.shards:
            self._check_shards()
            self.is_fsdp_enabled, self.place_model_on_device = False, True
            self._move_model_to_device(self.model, self.args.device)

    @property
    def shards(self) -> bool:
        """Whether FSDP was asked for, and does anything: on a processor accelerate leaves it out."""
        return getattr(self.accelerator.state, "fsdp_plugin", None) is not None

    def _check_shards(self) -> None:
        plugin: Any = self.accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise UserError("FSDP 1 hides the weights of single layers: give fsdp_config={'version': 2}")
        if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
            raise UserError("checkpoints hold whole models: give fsdp_config={'state_dict_type': 'FULL_STATE_DICT'}")
        if not isinstance(self.model, PreTrainedModel):
            raise UserError(f"FSDP with {type(self.model).__name__}, which is no PreTrainedModel, is not supported")
        if self.model.all_tied_weights_keys:
            raise UserError(
                f"{type(self.model).__name__} ties weights of several modules, which accelerate's FSDP would share "
                "out one by one: leave fsdp out"
            )

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Is the parent's `train`; afterwards every process holds the whole model."""
        if isinstance(self.model, FSDPModule):
            raise RuntimeError("training was broken off while FSDP had shared the model out: build a new trainer")
        self._whole_class = type(self.model)
        self.is_fsdp_enabled = self.shards
        try:
            output: TrainOutput = super().train(*args, **kwargs)
        finally:
            self.is_fsdp_enabled = False  # evaluating would share the model out again
        if self.shards:
            self._install(gather_full_model(self.model, self._whole_class))
        return output

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if isinstance(self.model, FSDPModule) and self._whole_class is not None:
            # By this name `save_pretrained` finds the code that it puts beside the weights.
            type(self.model).__module__ = self._whole_class.__module__
        super()._save(output_dir, state_dict)

    def _install(self, model: PreTrainedModel) -> None:
        raise NotImplementedError


def gather_full_model(model: Any, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """Return `model`, a `model_class` that FSDP has shared out, whole; all processes must ask for it."""
    weights = {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).cpu()
        for name, value in model.state_dict().items()
    }
    with torch.random.fork_rng(devices=[]):
        whole = model_class._from_config(
            model.config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    whole.load_state_dict(weights)
    for name, parameter in model.named_parameters():
        whole.get_parameter(name).requires_grad_(parameter.requires_grad)
    if whole.can_generate():
        whole.generation_config = model.generation_config
    return whole.train(model.training)
