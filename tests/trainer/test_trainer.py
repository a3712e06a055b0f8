"""A run of the trainer from its start to the report, and what it writes and pushes."""

import copy
import json
import warnings
from concurrent.futures import Future

import pytest
import torch
from trainers import (
    arguments,
    build,
    classifier,
    collate,
    log_entries,
    losses,
    rows,
    step_gradients,
    stop,
    without_report,
)
from transformers import BertForSequenceClassification, Trainer

from hf_efficient import (
    CompressionReport,
    DistillationConfig,
    EfficientSeq2SeqTrainer,
    EfficientTrainer,
    NonFiniteLossError,
    PruningConfig,
    QuantizationConfig,
)
from hf_efficient.hub import publisher

SMALL = {"scoring_samples": 16, "multiple_of": 4}


# ---- the run ----


def test_training_without_techniques_equals_that_of_trainer(tmp_path, assert_same_weights):
    trainer = without_report(build(tmp_path / "a", model=classifier(dropout=0.1)))
    trainer.train()
    stock_trainer = build(tmp_path / "b", Trainer, model=classifier(dropout=0.1))
    stock_trainer.train()
    assert losses(trainer) == losses(stock_trainer)
    assert len(losses(trainer)) == 4
    assert_same_weights(trainer.model, stock_trainer.model)


def test_pruning_in_rounds_trains_the_small_model_and_reports_it(tmp_path):
    model = classifier()
    original = copy.deepcopy(model)
    pruning = PruningConfig(target_flops=2.0, rounds=2, **SMALL)
    trainer = build(tmp_path, model=model, techniques={"pruning": pruning}, num_train_epochs=2)
    output = trainer.train()
    assert output.global_step == 4  # two epochs in total: one in each round
    report = trainer.report
    assert [row.role for row in report.models] == ["teacher", "student"]
    assert report.row("student").ratios.flops >= 2.0
    assert report.row("student").parameters == sum(p.numel() for p in trainer.model.parameters())
    assert report.row("teacher").parameters == sum(p.numel() for p in original.parameters())
    assert 0 <= report.row("student").metrics["accuracy"] <= 1
    assert report.row("teacher").latency_ms.p50 > 0
    assert sum(stage.startswith("pruned") for stage in report.stages) == 2
    pruned = type(trainer.model).from_pretrained(tmp_path / "_round-2")
    assert not torch.equal(pruned.classifier.weight, trainer.model.classifier.weight)  # it was trained


def test_quantization_alone_trains_nothing(tmp_path):
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    trainer = build(tmp_path, model=model, techniques={"quantization": QuantizationConfig(compile=False)})
    assert trainer.train() is None
    assert [row.role for row in trainer.report.models] == ["teacher", "quantized"]
    assert trainer.report.training is None
    assert torch.equal(trainer.model.classifier.weight, before["classifier.weight"])
    assert trainer.report.row("quantized").ratios.size > 1.5
    with pytest.raises(ValueError, match="is quantized and cannot be trained: build a trainer with the float model"):
        trainer.train()


def test_all_techniques_together_save_a_model_that_loads(tmp_path):
    techniques = {
        "pruning": PruningConfig(heads=0.5, neurons=0.5, scoring_samples=16),
        "distillation": DistillationConfig(),
        "quantization": QuantizationConfig(compile=False),
    }
    trainer = build(tmp_path, techniques=techniques, bf16=True)
    trainer.train()
    assert [row.role for row in trainer.report.models] == ["teacher", "student", "quantized"]
    assert trainer.report.row("student").latency_ms.runtime == "torch float32"
    assert trainer.report.configs["training"]["attn_implementation"] == "sdpa"
    trainer.save_model(str(tmp_path / "final"))
    reloaded = type(trainer.model).from_pretrained(tmp_path / "final").eval()
    batch = collate(list(rows(4)))
    batch.pop("labels")
    assert torch.equal(reloaded(**batch).logits, trainer.model.eval()(**batch).logits)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_pruned_student_is_trained_the_same_if_compiled(tmp_path):
    logged = []
    for compiles in (False, True):
        techniques = {
            "pruning": PruningConfig(heads=0.5, neurons=0.5, **SMALL),
            "distillation": DistillationConfig(hidden_weight=1.0),
        }
        # Up to the code of C++, which takes a minute to compile.
        compilation = {"torch_compile": True, "torch_compile_backend": "aot_eager"} if compiles else {}
        trainer = build(tmp_path / str(compiles), techniques=techniques, seed=3, **compilation)
        without_report(trainer).train()
        logged.append(losses(trainer))
    assert len(logged[0]) == 4
    assert logged[1] == pytest.approx(logged[0], rel=1e-4)


