import copy
import itertools
import re

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel
from transformers import BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from hf_efficient.pruning.connection_criteria import block_linears, magnitude
from hf_efficient.pruning.criteria import CONNECTION_CRITERIA
from hf_efficient.pruning.sparsity import KeepZerosCallback, remove_connections, sparsify, zero_fraction

CONNECTIONS = 3 * (4 * 32 * 32 + 2 * 32 * 64)


def weights(model):
    return {name: linear.weight.detach() for name, linear in block_linears(model).items()}


def zeros(model):
    return {name: weight == 0 for name, weight in weights(model).items()}


def count_zeros(model):
    return sum(int(zero.sum()) for zero in zeros(model).values())


@pytest.mark.parametrize(
    ("criterion", "fraction", "scope"),
    [
        (criterion, *setting)
        for criterion, setting in zip(
            CONNECTION_CRITERIA, itertools.cycle([(0.3, "global"), (0.7, "layer"), (0.5, "row")]), strict=False
        )
    ],
)
def test_fraction_is_exact_and_the_lowest_scores_are_removed(make_model, make_batch, criterion, fraction, scope):
    model, batch = make_model(), make_batch(labelled=True)
    sparse = sparsify(model, [batch], fraction=fraction, criterion=criterion, scope=scope)
    assert count_zeros(sparse) == sum(
        {
            "global": [round(fraction * CONNECTIONS)],
            "layer": [round(fraction * weight.numel()) for weight in weights(model).values()],
            "row": [weight.shape[0] * round(fraction * weight.shape[1]) for weight in weights(model).values()],
        }[scope]
    )
    scores, removed = CONNECTION_CRITERIA[criterion](model, [batch]), zeros(sparse)
    groups = {
        "global": [
            torch.cat([each.flatten() for each in (table[name] for name in removed)]) for table in (scores, removed)
        ]
    }
    rows = {name: zip(scores[name], removed[name], strict=True) for name in removed}
    pairs = {
        "global": [groups["global"]],
        "layer": [(scores[name], removed[name]) for name in removed],
        "row": [pair for name in removed for pair in rows[name]],
    }[scope]
    for score, zero in pairs:
        assert score[zero].max() <= score[~zero].min()


