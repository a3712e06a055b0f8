"""TrainingArguments as people use them, with each technique: they work, or are refused at once with the reason."""

import json

import pytest
import torch
from accelerate import Accelerator
from trainers import (
    accuracy,
    arguments,
    build,
    classifier,
    collate,
    log_entries,
    losses,
    pad,
    rows,
    seq2seq_arguments,
    t5,
    without_report,
    written,
)
from transformers import EarlyStoppingCallback, Trainer

from hf_efficient import (
    DistillationConfig,
    EfficientSeq2SeqTrainer,
    EfficientTrainer,
    PruningConfig,
    QuantizationConfig,
)
from hf_efficient.errors import UserError
from hf_efficient.trainer import trial

SMALL = {"heads": 0.5, "neurons": 0.5, "scoring_samples": 8, "multiple_of": 4}
TECHNIQUES = {
    "fine-tuning": {},
    "pruning": {"pruning": PruningConfig(**SMALL)},
    "ramp": {"pruning": PruningConfig(**SMALL, ramp=0.5)},
    "rounds": {"pruning": PruningConfig(**SMALL, rounds=2)},
    "distillation": {"distillation": DistillationConfig()},
    "int8-aware": {"quantization": QuantizationConfig(aware=True)},
}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}
SELECTED = {**EVALUATED, "save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True}
# What can be set together shares a run: each technique is trained with each of these.
SETTINGS = {
    "best model": {
        **SELECTED,
        "metric_for_best_model": "accuracy",
        "save_total_limit": 1,
        "lr_scheduler_type": "cosine",
    },
    "smoothed labels": {"label_smoothing_factor": 0.1, "train_sampling_strategy": "group_by_length", "optim": "sgd"},
    "evaluation": {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_only_model": True,
        "eval_accumulation_steps": 1,
        "prediction_loss_only": True,
        "include_for_metrics": ["inputs", "loss"],
        "dataloader_num_workers": 2,
    },
}
COMPILED = {
    "torch_compile": True,
    "torch_compile_backend": "eager",
}  # what it can trace does not depend on the backend


class Rows(torch.utils.data.Dataset):
    """A plain torch dataset."""

    def __init__(self, count=16, seed=0):
        self.rows = list(rows(count, seed=seed))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(list(rows(64)))


def train(folder, technique, settings=None, **changes):
    """Train two steps (one in each phase) and return the trainer, with the metrics that a report would hold."""
    values = {
        "model": classifier(),
        "args": arguments(folder, **{"max_steps": 2, "per_device_train_batch_size": 4, **(settings or {})}),
        "train_dataset": rows(16),
        "eval_dataset": rows(8, seed=9),
        "data_collator": collate,
        "compute_metrics": accuracy,
        **TECHNIQUES[technique],
        **changes,
    }
    trainer = without_report(EfficientTrainer(**values))
    trainer.train()
    trainer.metrics = trainer.evaluator.evaluate("student", trainer.model)
    return trainer


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_arguments_work_with_every_technique(tmp_path, technique, settings):
    stopping = [EarlyStoppingCallback(1)] if settings == "best model" else None
    trainer = train(tmp_path, technique, SETTINGS[settings], callbacks=stopping)
    assert set(trainer.metrics) == {"loss", "accuracy"}
    assert trainer.args.prediction_loss_only is SETTINGS[settings].get("prediction_loss_only", False)


@pytest.mark.slow
@pytest.mark.parametrize("technique", ["ramp", "int8-aware"])
def test_compiled_training_has_the_losses_of_an_ordinary_one(tmp_path, technique):
    torch.compiler.reset()  # what other tests compiled counts towards the limit of compilations
    compiled = train(tmp_path / "compiled", technique, COMPILED)
    assert compiled.args.torch_compile
    assert losses(compiled) == pytest.approx(losses(train(tmp_path / "ordinary", technique)), abs=1e-3)


@pytest.mark.parametrize("technique", ["pruning", "rounds", "int8-aware"])
def test_streams_work_with_every_technique(tmp_path, technique):
    streams = {"train_dataset": rows(16).to_iterable_dataset(), "eval_dataset": rows(8, seed=9).to_iterable_dataset()}
    assert set(train(tmp_path, technique, EVALUATED, **streams).metrics) == {"loss", "accuracy"}


@pytest.mark.parametrize("technique", ["fine-tuning", "rounds"])
def test_metric_of_lists_of_batches_works(tmp_path, technique):
    def accuracy_of_batches(prediction):
        correct = [
            (logits.argmax(-1) == labels).mean()
            for logits, labels in zip(prediction.predictions, prediction.label_ids, strict=True)
        ]
        return {"accuracy": float(sum(correct) / len(correct))}

    settings = {**EVALUATED, "eval_do_concat_batches": False, "per_device_eval_batch_size": 4}
    trainer = train(tmp_path, technique, settings, compute_metrics=accuracy_of_batches)
    assert trainer.metrics["accuracy"] in (0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)


@pytest.mark.parametrize("technique", ["fine-tuning", "ramp", "distillation"])
@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"train_dataset": Rows(), "eval_dataset": Rows(8)}, {"accuracy"}),
        ({"train_dataset": Stream()}, {"accuracy"}),
        ({"eval_dataset": {"a": rows(8), "b": rows(4)}}, {"a_accuracy", "b_accuracy"}),
        ({"compute_metrics": None}, set()),
    ],
    ids=["torch dataset", "stream", "several evaluation datasets", "no metric"],
)
def test_kinds_of_data_work(tmp_path, technique, changes, names):
    trainer = train(tmp_path, technique, EVALUATED, **changes)
    assert {name for name in trainer.metrics if not name.endswith("loss")} == names