def test_seq2seq_trainer_shares_the_overrides():
    assert issubclass(EfficientSeq2SeqTrainer, EfficientTrainer.__mro__[1])
    assert EfficientSeq2SeqTrainer.compute_loss is EfficientTrainer.compute_loss


# ---- the teacher and the loss ----


def test_student_equal_to_its_teacher_has_no_soft_label_loss(tmp_path):
    techniques = {"distillation": DistillationConfig(hard_label_weight=0.0, logits_weight=1.0)}
    trainer = without_report(build(tmp_path, techniques=techniques, max_steps=1))
    trainer.train()
    [entry] = log_entries(trainer)
    assert entry["soft_label_loss"] == pytest.approx(0.0, abs=1e-6)
    assert entry["loss"] == pytest.approx(0.0, abs=1e-6)


def test_teacher_is_frozen_and_not_saved_in_checkpoints(tmp_path):
    teacher = classifier()
    before = copy.deepcopy(teacher.state_dict())
    techniques = {"teacher": teacher, "distillation": DistillationConfig()}
    trainer = without_report(build(tmp_path, techniques=techniques, save_strategy="steps", save_steps=2))
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4")
    assert saved.state_dict().keys() == teacher.state_dict().keys()


def test_loss_that_is_nan_stops_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    trainer = build(tmp_path, save_strategy="steps", save_steps=1)
    training_step = Trainer.training_step

    def step(self, *args, **kwargs):
        loss = training_step(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 2 else loss

    monkeypatch.setattr(Trainer, "training_step", step)
    with pytest.raises(NonFiniteLossError, match=r"the loss is nan at step 2.*last checkpoint.*learning rate"):
        trainer.train()
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert all(torch.isfinite(value).all() for value in saved.state_dict().values())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_gradient_checkpointing_by_its_old_name_changes_no_gradient(tmp_path):
    expected = step_gradients(build(tmp_path, model=classifier(dropout=0.1), max_steps=1))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = build(tmp_path, model=classifier(dropout=0.1), max_steps=1, gradient_checkpointing=True)
        gradients = step_gradients(trainer)[0]
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=0, atol=1e-6, msg=name)


# ---- the report ----


def test_reported_metrics_are_computed_in_full_precision(tmp_path):
    trainer = build(tmp_path, techniques={"distillation": DistillationConfig()}, bf16=True, max_steps=2)
    trainer.train()
    with torch.no_grad():
        loss = trainer.model.eval()(**collate(list(rows(16, seed=9)))).loss.item()
    assert trainer.report.row("student").metrics["loss"] == pytest.approx(loss, rel=1e-5)


def test_report_without_evaluation_data_has_no_metrics(tmp_path):
    args = arguments(tmp_path, max_steps=1)
    trainer = EfficientTrainer(model=classifier(), args=args, train_dataset=rows(), data_collator=collate)
    trainer.train()
    data = json.loads(trainer.report.to_json())
    assert data["models"][0]["metrics"] == {}
    assert data["models"][0]["energy_joules_per_sample"] is None
    assert "not measured" in trainer.report.markdown()


def test_resources_of_training_are_reported_and_null_if_not_measured(tmp_path):
    trainer = without_report(build(tmp_path, max_steps=1))
    trainer.train()
    assert trainer.report.training.seconds > 0
    assert json.loads(trainer.report.to_json())["training"]["energy_joules"] is None
    assert CompressionReport.from_json(trainer.report.to_json()).training == trainer.report.training


