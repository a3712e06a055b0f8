"""`auto_find_batch_size`: what did not fit leaves no trace in what does."""

import copy

import pytest
import torch
from trainers import build, classifier, rows
from transformers import BertConfig, BertForSequenceClassification, set_seed

from hf_efficient import CompressionReport, DistillationConfig, EfficientTrainer, PruningConfig

FITS = 6
TRIED = [7, 6]  # nine tenths of what was tried before
TECHNIQUES = {
    "no technique": {},
    "answers of a teacher": {"distillation": DistillationConfig()},
    "a projection to a wider teacher": {"distillation": DistillationConfig(hidden_weight=1.0)},
    "cached answers": {"distillation": DistillationConfig(cache_teacher=True)},
    "pruning in rounds": {"pruning": PruningConfig(target_flops=1.5, rounds=2, scoring_samples=8)},
}


class Narrow(EfficientTrainer):
    """Runs out of memory at the end of the first window of batches that are larger than `FITS`."""

    tried: list[int]

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, inputs, *args, **kwargs)
        size = len(inputs["input_ids"])
        self.tried.append(size)
        if size > FITS and self.tried.count(size) == self.args.gradient_accumulation_steps:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss

    def _measure(self, models):
        return CompressionReport()


def trained(folder, techniques, **changes):
    """Returns a trainer after three steps, its student and teacher the same whenever it is called."""
    techniques = copy.deepcopy(techniques)
    if techniques.get("distillation", DistillationConfig()).uses_intermediate_outputs:
        set_seed(3)
        wider = BertConfig.from_dict({**classifier().config.to_dict(), "hidden_size": 48})
        techniques["teacher"] = BertForSequenceClassification(wider)
    trainer = build(
        folder,
        trainer_class=Narrow,
        model=classifier(),
        data=rows(48),
        techniques=techniques,
        max_steps=3,
        train_sampling_strategy="sequential",
        **changes,
    )
    trainer.tried = []
    set_seed(5)
    trainer.train()
    return trainer


@pytest.mark.parametrize(("name", "accumulation"), [("no technique", 1), *((name, 2) for name in TECHNIQUES)])
def test_a_batch_that_does_not_fit_changes_nothing(tmp_path, name, accumulation):
    settings = {"gradient_accumulation_steps": accumulation}
    found = trained(
        tmp_path / "found",
        TECHNIQUES[name],
        per_device_train_batch_size=TRIED[0],
        auto_find_batch_size=True,
        **settings,
    )
    given = trained(tmp_path / "given", TECHNIQUES[name], per_device_train_batch_size=FITS, **settings)
    assert list(dict.fromkeys(found.tried)) == TRIED
    assert found.state.global_step == given.state.global_step
    theirs = given.model.state_dict()
    for key, ours in found.model.state_dict().items():
        torch.testing.assert_close(ours, theirs[key], msg=lambda text, key=key: f"{key}: {text}")