def test_no_checkpoint_with_open_gates_is_selected(tmp_path, monkeypatch):
    loaded = []
    load = Trainer._load_best_model
    monkeypatch.setattr(Trainer, "_load_best_model", lambda self: (loaded.append(self.args.output_dir), load(self)))
    stopping = EarlyStoppingCallback(early_stopping_patience=1)
    settings = {**SELECTED, "metric_for_best_model": "accuracy", "max_steps": 8}
    trainer = train(tmp_path, "ramp", settings, callbacks=[stopping], compute_metrics=lambda _: {"accuracy": 0.5})
    assert loaded == [str(tmp_path / "_round-1")]
    assert json.loads((tmp_path / "_round-0" / "checkpoint-4" / "trainer_state.json").read_text())["global_step"] == 4
    assert trainer.state.global_step == 2  # it stopped early, after the removal only
    assert trainer.args.load_best_model_at_end
    assert stopping in trainer.callback_handler.callbacks


def test_evaluation_keeps_no_hidden_states(tmp_path):
    seen = []
    model = classifier(output_hidden_states=True, output_attentions=True, attn_implementation="eager")
    train(tmp_path, "fine-tuning", model=model, compute_metrics=lambda p: seen.append(p.predictions) or {})
    assert seen
    assert all(predictions.shape[1:] == (3,) for predictions in seen)


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"report_to": ["tensorbord"]}, {}, "report_to='tensorbord' is unknown or its package is not installed"),
        ({**SELECTED, "metric_for_best_model": "f2"}, {}, "metric_for_best_model='f2' is not computed: give one of"),
        ({"label_smoothing_factor": 0.1}, {"model": classifier(labels=1)}, "labels of a regression are numbers"),
        ({}, {"callbacks": [EarlyStoppingCallback()]}, "give metric_for_best_model, and eval_strategy="),
        ({}, {"train_dataset": None}, "there is no train_dataset"),
        ({}, {"train_dataset": rows(0)}, "there is an empty train_dataset"),
        ({"eval_strategy": "epoch"}, {"eval_dataset": None}, "you didn't pass an `eval_dataset`"),
        ({"batch_eval_metrics": True}, {}, "compute_result"),
    ],
    ids=[
        "unknown report",
        "unknown metric",
        "smoothing of a regression",
        "early stopping without a metric",
        "no training data",
        "empty training data",
        "no evaluation data",
        "metrics of batches",
    ],
)
@pytest.mark.parametrize("technique", ["fine-tuning", "distillation"])
def test_what_cannot_work_is_refused_before_training(tmp_path, monkeypatch, technique, settings, changes, message):
    monkeypatch.setattr(Trainer, "training_step", lambda *args: pytest.fail("it was trained"))
    with pytest.raises(ValueError, match=message):
        train(tmp_path, technique, settings, **changes)