def test_attention_implementation_is_kept_and_reported(tmp_path):
    techniques = {
        "pruning": PruningConfig(heads=0.5, rounds=2, scoring_samples=8),
        "quantization": QuantizationConfig("int8_weight_only", compile=False),
    }
    trainer = build(tmp_path, model=classifier(attn_implementation="eager"), techniques=techniques, max_steps=2)
    trainer.train()
    assert trainer.model.config._attn_implementation == "eager"
    assert trainer.report.configs["training"]["attn_implementation"] == "eager"
    assert "eager attention" in trainer.report.conditions()


# ---- resuming ----


@pytest.fixture(scope="module")
def complete_training(tmp_path_factory):
    """Return a function that trains without an interruption, once for each strategy, and returns the model."""
    models = {}

    def train(strategy):
        if strategy not in models:
            trainer = build_resumable(tmp_path_factory.mktemp("complete"), strategy)
            trainer.train()
            models[strategy] = trainer.model
        return models[strategy]

    return train


def build_resumable(folder, strategy):
    changes = {"train_sampling_strategy": strategy, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1}
    return without_report(build(folder, model=classifier(dropout=0.1), **changes))


@pytest.mark.parametrize(
    ("strategy", "interrupted_at"), [("random", 3), ("random", 11), ("group_by_length", 6), ("group_by_length", 11)]
)
def test_resumed_run_sees_the_same_batches(tmp_path, complete_training, assert_same_weights, strategy, interrupted_at):
    stop(build_resumable(tmp_path, strategy), interrupted_at)
    resumed = build_resumable(tmp_path, strategy)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(resumed.model, complete_training(strategy))
    assert resumed.report.training is None  # what was spent before the interruption is not known


def test_resuming_without_a_checkpoint_starts_a_run(tmp_path):
    trainer = without_report(build(tmp_path))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    assert trainer.report.training is not None


def test_incomplete_checkpoint_is_skipped(tmp_path, assert_same_weights):
    changes = {"save_strategy": "steps", "save_steps": 1}
    complete = without_report(build(tmp_path, **changes))
    complete.train()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text('{"epoch": 1')
    (tmp_path / "checkpoint-4" / "model.safetensors").write_bytes(b"half of it")
    resumed = without_report(build(tmp_path, **changes))
    assert resumed.train(resume_from_checkpoint=True).global_step == 4
    assert_same_weights(resumed.model, complete.model)


def test_batches_of_similar_lengths_are_in_another_order_in_every_epoch(tmp_path):
    trainer = build(tmp_path, train_sampling_strategy="group_by_length")
    sampler = trainer._get_train_sampler()
    orders = []
    for epoch in (0, 1, 0):
        trainer.state.epoch = float(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == list(range(32))


# ---- the Hub ----


def test_token_is_in_no_file(tmp_path):
    trainer = build(tmp_path, hub_token="hf_canary", save_strategy="steps", save_steps=2)
    without_report(trainer).train()
    trainer.save_model()
    assert trainer.args.hub_token == "hf_canary"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert not [path for path in files if b"hf_canary" in path.read_bytes()]
    assert not list(tmp_path.rglob("training_args.bin"))


def test_checkpoint_is_not_pushed_while_another_is(tmp_path, monkeypatch):
    trainer, pushes = build(tmp_path, hub_token="hf_canary"), []
    trainer.hub_model_id = "me/films"
    monkeypatch.setattr(publisher, "push_checkpoint", lambda *args: pushes.append((args, Future())) or pushes[-1][1])
    trainer._push_from_checkpoint("checkpoint-1")
    trainer._push_from_checkpoint("checkpoint-2")
    pushes[0][1].set_result(None)
    trainer._push_from_checkpoint("checkpoint-3")
    assert [args[0] for args, _ in pushes] == ["checkpoint-1", "checkpoint-3"]
    assert pushes[0][0][1:] == ("me/films", 0, "hf_canary", None)
