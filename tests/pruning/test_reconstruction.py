import copy

import pytest
import torch
from heads import REPRESENTATIVE_HEADS
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


def select_all(model, without=None):
    """Returns the selection of all layers and units except those at the positions `without` of their blocks."""
    return Selection(
        tuple(family_of(model).layers(model)),
        {
            name: tuple(unit for unit in range(block.units) if unit not in (without or {}).get(name, ()))
            for name, block in family_of(model).blocks(model).items()
        },
    )


def streams(model, batch, name):
    """Returns the residual stream after a block at all tokens that are no padding, (tokens, size)."""
    block, captured = family_of(model).blocks(model)[name], []
    if block.norm is not None:
        handle = block.norm.register_forward_pre_hook(lambda module, args: captured.append(args[0]))
    else:
        handle = block.owner.register_forward_hook(
            lambda module, args, output: captured.append(output[0] if isinstance(output, tuple) else output)
        )
    with torch.no_grad():
        model(**batch)
    handle.remove()
    mask = batch["labels"] != -100 if name.startswith("decoder") else batch["attention_mask"] != 0
    return captured[0][mask].float()


def error(student, teacher, batch, name, source):
    return float((streams(student, batch, name) - streams(teacher, batch, source)).square().mean())


def teacher_names(student, selection):
    """Returns, by the name of each block of the student, its name in the teacher."""
    names, before = {}, {}
    for source in selection.layers:
        stack = source.partition(".")[0]
        layer = f"{stack}.{before.get(stack, 0)}"
        before[stack] = before.get(stack, 0) + 1
        names |= {
            name: name.replace(layer, source, 1) for name in family_of(student).blocks(student) if layer in name[:9]
        }
    return names


