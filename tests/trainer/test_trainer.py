import copy
import json
import warnings
from concurrent.futures import Future

import pytest
import torch
from trainers import arguments, build, classifier, collate, losses, rows, set_up_distillation, stop
from transformers import AlbertConfig, AlbertForSequenceClassification, BertForSequenceClassification, Trainer

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


def first_gradient(trainer):
    """Returns the gradient of the first optimizer step, before clipping."""
    found = {}
    step = trainer.create_optimizer().step

    def remember(*args, **kwargs):
        if not found:
            found.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})
        return step(*args, **kwargs)

    trainer.optimizer.step = remember
    trainer.args.max_grad_norm = 0
    Trainer.train(trainer)
    return found


def test_without_techniques_the_losses_are_those_of_trainer(tmp_path):
    ours = build(tmp_path / "a", model=classifier(dropout=0.1))
    ours.train()
    theirs = build(tmp_path / "b", Trainer, model=classifier(dropout=0.1))
    theirs.train()
    assert losses(ours) == losses(theirs)
    assert len(losses(ours)) == 4
    for name, parameter in ours.model.state_dict().items():
        assert torch.equal(parameter, theirs.model.state_dict()[name]), name


@pytest.mark.parametrize("distils", [False, True], ids=["plain", "distilled"])
def test_accumulated_batches_give_the_gradient_of_one_large_batch(tmp_path, distils):
    techniques = {}
    if distils:
        teacher = classifier()
        torch.nn.init.normal_(teacher.classifier.weight)
        techniques = {"teacher": teacher, "distillation": DistillationConfig(temperature=3.0)}

    def gradient(**changes):
        trainer = build(tmp_path, techniques=copy.deepcopy(techniques), max_steps=1, seed=3, **changes)
        if distils:
            set_up_distillation(trainer)
        return first_gradient(trainer)

    large = gradient(per_device_train_batch_size=32)
    small = gradient(per_device_train_batch_size=8, gradient_accumulation_steps=4)
    for name, expected in large.items():
        torch.testing.assert_close(small[name], expected, rtol=1e-4, atol=1e-6, msg=name)
    assert sum(float(value.abs().sum()) for value in large.values()) > 0.1


def test_the_last_window_of_an_epoch_is_divided_by_its_own_count(tmp_path):
    # 20 rows in batches of 8, 8 and 4: one window of all three equals one batch of 20.
    data = rows(20)
    parts = first_gradient(build(tmp_path, data=data, gradient_accumulation_steps=4, seed=3))
    whole = first_gradient(build(tmp_path, data=data, per_device_train_batch_size=20, seed=3))
    for name, expected in whole.items():
        torch.testing.assert_close(parts[name], expected, rtol=1e-4, atol=1e-6, msg=name)


def test_a_student_equal_to_its_teacher_has_no_soft_loss(tmp_path):
    trainer = build(
        tmp_path,
        techniques={"distillation": DistillationConfig(hard_label_weight=0.0, logits_weight=1.0)},
        max_steps=1,
    )
    trainer.train()
    assert trainer.state.log_history[0]["soft_label_loss"] == pytest.approx(0.0, abs=1e-6)
    assert losses(trainer) == [pytest.approx(0.0, abs=1e-6)]


def test_the_teacher_is_frozen_and_not_in_the_checkpoint(tmp_path):
    teacher = classifier()
    before = copy.deepcopy(teacher.state_dict())
    trainer = build(
        tmp_path,
        techniques={"teacher": teacher, "distillation": DistillationConfig()},
        save_strategy="steps",
        save_steps=2,
    )
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4")
    assert saved.state_dict().keys() == teacher.state_dict().keys()


def test_the_parts_of_the_loss_add_up_in_the_log(tmp_path):
    config = DistillationConfig(hard_label_weight=0.25, logits_weight=0.75)
    teacher = classifier()
    torch.nn.init.normal_(teacher.classifier.weight)
    trainer = build(tmp_path, techniques={"teacher": teacher, "distillation": config}, gradient_accumulation_steps=2)
    trainer.train()
    for entry in (entry for entry in trainer.state.log_history if "loss" in entry):
        parts = 0.25 * entry["hard_label_loss"] + 0.75 * entry["soft_label_loss"]
        assert entry["loss"] == pytest.approx(parts, rel=1e-3)


