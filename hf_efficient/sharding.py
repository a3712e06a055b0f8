"""Models that FSDP shares out among the processes while they are trained, and that are whole again afterwards."""

from __future__ import annotations

from typing import Any

from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import TrainOutput


class Sharding(Trainer):
    """A trainer whose model is shared out by FSDP only while `train` runs: it is cut, measured and saved whole."""

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Is the parent's `train`; afterwards every process holds the whole model."""
        model_class = type(self.model)
        self.is_fsdp_enabled = self.shards
        output: TrainOutput = super().train(*args, **kwargs)
        if self.shards:
            self.is_fsdp_enabled = False  # evaluating would share it out again
            self._install(gathered(self.model, model_class))
        return output

    @property
    def shards(self) -> bool:
        """Whether FSDP was asked for, and does anything: on a processor accelerate leaves it out."""
        return getattr(self.accelerator.state, "fsdp_plugin", None) is not None

    def _install(self, model: PreTrainedModel) -> None:
        raise NotImplementedError


def gathered(model: Any, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """Returns `model`, a `model_class` that FSDP has shared out, whole; all processes must ask for it."""
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    attention = model.config._attn_implementation
    whole = model_class._from_config(model.config, dtype=model.dtype, attn_implementation=attention)
    whole.load_state_dict(weights)
    if whole.can_generate():
        whole.generation_config = model.generation_config
    return whole.train(model.training)
