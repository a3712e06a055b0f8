import pytest
import torch
from transformers import Trainer, TrainerState, TrainingArguments

from hf_efficient.models import family_of
from hf_efficient.pruning.callbacks import GateClosingCallback, GradualSparsityCallback
from hf_efficient.pruning.connection_criteria import magnitude
from hf_efficient.pruning.selection import Scores, Selection
from hf_efficient.pruning.sparsity import zero_fraction


def everything(model):
    """Returns the selection of all layers and units."""
    family = family_of(model)
    units = {name: tuple(range(block.units)) for name, block in family.blocks(model).items()}
    return Selection(tuple(family.layers(model)), units)


def build_callback(model, criterion="fisher", **changes):
    arguments = {"choose": lambda progress, scores: everything(model), "rescore": None, **changes}
    return GateClosingCallback(criterion=criterion, **arguments)


def begin(callback, model):
    callback.on_train_begin(None, None, None, model=model)
    return callback


def end_step(callback, step, max_steps, **kwargs):
    callback.on_step_end(None, TrainerState(global_step=step, max_steps=max_steps), None, **kwargs)


def backward(model, batch):
    model(**batch).loss.backward()


class CollectingTrainer(Trainer):
    """Collects the gradients of the gates right after every backward pass."""

    collect = None

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.collect()
        return loss


# Of 7 batches: with 3 accumulated, the last window is incomplete.
@pytest.mark.parametrize(("criterion", "accumulation"), [("fisher", 1), ("movement", 3)])
def test_gradients_are_collected_once_after_every_backward_pass(
    make_model, make_batch, tmp_path, criterion, accumulation
):
    batch = make_batch(labelled=True)
    data = [{name: value[index % 3] for name, value in batch.items()} for index in range(14)]

    def train(trainer_class, callback, model):
        args = TrainingArguments(
            tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation, num_train_epochs=1,
            max_grad_norm=0.01, learning_rate=1e-2, use_cpu=True, report_to="none", disable_tqdm=True,
            save_strategy="no",
        )  # fmt: skip
        trainer = trainer_class(model, args, train_dataset=data, callbacks=[callback])
        trainer.collect = callback.collect
        trainer.train()
        return callback.sums

    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    collected, expected = [], []
    model = make_model(**dropout)
    callback = build_callback(model, criterion)
    score = callback.gradient_score
    callback.gradient_score = lambda gradient: (collected.append(gradient.clone()), score(gradient))[1]
    sums = train(Trainer, callback, model)

    model = make_model(**dropout)
    callback = build_callback(model, criterion)
    callback.on_substep_end = callback.on_pre_optimizer_step = lambda *args, **kwargs: None
    callback.gradient_score = lambda gradient: (expected.append(gradient.clone()), score(gradient))[1]
    expected_sums = train(CollectingTrainer, callback, model)

    assert len(collected) == len(expected) == 7 * (3 * 2 + 3)  # 7 batches, 6 blocks and 3 layers
    assert all(torch.equal(one, other) for one, other in zip(collected, expected, strict=True))
    assert sums.keys() == expected_sums.keys() == {*everything(model).units, *everything(model).layers}
    assert all(torch.equal(total, expected_sums[name]) for name, total in sums.items())
    assert all(total.abs().sum() > 0 for total in sums.values())


def test_scores_are_summed_gradients(make_model, make_batch):
    model, batch = make_model(), make_batch(labelled=True)
    callback = begin(build_callback(model, reduce=lambda values: 2 * values), model)
    backward(model, batch)
    gradient, layer_gradient = callback.units["encoder.1.attention"].grad, callback.layers["encoder.2"].grad
    callback.collect()
    assert callback.units["encoder.1.attention"].grad is None
    scores = callback.scores()
    torch.testing.assert_close(scores.units["encoder.1.attention"], gradient.square())  # halved, doubled by `reduce`
    assert scores.layers["encoder.2"] == pytest.approx(float(layer_gradient.square()))


def test_other_criteria_are_scored_again(make_model, make_batch):
    model, scores = make_model(), Scores({})
    callback = begin(build_callback(model, "magnitude", rescore=lambda: scores), model)
    assert not any(gate.requires_grad for gate in callback.units.values())
    backward(model, make_batch(labelled=True))
    callback.collect()
    assert callback.scores() is scores