def logits_of(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def parameters_that_differ(model, other):
    first, second = dict(model.named_parameters()), dict(other.named_parameters())
    assert first.keys() == second.keys()
    return {name for name, value in first.items() if not torch.equal(value, second[name])}


# ---- what is corrected ----


@pytest.mark.parametrize("head", HEADS[::2])
def test_unpruned_network_does_not_change(make_model, make_data, head):
    model = make_model(head)
    student = remove_units(model, select_all(model))
    reconstruct_outputs(student, model, select_all(model), [make_data(head, 1)])
    assert parameters_that_differ(student, model) == set()


def test_blocks_before_the_first_pruned_one_do_not_change(make_model, make_data):
    head = "T5ForConditionalGeneration"
    model = make_model(head)
    selection = select_all(model, {"decoder.1.attention": [0]})
    student = remove_units(model, selection)
    plain = copy.deepcopy(student)
    reconstruct_outputs(student, model, selection, [make_data(head, 4)])
    assert parameters_that_differ(student, plain) == {
        f"decoder.block.{layer}.layer.{index}.{name}.weight"
        for layer in (1, 2)
        for index, name in enumerate(("SelfAttention.o", "EncDecAttention.o", "DenseReluDense.wo"))
    }


def test_removing_the_last_layer_changes_nothing_else(make_model, make_data, select):
    model = make_model()
    selection = Selection(("encoder.0", "encoder.1"), select_all(model).units)
    student = remove_units(model, selection)
    plain = copy.deepcopy(student)
    reconstruct_outputs(student, model, selection, [make_data("BertForSequenceClassification", 1)])
    assert parameters_that_differ(student, plain) == set()


@torch.no_grad()
def make_units_redundant(model):
    """Makes the last head of every attention, and the last 24 neurons, copies of others, and selects the others."""
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
    return select_all(model, copies)


@pytest.mark.parametrize("head", HEADS)
def test_removal_of_redundant_units_is_corrected(make_model, make_data, head):
    model = make_model(head)
    selection = make_units_redundant(model)
    batch, fresh = make_data(head), make_data(head, 5, seed=1)
    student = remove_units(model, selection)
    expected = logits_of(model, fresh)
    before = (logits_of(student, fresh) - expected).abs().max() / expected.std()
    reconstruct_outputs(student, model, selection, [batch], damping=1e-6)
    after = (logits_of(student, fresh) - expected).abs().max() / expected.std()
    assert before > 0.3
    assert after < 5e-3


# ---- properties of the least squares fit ----


@pytest.mark.parametrize(
    ("head", "shape"),
    [*zip(HEADS, ["uneven widths", "all of these", "a block without heads", "a layer gone"], strict=True)],
)
def test_every_fit_brings_its_block_closer_to_the_teacher(make_model, make_data, select, head, shape):
    model, selection, batch = make_model(head), select(shape, head), make_data(head, 4)
    student = remove_units(model, selection)
    plain = family_of(student).blocks(copy.deepcopy(student))
    reconstruct_outputs(student, model, selection, [batch])
    gains = []
    for name, source in teacher_names(student, selection).items():
        fitted = error(student, model, batch, name, source)
        undone = copy.deepcopy(student)
        output = family_of(undone).blocks(undone)[name].output
        with torch.no_grad():
            for parameter, initial in zip(output.parameters(), plain[name].output.parameters(), strict=True):
                parameter.copy_(initial)
        unfitted = error(undone, model, batch, name, source)
        assert fitted <= unfitted * (1 + 1e-5) + 2e-9
        gains.append(1 - fitted / unfitted if unfitted else 0.0)
    assert max(gains) > 0.3


@pytest.mark.parametrize(("head", "shape"), [(HEADS[1], "a layer gone"), (HEADS[3], "uneven widths")])
def test_last_hidden_states_come_closer_to_the_teacher(make_model, make_data, select, head, shape):
    model, selection, batch = make_model(head), select(shape, head), make_data(head, 16)
    student = remove_units(model, selection)
    plain = copy.deepcopy(student)
    reconstruct_outputs(student, model, selection, [batch])
    name, source = list(teacher_names(student, selection).items())[-1]
    assert error(student, model, batch, name, source) < 0.6 * error(plain, model, batch, name, source)


@pytest.mark.parametrize(("head", "block"), [(HEADS[0], "encoder.0.attention"), (HEADS[2], "encoder.0.feed_forward")])
def test_fit_is_the_damped_least_squares_solution(make_model, make_data, head, block):
    model, batch = make_model(head), make_data(head, 20)
    selection = select_all(model, {block: [0, 2]})
    student = remove_units(model, selection)
    plain, captured = copy.deepcopy(student), []
    output = family_of(plain).blocks(plain)[block].output
    output.register_forward_hook(lambda module, args, projected: captured.extend((args[0], projected)))
    stream = streams(plain, batch, block).double()
    inputs, projected = (values[batch["attention_mask"].bool()].double() for values in captured)
    target = streams(model, batch, block).double() - stream + projected
    initial = output.weight.detach().double().T
    if output.bias is not None:
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
        initial = torch.cat([initial, output.bias.detach().double()[None]])
    strength = DAMPING * inputs.square().sum(0).mean()
    stacked = torch.cat([inputs, strength.sqrt() * torch.eye(inputs.shape[1], dtype=torch.float64)])
    expected = torch.linalg.lstsq(stacked, torch.cat([target, strength.sqrt() * initial])).solution
    reconstruct_outputs(student, model, selection, [batch])
    fitted = family_of(student).blocks(student)[block].output
    torch.testing.assert_close(fitted.weight.T.double(), expected[: fitted.in_features], rtol=1e-3, atol=1e-4)
    if fitted.bias is not None:
        torch.testing.assert_close(fitted.bias.double(), expected[-1], rtol=1e-3, atol=1e-4)
    assert (fitted.weight - output.weight).abs().max() > 0.05


def test_stronger_damping_changes_the_weights_less(make_model, make_data, select):
    model, batch = make_model(), make_data("BertForSequenceClassification", 8)
    selection, changes = select("uneven widths"), []
    for damping in (1e-6, 1e-2, 1.0, 1e9):
        student = remove_units(model, selection)
        plain = copy.deepcopy(student)
        reconstruct_outputs(student, model, selection, [batch], damping)
        pairs = zip(student.parameters(), plain.parameters(), strict=True)
        changes.append(sum((fitted - initial).norm().item() for fitted, initial in pairs))
    assert changes == sorted(changes, reverse=True)
    assert changes[0] > 1
    assert changes[-1] < 1e-3


def test_only_output_projections_are_fitted(make_model, make_data, select):
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


# ---- the data ----


@pytest.mark.parametrize("head", HEADS[::2])
def test_padding_makes_no_difference(make_model, make_data, select, head):
    model, selection, batch = make_model(head), select("uneven widths", head), make_data(head, 6)
    padded = {}
    for name, value in batch.items():
        filler = -100 if name == "labels" else model.config.pad_token_id if name == "input_ids" else 0
        padded[name] = nn.functional.pad(value, (0, 4), value=filler) if value.dim() == 2 else value
    students = []
    for data in (batch, padded):
        student = remove_units(model, selection)
        reconstruct_outputs(student, model, selection, [data])
        students.append(student)
    for first, second in zip(*(student.parameters() for student in students), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)
    for scrambled in (batch, padded):
        assert not torch.allclose(
            logits_of(students[0], scrambled), logits_of(remove_units(model, selection), scrambled), atol=0.1
        )


def test_batch_size_makes_no_difference(make_model, make_data, select):
    model, selection = make_model(), select("uneven widths")
    batch = make_data("BertForSequenceClassification", 6)
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 5), slice(5, 6), slice(6, 18))]
    students = [remove_units(model, selection) for _ in range(2)]
    reconstruct_outputs(students[0], model, selection, [batch])
    reconstruct_outputs(students[1], model, selection, parts)
    for first, second in zip(*(student.parameters() for student in students), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("head", HEADS[:2])
def test_labels_are_not_used(make_model, make_data, select, head):
    model, selection, batch = make_model(head), select("uneven widths", head), make_data(head, 2)
    students = []
    for labels in ({"labels": batch["labels"]}, {"labels": (batch["labels"] + 1) % 3}, {}):
        student = remove_units(model, selection)
        reconstruct_outputs(
            student, model, selection, [{**{n: v for n, v in batch.items() if n != "labels"}, **labels}]
        )
        students.append(student)
    assert parameters_that_differ(students[0], students[1]) == set()
    assert parameters_that_differ(students[0], students[2]) == set()


@pytest.mark.parametrize("head", REPRESENTATIVE_HEADS)
def test_every_head_is_reconstructed_without_labels(make_model, make_batch, select, head):
    model, selection, batch = make_model(head), select("uneven widths", head), make_batch(head)
    student = remove_units(model, selection)
    plain = copy.deepcopy(student)
    reconstruct_outputs(student, model, selection, [batch])
    assert len(parameters_that_differ(student, plain)) >= 6
    assert all(parameter.isfinite().all() for parameter in student.parameters())


def test_missing_data_is_refused(make_model, select):
    model, selection = make_model(), select("uneven widths")
    with pytest.raises(ValueError, match="the dataloader is empty: at least one batch is required"):
        reconstruct_outputs(remove_units(model, selection), model, selection, [])


# ---- robustness ----


@pytest.mark.parametrize("head", HEADS[1::2])
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
def test_constant_and_identical_units_do_no_harm(make_model, make_data, select):
    model, selection = make_model(), select("uneven widths")
    for name, block in family_of(model).blocks(model).items():
        if name.endswith("feed_forward"):
            (linear,) = block.input_linears
            linear.weight[:6] = 0  # these neurons are constant
            linear.weight[6:20], linear.bias[6:20] = linear.weight[6:7], linear.bias[6:7]
    batch = make_data("BertForSequenceClassification", 8)
    student = remove_units(model, selection)
    plain = copy.deepcopy(student)
    reconstruct_outputs(student, model, selection, [batch], damping=1e-5)
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    last = "encoder.2.feed_forward"
    assert error(student, model, batch, last, last) < error(plain, model, batch, last, last)


@pytest.mark.parametrize("head", HEADS[::2])
def test_half_precision_is_fitted_as_accurately(make_model, make_data, select, head):
    model, selection, batch = make_model(head), select("uneven widths", head), make_data(head, 16)
    errors = []
    for dtype in (torch.float32, torch.bfloat16):
        teacher = copy.deepcopy(model).to(dtype)
        student = remove_units(teacher, selection)
        plain = copy.deepcopy(student)
        reconstruct_outputs(student, teacher, selection, [batch])
        assert {parameter.dtype for parameter in student.parameters()} == {dtype}
        name = list(teacher_names(student, selection))[-1]
        errors.append(error(student, teacher, batch, name, name) / error(plain, teacher, batch, name, name))
    assert errors[1] < 0.7
    assert errors[1] == pytest.approx(errors[0], abs=0.1)


@pytest.mark.parametrize("training", [True, False])
def test_hooks_gradients_and_mode_are_restored(make_model, make_data, select, training):
    model, selection = make_model(hidden_dropout_prob=0.5).train(training), select("uneven widths")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    students = []
    for _ in range(2):
        student = remove_units(model, selection)
        reconstruct_outputs(student, model, selection, [make_data("BertForSequenceClassification", 1)])
        students.append(student)
    assert parameters_that_differ(*students) == set()
    assert student.training is model.training is training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for network in (student, model):
        assert not [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks]
        assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_hooks_are_removed_after_an_error(make_model, make_data, select):
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