def test_pruning_in_rounds_trains_the_small_model_and_reports_it(tmp_path):
    model = classifier()
    whole = copy.deepcopy(model)
    trainer = build(
        tmp_path,
        model=model,
        techniques={"pruning": PruningConfig(target_flops=2.0, rounds=2, scoring_samples=16, multiple_of=4)},
        num_train_epochs=2,
    )
    output = trainer.train()
    assert output.global_step == 4  # two epochs in all: one a round
    report = trainer.report
    assert [row.role for row in report.models] == ["teacher", "student"]
    assert report.row("student").ratios.flops >= 2.0
    assert report.row("student").parameters == sum(p.numel() for p in trainer.model.parameters())
    assert report.row("teacher").parameters == sum(p.numel() for p in whole.parameters())
    assert 0 <= report.row("student").metrics["accuracy"] <= 1
    assert report.row("teacher").latency_ms.p50 > 0
    assert sum(stage.startswith("pruned") for stage in report.stages) == 2
    start = type(trainer.model).from_pretrained(tmp_path / "_round-2")
    assert not torch.equal(start.classifier.weight, trainer.model.classifier.weight)  # the small one was trained


def test_an_interrupted_run_goes_on_in_its_round_and_ends_alike(tmp_path):
    techniques = {"pruning": PruningConfig(target_flops=2.0, rounds=2, scoring_samples=16, multiple_of=4)}
    changes = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    whole = build(tmp_path / "whole", techniques=techniques, **changes)
    whole.train()

    class InterruptionError(Exception):
        pass

    broken = build(tmp_path / "broken", techniques=techniques, **changes)
    training_step = broken.training_step

    def interrupt(*args):
        if broken.args.output_dir.endswith("_round-2") and broken.state.global_step == 3:
            raise InterruptionError
        return training_step(*args)

    broken.training_step = interrupt
    with pytest.raises(InterruptionError):
        broken.train()
    resumed = build(tmp_path / "broken", techniques=techniques, **changes)
    resumed.train(resume_from_checkpoint=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_resuming_with_nothing_there_starts(tmp_path):
    trainer = build(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4


def test_quantization_alone_trains_nothing(tmp_path):
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    trainer = build(tmp_path, model=model, techniques={"quantization": QuantizationConfig(compile=False)})
    assert trainer.train() is None
    assert [row.role for row in trainer.report.models] == ["teacher", "quantized"]
    assert torch.equal(trainer.model.classifier.weight, before["classifier.weight"])
    assert trainer.report.row("quantized").ratios.size > 1.5
    with pytest.raises(ValueError, match="is quantized and cannot be trained"):
        trainer.train()


def test_everything_together_saves_what_loads(tmp_path):
    trainer = build(
        tmp_path,
        techniques={
            "pruning": PruningConfig(heads=0.5, neurons=0.5, scoring_samples=16),
            "distillation": DistillationConfig(),
            "quantization": QuantizationConfig(compile=False),
        },
        bf16=True,
    )
    trainer.train()
    assert [row.role for row in trainer.report.models] == ["teacher", "student", "quantized"]
    assert trainer.report.row("student").latency_ms.runtime == "torch float32"
    trainer.save_model(str(tmp_path / "final"))
    reloaded = type(trainer.model).from_pretrained(tmp_path / "final").eval()
    batch = collate([rows(4)[index] for index in range(4)])
    batch.pop("labels")
    assert torch.equal(reloaded(**batch).logits, trainer.model.eval()(**batch).logits)


def test_reported_metrics_are_those_of_full_precision(tmp_path):
    trainer = build(tmp_path, techniques={"distillation": DistillationConfig()}, bf16=True)
    trainer.train()
    model = trainer.model.eval()
    batch = collate(list(rows(16, seed=9)))
    with torch.no_grad():
        exact = model(**batch).loss.item()
    assert trainer.report.row("student").metrics["loss"] == pytest.approx(exact, rel=1e-5)
    assert batch["input_ids"].shape[0] == 16


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(tmp_path):
    trainer = build(tmp_path, save_strategy="steps", save_steps=1)
    training_step = Trainer.training_step

    def poison(*args, **kwargs):
        loss = training_step(trainer, *args, **kwargs)
        return loss * float("nan") if trainer.state.global_step == 2 else loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "training_step", lambda self, *args, **kwargs: poison(*args, **kwargs))
        with pytest.raises(NonFiniteLossError, match=r"the loss is nan at step 2.*last checkpoint.*learning rate"):
            trainer.train()
    kept = BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert all(torch.isfinite(value).all() for value in kept.state_dict().values())


def test_no_token_is_written(tmp_path):
    trainer = build(tmp_path, hub_token="hf_canary", save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()
    assert trainer.args.hub_token == "hf_canary"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert not [path for path in files if b"hf_canary" in path.read_bytes()]
    assert not list(tmp_path.rglob("training_args.bin"))


def test_a_checkpoint_is_not_pushed_while_one_is_on_its_way(tmp_path, monkeypatch):
    trainer, pushes = build(tmp_path, hub_token="hf_canary"), []
    trainer.hub_model_id = "me/films"
    monkeypatch.setattr(publisher, "push_checkpoint", lambda *asked: pushes.append((asked, Future())) or pushes[-1][1])
    trainer._push_from_checkpoint("checkpoint-1")
    trainer._push_from_checkpoint("checkpoint-2")
    pushes[0][1].set_result(None)
    trainer._push_from_checkpoint("checkpoint-3")
    assert [asked[0] for asked, _ in pushes] == ["checkpoint-1", "checkpoint-3"]
    assert pushes[0][0][1:] == ("me/films", 0, "hf_canary", None)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(tmp_path):
    plain = first_gradient(build(tmp_path, model=classifier(dropout=0.1), max_steps=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = {"gradient_checkpointing": True}
        saved = first_gradient(build(tmp_path, model=classifier(dropout=0.1), max_steps=1, **args))
    # Stock Trainer switches checkpointing on in train(), so this is the parent's path under our loss.
    for name, expected in plain.items():
        torch.testing.assert_close(saved[name], expected, rtol=0, atol=1e-6, msg=name)


REFUSED = [
    ({"teacher": classifier()}, "given without distillation: add distillation"),
    ({"teacher": classifier(labels=4), "distillation": DistillationConfig()}, "give both the same label map"),
]


@pytest.mark.parametrize(("techniques", "message"), REFUSED, ids=["teacher alone", "other labels"])
def test_contradictions_are_refused_before_any_work(tmp_path, techniques, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, techniques=techniques)


def test_an_optimizer_of_the_unpruned_parameters_is_refused(tmp_path):
    model = classifier()
    with pytest.raises(ValueError, match="optimizer_cls_and_kwargs"):
        EfficientTrainer(
            model=model,
            args=arguments(tmp_path),
            optimizers=(torch.optim.SGD(model.parameters(), 0.1), None),
            pruning=PruningConfig(layers=0.5),
        )


def test_a_loss_function_beside_distillation_is_refused(tmp_path):
    techniques = {"distillation": DistillationConfig(), "compute_loss_func": lambda outputs, labels, **_: outputs.loss}
    with pytest.raises(ValueError, match="compute_loss_func would replace the distillation loss"):
        build(tmp_path, techniques=techniques)


def test_the_seq2seq_trainer_has_the_same_additions(tmp_path):
    assert issubclass(EfficientSeq2SeqTrainer, EfficientTrainer.__mro__[1])
    assert EfficientSeq2SeqTrainer.compute_loss is EfficientTrainer.compute_loss


def test_a_report_without_evaluation_says_not_measured(tmp_path):
    trainer = EfficientTrainer(
        model=classifier(), args=arguments(tmp_path), train_dataset=rows(), data_collator=collate
    )
    trainer.train()
    data = json.loads(trainer.report.to_json())
    assert data["models"][0]["metrics"] == {}
    assert data["models"][0]["energy_joules_per_sample"] is None
    assert "not measured" in trainer.report.markdown()


def test_reentrant_checkpointing_would_hide_what_is_inside(tmp_path):
    techniques = {"distillation": DistillationConfig(relation_weight=1.0)}
    changes = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = build(tmp_path, techniques=techniques, **changes)
    with pytest.raises(ValueError, match="reentrant checkpointing hides queries, keys and values"):
        trainer.train()


@pytest.mark.parametrize(
    ("quantization", "error", "said"),
    [
        (QuantizationConfig(skip_modules=".*"), ValueError, "nothing to quantize in BertForSequenceClassification"),
        (QuantizationConfig("codebook", skip_modules=".*"), ValueError, "nothing to quantize"),
    ],
)
def test_what_cannot_be_quantized_is_refused_before_training(tmp_path, quantization, error, said):
    with pytest.raises(error, match=said):
        build(tmp_path, techniques={"quantization": quantization})


def test_codebooks_of_an_unknown_architecture_are_refused_before_training(tmp_path):
    model = AlbertForSequenceClassification(
        AlbertConfig(vocab_size=60, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=32)
    )
    with pytest.raises(TypeError, match="albert"):
        build(tmp_path, model=model, techniques={"quantization": QuantizationConfig("codebook")})


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_attention_stays_as_it_was_asked_for_and_is_reported(tmp_path, name):
    techniques = {
        "pruning": PruningConfig(heads=0.5, rounds=2, scoring_samples=8),
        "quantization": QuantizationConfig("int8_weight_only", compile=False),
    }
    trainer = build(tmp_path, model=classifier(attn_implementation=name), techniques=techniques)
    trainer.train()
    assert trainer.model.config._attn_implementation == name
    assert trainer.report.configs["training"]["attn_implementation"] == name
    assert f"{name} attention" in trainer.report.conditions()


def test_what_training_took_is_reported_and_what_was_not_counted_is_null(tmp_path):
    trainer = build(tmp_path)
    trainer.train()
    assert trainer.report.training.seconds > 0
    assert json.loads(trainer.report.to_json())["training"]["energy_joules"] is None
    assert CompressionReport.from_json(trainer.report.to_json()).training == trainer.report.training
    alone = build(tmp_path / "b", techniques={"quantization": QuantizationConfig("int8_weight_only", compile=False)})
    alone.train()
    assert alone.report.training is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cut_student_learns_the_same_compiled(tmp_path):
    found = []
    for compiles in (False, True):
        techniques = {
            "pruning": PruningConfig(target_flops=2.0, scoring_samples=8, multiple_of=4),
            "distillation": DistillationConfig(hidden_weight=1.0),
        }
        trainer = build(tmp_path / str(compiles), techniques=techniques, torch_compile=compiles, seed=3)
        trainer.train()
        found.append(losses(trainer))
    assert len(found[0]) == 4
    assert found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("at", [3, 6, 11])
@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_an_interrupted_run_goes_on_with_the_same_batches(tmp_path, strategy, at):
    changes = {"train_sampling_strategy": strategy, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1}
    whole = build(tmp_path / "whole", model=classifier(dropout=0.1), **changes)
    whole.train()
    stop(build(tmp_path / "broken", model=classifier(dropout=0.1), **changes), at)
    resumed = build(tmp_path / "broken", model=classifier(dropout=0.1), **changes)
    resumed.train(resume_from_checkpoint=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_batches_of_like_lengths_come_in_another_order_in_every_epoch(tmp_path):
    trainer = build(tmp_path, train_sampling_strategy="group_by_length")
    sampler = trainer._get_train_sampler()
    orders = []
    for epoch in (0, 1, 0):
        trainer.state.epoch = float(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == list(range(32))


@pytest.mark.parametrize("left", [None, "", '{"epoch": 1'], ids=["no state", "an empty state", "half a state"])
def test_a_checkpoint_that_was_not_written_to_its_end_is_left_out(tmp_path, left):
    changes = {"save_strategy": "steps", "save_steps": 1}
    whole = build(tmp_path, **changes)
    whole.train()
    expected = {name: value.clone() for name, value in whole.model.state_dict().items()}
    state = tmp_path / "checkpoint-4" / "trainer_state.json"
    state.unlink() if left is None else state.write_text(left)
    (tmp_path / "checkpoint-4" / "model.safetensors").write_bytes(b"half of it")
    resumed = build(tmp_path, **changes)
    assert resumed.train(resume_from_checkpoint=True).global_step == 4
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