def test_gates_follow_the_selection_at_every_update(make_model):
    model = make_model()
    everything_kept, calls = everything(model), []
    removed = {"encoder.0.attention": (1, 3), "encoder.1.feed_forward": ()}
    selections = [Selection(("encoder.0", "encoder.2"), {**everything_kept.units, **removed}), everything_kept]

    def choose(progress, scores):
        calls.append(progress)
        return selections[len(calls) - 1]

    callback = begin(build_callback(model, choose=choose), model)
    end_step(callback, 1, 64)
    assert calls == []
    end_step(callback, 2, 64)  # 64 steps, 32 updates
    assert calls == [pytest.approx(1 - (62 / 64) ** 3)]
    assert callback.units["encoder.0.attention"].tolist() == [0, 1, 0, 1]
    assert not callback.units["encoder.1.feed_forward"].any()
    assert [callback.layers[f"encoder.{index}"].item() for index in range(3)] == [1, 0, 1]
    end_step(callback, 64, 64)
    assert calls[1:] == [1.0]
    assert all(gate.bool().all() for gate in (*callback.units.values(), *callback.layers.values()))


@pytest.mark.parametrize(("criterion", "decay"), [("fisher", 0.5), ("taylor", 0.5), ("movement", 1.0)])
def test_sums_decay_after_every_update_but_the_last(make_model, make_batch, criterion, decay):
    model = make_model()
    callback = begin(build_callback(model, criterion), model)
    backward(model, make_batch(labelled=True))
    callback.collect()
    total = callback.sums["encoder.0.attention"].clone()
    end_step(callback, 2, 4)
    torch.testing.assert_close(callback.sums["encoder.0.attention"], decay * total)
    end_step(callback, 4, 4)
    torch.testing.assert_close(callback.sums["encoder.0.attention"], decay * total)


def test_gates_are_applied_during_training_only(make_model, make_batch, outputs, assert_same):
    model, batch = make_model(), make_batch()
    before = outputs(model, batch)
    callback = build_callback(model)
    assert not callback.is_open
    begin(callback, model)
    assert callback.is_open
    with torch.no_grad():
        callback.layers["encoder.1"].zero_()
    with torch.no_grad():
        gated = model(**batch).logits
    assert (gated - before["logits"]).abs().max() > 0.01
    callback.on_train_end(None, None, None)
    callback.close()
    assert not callback.is_open
    assert_same(outputs(model, batch), before, atol=0)


def test_gates_and_sums_are_saved_and_loaded(make_model, make_batch, tmp_path):
    model = make_model()
    callback = begin(build_callback(model, reduce=lambda values: 3 * values), model)
    backward(model, make_batch(labelled=True))
    callback.collect()
    with torch.no_grad():
        callback.units["encoder.0.attention"][2] = 0
        callback.layers["encoder.2"].zero_()
    callback.save(str(tmp_path), is_main_process=False)
    assert list(tmp_path.iterdir()) == []
    callback.save(str(tmp_path))
    callback.close()

    resumed = build_callback(model)
    resumed.load(str(tmp_path))
    begin(resumed, model)
    assert resumed.units["encoder.0.attention"].tolist() == [1, 1, 0, 1]
    assert resumed.layers["encoder.2"].item() == 0
    assert resumed.units["encoder.0.attention"].requires_grad
    for name, total in callback.sums.items():
        torch.testing.assert_close(resumed.sums[name], 3 * total)
    resumed.close()


def test_sparsity_grows_by_the_cubic_schedule_and_zeros_stay_zero(make_model):
    model = make_model()
    callback = GradualSparsityCallback(0.8, "layer", rescore=lambda: magnitude(model))
    callback.on_train_begin(None, None, None, model=model)
    fractions = []
    for step in (1, 2, 3, 4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01
        callback.on_optimizer_step(None, None, None)
        end_step(callback, step, 4, model=torch.nn.DataParallel(model))
        fractions.append(zero_fraction(model))
    assert fractions == pytest.approx([0.8 * (1 - (1 - step / 4) ** 3) for step in (1, 2, 3, 4)], abs=1e-3)


def test_sparsity_is_updated_32_times(make_model):
    model, updates = make_model(), []
    callback = GradualSparsityCallback(0.5, "global", rescore=lambda: (updates.append(1), magnitude(model))[1])
    callback.on_train_begin(None, None, None, model=model)
    for step in range(1, 65):
        end_step(callback, step, 64, model=model)
    assert len(updates) == 32