def test_kept_weights_do_not_change(make_model):
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    sparse = sparsify(model.train(), fraction=0.6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sparse.training
    assert list(sparse.state_dict()) == list(before)
    assert [name for name, _ in sparse.named_parameters()] == [name for name, _ in model.named_parameters()]
    removed = zeros(sparse)
    for name, value in sparse.state_dict().items():
        kept = ~removed[name] if name in removed else torch.ones_like(value, dtype=torch.bool)
        assert torch.equal(value[kept], before[name][kept])
    assert not any(torch.signbit(weight[weight == 0]).any() for weight in weights(sparse).values())
    assert not [module for module in sparse.modules() if module._forward_pre_hooks]


def test_wanda_compares_within_a_row_by_default(make_model, make_batch):
    model, batches = make_model(), [make_batch()]
    for zero in zeros(sparsify(model, batches, fraction=0.5, criterion="wanda")).values():
        assert zero.sum(1).tolist() == [zero.shape[1] // 2] * zero.shape[0]
    globally = zeros(sparsify(model, batches, fraction=0.5, criterion="wanda", scope="global"))
    assert len({int(zero.sum()) / zero.numel() for zero in globally.values()}) > 1


@pytest.mark.parametrize(
    ("criterion", "n", "m"),
    [
        (criterion, *pattern)
        for criterion, pattern in zip(
            CONNECTION_CRITERIA, itertools.cycle([(2, 4), (1, 4), (3, 8), (7, 16)]), strict=False
        )
    ],
)
def test_pattern_holds_in_every_group(make_model, make_batch, criterion, n, m):
    model, batch = make_model(), make_batch(labelled=True)
    sparse = sparsify(model, [batch], n_m=f"{n}:{m}", criterion=criterion)
    scores = CONNECTION_CRITERIA[criterion](model, [batch])
    for name, weight in weights(sparse).items():
        kept = (weight != 0).view(weight.shape[0], -1, m)
        assert (kept.sum(-1) == n).all()
        best = scores[name].view_as(kept).masked_fill(~kept, torch.inf).amin(-1)
        assert (best >= scores[name].view_as(kept).masked_fill(kept, -torch.inf).amax(-1)).all()


@pytest.mark.parametrize(
    ("criterion", "again"),
    [
        ("random", {"fraction": 0.75}),
        ("random", {"n_m": "1:4"}),
        ("random", {"fraction": 0.75, "scope": "row"}),
        ("movement", {"fraction": 0.75}),
        ("movement", {"n_m": "1:4"}),
    ],
)
def test_zeros_stay_zero_and_count_as_removed(make_model, make_batch, again, criterion):
    first = sparsify(make_model(), n_m="2:4")
    second = sparsify(first, [make_batch(labelled=True)], criterion=criterion, **again)
    assert (count_zeros(first), count_zeros(second)) == (CONNECTIONS // 2, 3 * CONNECTIONS // 4)
    before, after = zeros(first), zeros(second)
    assert all(after[name][zero].all() for name, zero in before.items())


@pytest.mark.parametrize("scope", ["global", "layer", "row"])
def test_smaller_fraction_than_removed_already_changes_nothing(make_model, assert_same_weights, scope):
    first = sparsify(make_model(), n_m="1:4")
    assert_same_weights(sparsify(first, fraction=0.5, scope=scope, criterion="random"), first)
    assert_same_weights(sparsify(make_model(), fraction=0.0, scope=scope), make_model())


def test_zero_fraction(make_model):
    assert zero_fraction(make_model()) == 0
    assert zero_fraction(sparsify(make_model(), fraction=0.25)) == 0.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_model_is_saved_and_loaded_as_the_same_stock_class(
    make_model, make_batch, outputs, assert_same, assert_same_weights, tmp_path, dtype
):
    sparse = sparsify(make_model().to(dtype), fraction=0.5)
    sparse.save_pretrained(tmp_path)
    loaded = BertForSequenceClassification.from_pretrained(tmp_path, dtype=dtype)
    assert type(sparse) is BertForSequenceClassification
    assert loaded.config.model_type == "bert"
    assert_same_weights(loaded, sparse)
    assert_same(outputs(loaded, make_batch()), outputs(sparse, make_batch()), atol=0)


def test_removing_in_place_keeps_the_parameters(make_model):
    model = make_model()
    before = list(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    remove_connections(model, magnitude(model), fraction=0.5)
    assert all(old is new for old, new in zip(before, model.parameters(), strict=True))
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    assert count_zeros(model) == 0  # the optimizer trains the weights that were removed


def test_pattern_that_does_not_divide_a_row_names_the_matrix(make_model):
    model = make_model(hidden_size=30, num_attention_heads=3)
    message = (
        "n_m='2:4' requires rows that 4 divides, but bert.encoder.layer.0.attention.self.query.weight has 30 inputs"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        sparsify(
            model, n_m="2:4", criterion="taylor"
        )  # checked before scoring, which would refuse the missing batches


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "fraction=None and n_m=None: give one of them"),
        ({"fraction": 0.5, "n_m": "2:4"}, "fraction=0.5 and n_m='2:4': give one of them"),
        ({"fraction": 1.0}, "fraction=1.0 is not a fraction to remove: give a number in [0, 1)"),
        ({"fraction": -0.1}, "fraction=-0.1 is not a fraction to remove"),
        ({"fraction": 0.5, "scope": "block"}, "scope='block' is unknown: give one of global, layer, row"),
        ({"n_m": "2:4", "scope": "row"}, "scope='row' has no effect with n_m='2:4'"),
        ({"fraction": 0.5, "criterion": "best"}, "criterion='best' is unknown: give one of fisher, magnitude"),
    ],
)
def test_invalid_arguments_are_refused(make_model, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sparsify(make_model(), **arguments)


def test_criterion_of_a_user_can_be_registered(make_model, monkeypatch):
    def score_by_column(model, batches, loss):
        return {name: torch.arange(w.numel()).view(w.T.shape).T.float() for name, w in weights(model).items()}

    monkeypatch.setitem(CONNECTION_CRITERIA, "columns", score_by_column)
    for zero in zeros(sparsify(make_model(), fraction=0.25, criterion="columns", scope="layer")).values():
        assert zero[:, : zero.shape[1] // 4].all()
        assert int(zero.sum()) == zero.numel() // 4


def test_scores_that_do_not_fit_are_refused(make_model, monkeypatch):
    name = "bert.encoder.layer.0.attention.self.query.weight"
    for wrong, message in (
        ({}, f"the scores have nothing for {name}: give a tensor (32, 32)"),
        ({name: torch.ones(32)}, f"the scores have a tensor (32,) for {name}: give a tensor (32, 32)"),
        ({name: torch.full((32, 32), torch.nan)}, f"the scores of {name} are not finite"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            remove_connections(make_model(), wrong, fraction=0.5)


class ZeroCounter(TrainerCallback):
    """Counts the zeros of the model after every step."""

    def __init__(self):
        self.counts = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.counts.append(count_zeros(model))


@pytest.fixture
def train(make_batch, tmp_path):
    """Trains a model with a learning rate that changes every weight, and returns the zeros after every step."""

    def run(model, *callbacks, resume=None, **arguments):
        batch = make_batch(labelled=True)
        data = [{name: value[i % 3] for name, value in batch.items()} for i in range(8)]
        counter = ZeroCounter()
        args = TrainingArguments(
            tmp_path, per_device_train_batch_size=2, max_steps=4, learning_rate=0.05, weight_decay=0.1, use_cpu=True,
            report_to="none", disable_tqdm=True, save_steps=2, **arguments,
        )  # fmt: skip
        trainer = Trainer(model, args, train_dataset=data, callbacks=[*callbacks, counter])
        trainer.train(resume_from_checkpoint=resume)
        return counter.counts

    return run


@pytest.mark.parametrize("arguments", [{}, {"gradient_accumulation_steps": 2, "bf16": True}], ids=str)
def test_zeros_are_kept_during_training(make_model, train, arguments):
    model = sparsify(make_model(), n_m="2:4")
    before, zero = weights(copy.deepcopy(model)), zeros(model)
    callback = KeepZerosCallback()
    assert train(model, callback, **arguments) == [CONNECTIONS // 2] * 4
    assert callback._zeros == []  # the model is released
    for name, weight in weights(model).items():
        assert torch.equal(weight == 0, zero[name])
        assert (weight != before[name])[~zero[name]].float().mean() > 0.99


def test_zeros_are_not_kept_without_the_callback(make_model, train):
    assert max(train(sparsify(make_model(), n_m="2:4"))) < CONNECTIONS // 10


def test_resumed_training_keeps_the_zeros_of_the_checkpoint(make_model, train, tmp_path):
    model = sparsify(make_model(), fraction=0.3)
    train(model, KeepZerosCallback())
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert zero_fraction(loaded) == pytest.approx(0.3, abs=1e-4)
    dense, removed = make_model(seed=5), zeros(loaded)
    counts = train(dense, KeepZerosCallback(), resume=str(tmp_path / "checkpoint-2"))
    assert counts == [round(0.3 * CONNECTIONS)] * 2
    assert all(torch.equal(zero, removed[name]) for name, zero in zeros(dense).items())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in dense.state_dict().items())


def test_wrapped_model_is_unwrapped_and_zeros_can_be_recorded_again(make_model):
    model, callback = make_model(), KeepZerosCallback()
    for fraction in (0.25, 0.5):
        remove_connections(model, magnitude(model), fraction=fraction)
        callback.record_zeros(DataParallel(model))
        with torch.no_grad():
            for parameter in model.parameters():
                nn.init.ones_(parameter)
        callback.restore_zeros()
        assert zero_fraction(model) == fraction