@pytest.mark.parametrize("technique", ["pruning", "ramp", "rounds"])
def test_optimizer_or_schedule_of_other_weights_is_refused_with_pruning(tmp_path, technique):
    optimizer = torch.optim.SGD(classifier().parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    for optimizers in ((optimizer, None), (None, schedule)):
        with pytest.raises(UserError, match="leave `optimizers` out"):
            train(tmp_path, technique, optimizers=optimizers)


@pytest.mark.parametrize("technique", ["fine-tuning", "distillation", "int8-aware"])
def test_optimizer_and_schedule_are_used(tmp_path, technique):
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    trainer = train(tmp_path, technique, model=model, optimizers=(optimizer, schedule))
    assert [entry["learning_rate"] for entry in log_entries(trainer)] == [0.05, 0.05]


def test_metric_that_fails_stops_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "training_step", lambda *args: pytest.fail("it was trained"))

    def fail(prediction):
        assert len(prediction.predictions) == len(prediction.label_ids) == 40  # as many as there are rows
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(tmp_path, "ramp", compute_metrics=fail, eval_dataset=rows(40))


def test_card_that_fails_stops_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "training_step", lambda *args: pytest.fail("it was trained"))
    seen = []

    def fail(report, folder):
        seen.append((report, folder))
        raise ZeroDivisionError

    monkeypatch.setattr(trial, "build_model_card", fail)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "out [1]", "pruning")
    (report, folder), *_ = seen
    assert [row.role for row in report.models] == ["teacher", "student"]
    assert report.metric == "accuracy"
    assert "pruning" in report.configs
    assert folder.name == "out [1]"
    assert not folder.exists()


def test_model_is_prepared_for_training_after_the_trial(tmp_path, monkeypatch):
    prepared = []
    prepare_model = Accelerator.prepare_model

    def record(self, model, device_placement=None, evaluation_mode=False):
        prepared.append((evaluation_mode, getattr(model, "_is_accelerate_prepared", False)))
        return prepare_model(self, model, device_placement, evaluation_mode)

    monkeypatch.setattr(Accelerator, "prepare_model", record)
    without_report(build(tmp_path, max_steps=1)).train()
    assert (True, False) in prepared  # the copy that was evaluated
    assert (False, False) in prepared
    assert (False, True) not in prepared


@pytest.mark.parametrize("technique", ["fine-tuning", "pruning", "int8-aware"])
def test_failing_measurement_loses_nothing(tmp_path, technique):
    trainer = build(tmp_path, techniques=TECHNIQUES[technique], max_steps=1)

    def fail(*_):
        raise ZeroDivisionError

    trainer.build_report = fail
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    loaded = type(trainer.model).from_pretrained(tmp_path)
    assert torch.equal(loaded.classifier.weight, trainer.model.classifier.weight)


@pytest.mark.parametrize("technique", ["fine-tuning", "rounds"])
def test_run_resumed_after_its_last_step_makes_no_other(tmp_path, technique, assert_same_weights):
    def run():
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}
        return without_report(build(tmp_path, techniques=TECHNIQUES[technique], **settings))

    first = run()
    first.train()
    resumed = run()
    resumed.train(resume_from_checkpoint=True)
    steps = 4 if technique == "fine-tuning" else 2
    assert resumed.state.global_step == steps
    assert [stage for stage in resumed.stages if stage.startswith("trained")][-1] == f"trained for {steps} steps"
    assert_same_weights(resumed.model, first.model)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_smoothed_labels_of_generated_texts_work_with_every_technique(tmp_path, technique):
    args = seq2seq_arguments(
        arguments(tmp_path, max_steps=2, per_device_train_batch_size=4, label_smoothing_factor=0.1, **EVALUATED)
    )
    data = {"train_dataset": written(8), "eval_dataset": written(4), "data_collator": pad}
    trainer = without_report(EfficientSeq2SeqTrainer(model=t5(), args=args, **data, **TECHNIQUES[technique]))
    trainer.train()
    assert all(0 < entry["loss"] < 1e3 for entry in log_entries(trainer))


def test_smoothed_loss_of_generated_texts_is_that_of_transformers(tmp_path):
    args = seq2seq_arguments(arguments(tmp_path, label_smoothing_factor=0.1))
    trainer = EfficientSeq2SeqTrainer(model=t5(), args=args, train_dataset=written(8), data_collator=pad)
    batch = pad(list(written(4)))
    logits = trainer.model(**batch).logits.log_softmax(-1)
    counted = batch["labels"] != -100
    likelihoods = logits.gather(-1, batch["labels"].clamp(0)[..., None])[..., 0]
    expected = -(0.9 * likelihoods + 0.1 * logits.mean(-1))[counted].mean()
    for model in (trainer.model.train(), trainer.model.eval()):
        assert torch.allclose(trainer.compute_loss(model, dict(batch)), expected, rtol=1e-4)
