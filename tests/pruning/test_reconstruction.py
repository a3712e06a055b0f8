import copy

import pytest
import torch
from torch import nn

from hf_efficient.models import family_of
from hf_efficient.models.blocks import AttentionBlock
from hf_efficient.pruning.reconstruction import DAMPING, reconstruct_outputs
from hf_efficient.pruning.selection import Selection, remove_units

HEADS = [
    "BertForSequenceClassification",
    "DistilBertForSequenceClassification",
    "T5ForConditionalGeneration",
    "MT5ForConditionalGeneration",
]
TARGETS = ("labels", "decoder_input_ids")


@pytest.fixture
def make_data(make_batch):
    """Returns one batch of 3 * `count` padded examples."""

    def make(head, count=40, seed=0):
        batches = [make_batch(head, labelled=True, seed=1000 * seed + index) for index in range(count)]
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}

    return make


def everything(model, without=None):
    """Returns the selection of all layers and units but those at the positions `without` of their blocks."""
    return Selection(
        tuple(family_of(model).layers(model)),
        {
            name: tuple(unit for unit in range(block.units) if unit not in (without or {}).get(name, ()))
            for name, block in family_of(model).blocks(model).items()
        },
    )


def streams(model, batch, name):
    """Returns the residual stream after a block at all tokens that are no padding, (tokens, size)."""
    block, seen = family_of(model).blocks(model)[name], []
    if block.norm is not None:
        handle = block.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    else:
        handle = block.owner.register_forward_hook(
            lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
    with torch.no_grad():
        model(**batch)
    handle.remove()
    mask = batch["labels"] != -100 if name.startswith("decoder") else batch["attention_mask"] != 0
    return seen[0][mask].float()


def error(student, teacher, batch, name, source):
    return float((streams(student, batch, name) - streams(teacher, batch, source)).square().mean())


def pairs_of(student, selection):
    """Returns, by the name of each block of the student, the name that it had in the teacher."""
    names, before = {}, {}
    for source in selection.layers:
        stack = source.partition(".")[0]
        layer = f"{stack}.{before.get(stack, 0)}"
        before[stack] = before.get(stack, 0) + 1
        names |= {
            name: name.replace(layer, source, 1) for name in family_of(student).blocks(student) if layer in name[:9]
        }
    return names


def answer(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def parameters_that_differ(model, other):
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    return {name for name, value in ours.items() if not torch.equal(value, theirs[name])}


# ---- what is there to be recovered ----


@pytest.mark.parametrize("head", HEADS)
def test_network_that_lost_nothing_stays_as_it_is(make_model, make_data, head):
    model = make_model(head)
    student = remove_units(model, everything(model))
    reconstruct_outputs(student, model, everything(model), [make_data(head, 1)])
    assert parameters_that_differ(student, model) == set()


def test_what_comes_before_the_first_loss_stays_as_it_is(make_model, make_data):
    head = "T5ForConditionalGeneration"
    model = make_model(head)
    selection = everything(model, {"decoder.1.attention": [0]})
    student = remove_units(model, selection)
    whole = copy.deepcopy(student)
    reconstruct_outputs(student, model, selection, [make_data(head, 4)])
    assert parameters_that_differ(student, whole) == {
        f"decoder.block.{layer}.layer.{index}.{name}.weight"
        for layer in (1, 2)
        for index, name in enumerate(("SelfAttention.o", "EncDecAttention.o", "DenseReluDense.wo"))
    }


def test_last_layer_gone_leaves_nothing_to_fit(make_model, make_data, select):
    model = make_model()
    selection = Selection(("encoder.0", "encoder.1"), everything(model).units)
    student = remove_units(model, selection)
    whole = copy.deepcopy(student)
    reconstruct_outputs(student, model, selection, [make_data("BertForSequenceClassification", 1)])
    assert parameters_that_differ(student, whole) == set()


@torch.no_grad()
def with_copies(model):
    """Makes the last head of every attention, and the last 24 neurons, compute what others do; returns the rest."""
    copies = {}
    for name, block in family_of(model).blocks(model).items():
        is_heads = isinstance(block, AttentionBlock)
        pairs = [(3, 1)] if is_heads else [(40 + unit, unit) for unit in range(24)]
        for target, source in pairs:
            for linear in block.input_linears:
                linear.weight[block.rows([target])] = linear.weight[block.rows([source])]
                if linear.bias is not None:
                    linear.bias[block.rows([target])] = linear.bias[block.rows([source])]
        copies[name] = {target for target, _ in pairs}
    for module in model.modules():
        table = getattr(module, "relative_attention_bias", None)
        if isinstance(table, nn.Embedding):
            table.weight[:, 3] = table.weight[:, 1]
    return everything(model, copies)


@pytest.mark.parametrize("head", HEADS)
def test_units_that_copy_others_are_made_up_for(make_model, make_data, head):
    model = make_model(head)
    selection = with_copies(model)
    batch, fresh = make_data(head), make_data(head, 5, seed=1)
    student = remove_units(model, selection)
    whole = answer(model, fresh)
    before = (answer(student, fresh) - whole).abs().max() / whole.std()
    reconstruct_outputs(student, model, selection, [batch], damping=1e-6)
    after = (answer(student, fresh) - whole).abs().max() / whole.std()
    assert before > 0.3
    assert after < 5e-3


# ---- what least squares promises ----


@pytest.mark.parametrize("shape", ["uneven widths", "all of these", "a block without heads", "a layer gone"])
@pytest.mark.parametrize("head", HEADS)
def test_no_block_is_further_from_the_teacher_than_without_its_fit(make_model, make_data, select, head, shape):
    model, selection, batch = make_model(head), select(shape, head), make_data(head, 8)
    student = remove_units(model, selection)
    plain = family_of(student).blocks(copy.deepcopy(student))
    reconstruct_outputs(student, model, selection, [batch])
    gains = []
    for name, source in pairs_of(student, selection).items():
        fitted = error(student, model, batch, name, source)
        undone = copy.deepcopy(student)
        output = family_of(undone).blocks(undone)[name].output
        with torch.no_grad():
            for parameter, start in zip(output.parameters(), plain[name].output.parameters(), strict=True):
                parameter.copy_(start)
        unfitted = error(undone, model, batch, name, source)
        assert fitted <= unfitted * (1 + 1e-5) + 1e-9 + 1e-9
        gains.append(1 - fitted / unfitted if unfitted else 0.0)
    assert max(gains) > 0.3


@pytest.mark.parametrize("shape", ["uneven widths", "a layer gone"])
@pytest.mark.parametrize("head", HEADS)
def test_the_last_hidden_states_come_closer(make_model, make_data, select, head, shape):
    model, selection, batch = make_model(head), select(shape, head), make_data(head, 16)
    student = remove_units(model, selection)
    plain = copy.deepcopy(student)
    reconstruct_outputs(student, model, selection, [batch])
    name, source = list(pairs_of(student, selection).items())[-1]
    assert error(student, model, batch, name, source) < 0.6 * error(plain, model, batch, name, source)


@pytest.mark.parametrize(("head", "block"), [(HEADS[0], "encoder.0.attention"), (HEADS[2], "encoder.0.feed_forward")])
def test_fit_is_the_damped_least_squares_solution(make_model, make_data, head, block):
    model, batch = make_model(head), make_data(head, 20)
    selection = everything(model, {block: [0, 2]})
    student = remove_units(model, selection)
    plain, seen = copy.deepcopy(student), []
    output = family_of(plain).blocks(plain)[block].output
    output.register_forward_hook(lambda module, args, written: seen.extend((args[0], written)))
    now = streams(plain, batch, block).double()
    read, written = (values[batch["attention_mask"].bool()].double() for values in seen)
    aim = streams(model, batch, block).double() - now + written
    start = output.weight.detach().double().T
    if output.bias is not None:
        read = torch.cat([read, torch.ones_like(read[:, :1])], dim=1)
        start = torch.cat([start, output.bias.detach().double()[None]])
    strength = DAMPING * read.square().sum(0).mean()
    stacked = torch.cat([read, strength.sqrt() * torch.eye(read.shape[1], dtype=torch.float64)])
    expected = torch.linalg.lstsq(stacked, torch.cat([aim, strength.sqrt() * start])).solution
    reconstruct_outputs(student, model, selection, [batch])
    fitted = family_of(student).blocks(student)[block].output
    torch.testing.assert_close(fitted.weight.T.double(), expected[: fitted.in_features], rtol=1e-3, atol=1e-4)
    if fitted.bias is not None:
        torch.testing.assert_close(fitted.bias.double(), expected[-1], rtol=1e-3, atol=1e-4)
    assert (fitted.weight - output.weight).abs().max() > 0.05


def test_damping_holds_the_fit_to_what_is_there(make_model, make_data, select):
    model, batch = make_model(), make_data("BertForSequenceClassification", 8)
    selection, moved = select("uneven widths"), []
    for damping in (1e-6, 1e-2, 1.0, 1e9):
        student = remove_units(model, selection)
        plain = copy.deepcopy(student)
        reconstruct_outputs(student, model, selection, [batch], damping)
        pairs = zip(student.parameters(), plain.parameters(), strict=True)
        moved.append(sum(float((ours - theirs).norm()) for ours, theirs in pairs))
    assert moved == sorted(moved, reverse=True)
    assert moved[0] > 1
    assert moved[-1] < 1e-3


def test_only_what_blocks_write_is_fitted(make_model, make_data, select):
    model, selection = make_model(), select("all of these")
    student = remove_units(model, selection)
    plain = copy.deepcopy(student)
    reconstruct_outputs(student, model, selection, [make_data("BertForSequenceClassification", 4)])
    layers = "bert.encoder.layer"
    assert parameters_that_differ(student, plain) == {
        f"{layers}.0.attention.output.dense.bias",
        f"{layers}.0.output.dense.bias",
        *(
            f"{layers}.1.{module}.dense.{kind}"
            for module in ("attention.output", "output")
            for kind in ("weight", "bias")
        ),
    }


# ---- what it reads ----


@pytest.mark.parametrize("head", HEADS)
def test_padding_is_not_seen(make_model, make_data, select, head):
    model, selection, batch = make_model(head), select("uneven widths", head), make_data(head, 6)
    padded = {}
    for name, value in batch.items():
        filler = -100 if name == "labels" else model.config.pad_token_id if name == "input_ids" else 0
        padded[name] = nn.functional.pad(value, (0, 4), value=filler) if value.dim() == 2 else value
    found = []
    for data in (batch, padded):
        student = remove_units(model, selection)
        reconstruct_outputs(student, model, selection, [data])
        found.append(student)
    for ours, theirs in zip(*(student.parameters() for student in found), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    for scrambled in (batch, padded):
        assert not torch.allclose(
            answer(found[0], scrambled), answer(remove_units(model, selection), scrambled), atol=0.1
        )


def test_size_of_batches_does_not_matter(make_model, make_data, select):
    model, selection = make_model(), select("uneven widths")
    batch = make_data("BertForSequenceClassification", 6)
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 5), slice(5, 6), slice(6, 18))]
    found = [remove_units(model, selection) for _ in range(2)]
    reconstruct_outputs(found[0], model, selection, [batch])
    reconstruct_outputs(found[1], model, selection, parts)
    for ours, theirs in zip(*(student.parameters() for student in found), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("head", HEADS[:2])
def test_labels_are_not_used(make_model, make_data, select, head):
    model, selection, batch = make_model(head), select("uneven widths", head), make_data(head, 2)
    found = []
    for labels in ({"labels": batch["labels"]}, {"labels": (batch["labels"] + 1) % 3}, {}):
        student = remove_units(model, selection)
        reconstruct_outputs(
            student, model, selection, [{**{n: v for n, v in batch.items() if n != "labels"}, **labels}]
        )
        found.append(student)
    assert parameters_that_differ(found[0], found[1]) == set()
    assert parameters_that_differ(found[0], found[2]) == set()


def test_every_head_is_corrected_without_labels(make_model, make_batch, select, any_head):
    model, selection, batch = make_model(any_head), select("uneven widths", any_head), make_batch(any_head)
    student = remove_units(model, selection)
    plain = copy.deepcopy(student)
    reconstruct_outputs(student, model, selection, [batch])
    assert len(parameters_that_differ(student, plain)) >= 6
    assert all(parameter.isfinite().all() for parameter in student.parameters())


def test_without_data_nothing_can_be_fitted(make_model, select):
    model, selection = make_model(), select("uneven widths")
    with pytest.raises(ValueError, match="the dataloader is empty: at least one batch is required"):
        reconstruct_outputs(remove_units(model, selection), model, selection, [])


# ---- what must not break it ----


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_units_that_are_always_zero_keep_their_weights(make_model, make_data, select, head):
    model, selection = make_model(head), select("uneven widths", head)
    for block in family_of(model).blocks(model).values():
        for linear in block.input_linears:
            linear.weight.zero_()
            if linear.bias is not None:
                linear.bias.zero_()
    student = remove_units(model, selection)
    plain = copy.deepcopy(student)
    reconstruct_outputs(student, model, selection, [make_data(head, 2)])
    for name, block in family_of(student).blocks(student).items():
        assert torch.equal(block.output.weight, family_of(plain).blocks(plain)[name].output.weight)
    assert all(parameter.isfinite().all() for parameter in student.parameters())


@torch.no_grad()
def test_units_that_never_change_and_units_that_are_alike_do_no_harm(make_model, make_data, select):
    model, selection = make_model(), select("uneven widths")
    for name, block in family_of(model).blocks(model).items():
        if name.endswith("feed_forward"):
            (linear,) = block.input_linears
            linear.weight[:6] = 0  # these neurons say the same of every token
            linear.weight[6:20], linear.bias[6:20] = linear.weight[6:7], linear.bias[6:7]
    batch = make_data("BertForSequenceClassification", 8)
    student = remove_units(model, selection)
    plain = copy.deepcopy(student)
    reconstruct_outputs(student, model, selection, [batch], damping=1e-5)
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    last = "encoder.2.feed_forward"
    assert error(student, model, batch, last, last) < error(plain, model, batch, last, last)


@pytest.mark.parametrize("head", HEADS)
def test_half_precision_is_fitted_as_well(make_model, make_data, select, head):
    model, selection, batch = make_model(head), select("uneven widths", head), make_data(head, 16)
    errors = []
    for dtype in (torch.float32, torch.bfloat16):
        teacher = copy.deepcopy(model).to(dtype)
        student = remove_units(teacher, selection)
        plain = copy.deepcopy(student)
        reconstruct_outputs(student, teacher, selection, [batch])
        assert {parameter.dtype for parameter in student.parameters()} == {dtype}
        name = list(pairs_of(student, selection))[-1]
        errors.append(error(student, teacher, batch, name, name) / error(plain, teacher, batch, name, name))
    assert errors[1] < 0.7
    assert errors[1] == pytest.approx(errors[0], abs=0.1)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_left_behind(make_model, make_data, select, training):
    model, selection = make_model(hidden_dropout_prob=0.5).train(training), select("uneven widths")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = []
    for _ in range(2):
        student = remove_units(model, selection)
        reconstruct_outputs(student, model, selection, [make_data("BertForSequenceClassification", 1)])
        found.append(student)
    assert parameters_that_differ(*found) == set()
    assert student.training is model.training is training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for network in (student, model):
        assert not [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks]
        assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_hooks_go_when_a_batch_is_bad(make_model, make_data, select):
    model, selection = make_model(), select("uneven widths")
    student, good = remove_units(model, selection), make_data("BertForSequenceClassification", 1)
    calls = []

    def fail(module, args, kwargs):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("no more memory")

    handle = student.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(RuntimeError, match="no more memory"):
        reconstruct_outputs(student, model, selection, [good])
    handle.remove()
    for network in (student, model):
        assert not [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks]
