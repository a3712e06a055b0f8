"""`auto_find_batch_size`: an attempt that runs out of memory has no effect on the one that succeeds."""

import copy

import pytest
import torch
from trainers import build, classifier, rows, without_report
from transformers import BertConfig, BertForSequenceClassification, set_seed

from hf_efficient import DistillationConfig, EfficientTrainer, PruningConfig

SIZE_THAT_FITS = 6
ATTEMPTED_SIZES = [7, 6]  # each nine tenths of the one before
TECHNIQUES = {
    "no technique": {},
    "distillation": {"distillation": DistillationConfig()},
    "projections": {"distillation": DistillationConfig(hidden_weight=1.0)},
    "cached teacher": {"distillation": DistillationConfig(cache_teacher=True)},
    "pruning in rounds": {"pruning": PruningConfig(heads=0.5, rounds=2, scoring_samples=8)},
    "gates": {"pruning": PruningConfig(heads=0.5, ramp=0.5, scoring_samples=8)},
}


class SmallMemoryTrainer(EfficientTrainer):
    """Runs out of memory at the end of the first window of batches that are larger than `SIZE_THAT_FITS`."""

    sizes: list[int]  # of the batches of every step
    hook_counts: set[int]  # of the hooks of the model, which gates are

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, inputs, *args, **kwargs)
        size = len(inputs["input_ids"])
        self.sizes.append(size)
        self.hook_counts.add(sum(len(module._forward_pre_hooks) for module in self.model.modules()))
        if size > SIZE_THAT_FITS and self.sizes.count(size) == self.args.gradient_accumulation_steps:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss


def train(folder, techniques, **changes):
    """Return a trainer after three steps, with the same student and teacher in every call."""
    techniques = copy.deepcopy(techniques)
    if techniques.get("distillation", DistillationConfig()).uses_intermediate_outputs:
        set_seed(3)
        wider = BertConfig.from_dict({**classifier().config.to_dict(), "hidden_size": 48})
        techniques["teacher"] = BertForSequenceClassification(wider)
    changes = {"max_steps": 3, "train_sampling_strategy": "sequential", **changes}
    trainer = without_report(
        build(folder, trainer_class=SmallMemoryTrainer, data=rows(48), techniques=techniques, **changes)
    )
    trainer.sizes, trainer.hook_counts = [], set()
    set_seed(5)
    trainer.train()
    return trainer


@pytest.mark.parametrize(("name", "accumulation"), [("no technique", 1), *((name, 2) for name in TECHNIQUES)])
def test_batch_that_does_not_fit_changes_nothing(tmp_path, name, accumulation):
    changes = {"gradient_accumulation_steps": accumulation}
    expected = train(tmp_path / "expected", TECHNIQUES[name], per_device_train_batch_size=SIZE_THAT_FITS, **changes)
    changes |= {"per_device_train_batch_size": ATTEMPTED_SIZES[0], "auto_find_batch_size": True}
    trainer = train(tmp_path / "found", TECHNIQUES[name], **changes)
    assert list(dict.fromkeys(trainer.sizes)) == ATTEMPTED_SIZES
    assert trainer.state.global_step == expected.state.global_step
    weights = expected.model.state_dict()
    for key, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, weights[key], msg=lambda text, key=key: f"{key}: {text}")
    assert trainer.hook_counts == expected.hook_counts
