import math

import pytest
import torch

from hf_efficient.distillation.losses import (
    attention_loss,
    cosine_distance,
    independent_soft_label_loss,
    relation_loss,
    soft_label_loss,
    squared_error,
)


def logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
def test_soft_label_loss_of_an_equal_student_is_zero(temperature):
    same = 5 * logits(4, 7, 3)
    loss, count = soft_label_loss(same, same.clone(), temperature)
    assert float(loss) == 0
    assert int(count) == 28
    # A constant added to all logits of a position changes no probability.
    shifted, _ = soft_label_loss(same + 3, same, temperature)
    assert float(shifted) == pytest.approx(0, abs=1e-4)


def test_soft_label_loss_is_the_divergence():
    student = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])  # (1/2, 1/2), (1/4, 3/4)
    teacher = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])  # (3/4, 1/4), (1/2, 1/2)
    first = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    second = 1 / 2 * math.log(2) + 1 / 2 * math.log(2 / 3)
    loss, count = soft_label_loss(student, teacher, temperature=1.0)
    assert float(loss) == pytest.approx(first + second)
    assert int(count) == 2


def test_soft_label_loss_is_multiplied_by_the_squared_temperature():
    student, teacher = torch.tensor([0.0, 0.0]), torch.tensor([2 * math.log(3), 0.0])
    loss, _ = soft_label_loss(student, teacher, temperature=2.0)  # softened: (1/2, 1/2) and (3/4, 1/4)
    assert float(loss) == pytest.approx(4 * (3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)))


@pytest.mark.parametrize("temperature", [2.0, 10.0])
def test_soft_label_loss_of_logits_scaled_by_the_temperature_grows_with_its_square(temperature):
    student, teacher = logits(5, 3), logits(5, 3, seed=1)
    loss, _ = soft_label_loss(student, teacher, 1.0)
    scaled, _ = soft_label_loss(temperature * student, temperature * teacher, temperature)
    assert float(scaled) == pytest.approx(temperature**2 * float(loss), rel=1e-5)


def test_gradient_is_the_difference_of_probabilities_times_the_temperature():
    student, teacher = logits(5, 3).requires_grad_(), logits(5, 3, seed=1)
    soft_label_loss(student, teacher, 4.0)[0].backward()
    expected = 4.0 * ((student.detach() / 4).softmax(-1) - (teacher / 4).softmax(-1))
    torch.testing.assert_close(student.grad, expected)


def test_masked_positions_have_no_loss_and_no_gradient():
    student, teacher = logits(2, 3, 4).requires_grad_(), logits(2, 3, 4, seed=1)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    loss, count = soft_label_loss(student, teacher, 2.0, mask)
    expected, _ = soft_label_loss(student[mask.bool()], teacher[mask.bool()], 2.0)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()))
    assert int(count) == 3
    loss.backward()
    assert student.grad[mask == 0].abs().max() == 0
    assert student.grad[mask == 1].abs().min() > 0


def test_masked_positions_may_be_nan():
    student, teacher = logits(3, 2), logits(3, 2, seed=1)
    student[1] = float("nan")
    loss, count = soft_label_loss(student, teacher, 2.0, torch.tensor([True, False, True]))
    assert math.isfinite(float(loss))
    assert int(count) == 2


@pytest.mark.parametrize("loss_function", [lambda s, t: soft_label_loss(s, t, 2.0), squared_error])
def test_losses_of_parts_sum_to_that_of_the_batch(loss_function):
    student, teacher = logits(8, 3), logits(8, 3, seed=1)
    expected = loss_function(student, teacher)
    parts = [loss_function(student[i : i + 2], teacher[i : i + 2]) for i in range(0, 8, 2)]
    assert sum(float(loss) for loss, _ in parts) == pytest.approx(float(expected[0]))
    assert sum(int(count) for _, count in parts) == int(expected[1]) == 8


def test_half_precision_logits_are_compared_in_single_precision():
    student, teacher = logits(4, 3), logits(4, 3, seed=1)
    half, _ = soft_label_loss(student.bfloat16(), teacher.bfloat16(), 2.0)
    single, _ = soft_label_loss(student.bfloat16().float(), teacher.bfloat16().float(), 2.0)
    assert half.dtype == torch.float32
    assert torch.equal(half, single)


def test_squared_error_is_averaged_over_outputs_and_summed_over_positions():
    student, teacher = torch.tensor([[1.0, 2.0], [3.0, 3.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert [float(value) for value in squared_error(student, teacher)] == [2.5 + 6.5, 2]
    assert [float(value) for value in squared_error(student, teacher, torch.tensor([0, 1]))] == [6.5, 1]


# ---- intermediate outputs, and independent labels ----

INTERMEDIATE = {
    "squared error": squared_error,
    "cosine distance": cosine_distance,
    "attention": attention_loss,
    "relations": lambda student, teacher, mask=None: relation_loss(student, teacher, 2, mask),
}
SHAPES = {name: (4, 3, 7, 7) if name == "attention" else (4, 7, 8) for name in INTERMEDIATE}


@pytest.fixture(params=INTERMEDIATE)
def intermediate(request):
    """Return a loss function, and the shape of its inputs: 4 rows of 7 tokens."""
    return INTERMEDIATE[request.param], SHAPES[request.param]


def pad(values, by, padding_value=float("nan")):
    """Append padding tokens; scores, which are of pairs of tokens, get them in both dimensions."""
    tokens = (0, by, 0, by) if values.dim() == 4 else (0, 0, 0, by)
    return torch.nn.functional.pad(values, tokens, value=padding_value)


def test_intermediate_loss_of_an_equal_student_is_zero(intermediate):
    loss_function, shape = intermediate
    same, mask = 5 * logits(*shape), torch.arange(7) < torch.tensor([[7], [4], [1], [6]])
    assert float(loss_function(same, same.clone())[0]) == 0
    loss, count = loss_function(same, same.clone(), mask)
    assert (float(loss), int(count)) == (0, 18)
    assert float(loss_function(same, 5 * logits(*shape, seed=1), mask)[0]) > 1


@pytest.mark.parametrize("padding_value", [float("nan"), 1e4, -3.0])
def test_padding_does_not_change_an_intermediate_loss(intermediate, padding_value):
    loss_function, shape = intermediate
    student, teacher = logits(*shape), logits(*shape, seed=1)
    expected, count = loss_function(student, teacher)
    mask = torch.arange(10) < 7
    padded = pad(student, 3, padding_value), pad(teacher, 3, -padding_value)
    loss, padded_count = loss_function(*padded, mask.expand(4, -1))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert int(padded_count) == int(count) == 28


def test_padding_gets_no_gradient_of_an_intermediate_loss(intermediate):
    loss_function, shape = intermediate
    student, teacher = pad(logits(*shape), 3, 2.0).requires_grad_(), pad(logits(*shape, seed=1), 3, 5.0)
    loss_function(student, teacher, (torch.arange(10) < 7).expand(4, -1))[0].backward()
    is_token = torch.zeros_like(student).bool()
    (is_token[..., :7, :7] if student.dim() == 4 else is_token[..., :7, :]).fill_(True)
    assert float(student.grad[~is_token].abs().max()) == 0
    assert float(student.grad[is_token].abs().min()) > 0


def test_intermediate_losses_of_rows_sum_to_that_of_the_batch(intermediate):
    loss_function, shape = intermediate
    student, teacher = logits(*shape), logits(*shape, seed=1)
    mask = torch.arange(7) < torch.tensor([[7], [4], [1], [6]])
    expected = loss_function(student, teacher, mask)
    parts = [loss_function(student[i : i + 1], teacher[i : i + 1], mask[i : i + 1]) for i in range(4)]
    assert sum(float(loss) for loss, _ in parts) == pytest.approx(float(expected[0]), rel=1e-6)
    assert sum(int(count) for _, count in parts) == int(expected[1]) == 18


def test_independent_labels_are_binary_distributions():
    student = torch.tensor([[0.0, 0.0]])  # probabilities 1/2 and 1/2
    teacher = torch.tensor([[2 * math.log(3), 0.0]])  # probabilities 3/4 and 1/2 at T=2
    first = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    loss, count = independent_soft_label_loss(student, teacher, 2.0)
    assert float(loss) == pytest.approx(4 * first / 2)
    assert int(count) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 7.0])
def test_loss_of_equal_independent_labels_is_zero_for_extreme_logits(temperature):
    same = torch.tensor([[-200.0, 200.0, 0.3], [1.0, -2.0, 90.0]])
    loss, count = independent_soft_label_loss(same, same.clone(), temperature)
    assert (float(loss), int(count)) == (0, 2)


def test_masked_independent_labels_have_no_loss():
    student, teacher = logits(3, 4), logits(3, 4, seed=1)
    student[1] = float("nan")
    mask = torch.tensor([True, False, True])
    loss, count = independent_soft_label_loss(student, teacher, 2.0, mask)
    expected, _ = independent_soft_label_loss(student[mask], teacher[mask], 2.0)
    assert float(loss) == pytest.approx(float(expected))
    assert int(count) == 2


def test_one_independent_label_equals_two_classes():
    student, teacher = logits(5, 1), logits(5, 1, seed=1)
    two_classes = [torch.cat([values, torch.zeros(5, 1)], -1) for values in (student, teacher)]
    expected, _ = soft_label_loss(*two_classes, 3.0)
    torch.testing.assert_close(independent_soft_label_loss(student, teacher, 3.0)[0], expected)


def test_cosine_distance_is_one_minus_the_cosine():
    student, teacher = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0]]), torch.tensor([[5.0, 5.0], [0, -1], [9, 0]])
    loss, count = cosine_distance(student, teacher)
    assert float(loss) == pytest.approx((1 - math.sqrt(0.5)) + 2 + 0)
    assert int(count) == 3


def test_attention_loss_is_averaged_over_heads_and_included_keys():
    student, teacher = torch.zeros(1, 2, 2, 2), torch.tensor([[[[1.0, 2.0], [3.0, 9.0]], [[0.0, 4.0], [1.0, 9.0]]]])
    loss, count = attention_loss(student, teacher)
    assert (float(loss), int(count)) == ((1 + 4 + 0 + 16) / 4 + (9 + 81 + 1 + 81) / 4, 2)
    loss, count = attention_loss(student, teacher, torch.tensor([[True, False]]))
    assert (float(loss), int(count)) == ((1 + 0) / 2, 1)


def test_relations_are_softmax_of_scaled_dot_products():
    scale = math.sqrt(2)  # two dimensions per head
    student = torch.zeros(1, 2, 2)  # all relations are 1/2
    teacher = torch.tensor([[[1.0, 0.0], [scale * math.log(3), 0.0]]])
    # Scaled products of the first token: 1/sqrt(2) and log(3); of the second token: log(3) and sqrt(2) log(3)^2.
    rows = [(1 / scale, math.log(3)), (math.log(3), scale * math.log(3) ** 2)]
    expected = 0.0
    for row in rows:
        probabilities = [math.exp(value) / sum(map(math.exp, row)) for value in row]
        expected += sum(p * math.log(p / 0.5) for p in probabilities)
    loss, count = relation_loss(student, teacher, heads=1)
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert int(count) == 2


def test_relation_loss_is_averaged_over_heads():
    student, teacher = logits(2, 5, 8), logits(2, 5, 8, seed=1)
    first, second = (relation_loss(student[..., part], teacher[..., part], 1)[0] for part in (slice(4), slice(4, 8)))
    torch.testing.assert_close(relation_loss(student, teacher, 2)[0], (first + second) / 2)


def test_relations_of_different_widths_are_compared():
    student, teacher = logits(2, 5, 8), logits(2, 5, 24, seed=1)
    assert float(relation_loss(student, teacher, 4)[0]) > 1
    # Appended zeros change no product, only the scale: a factor sqrt(2) compensates a four times larger width.
    wider = torch.cat([math.sqrt(2) * student, torch.zeros(2, 5, 24)], -1)
    assert float(relation_loss(student, wider, 1)[0]) == pytest.approx(0, abs=1e-5)


def test_half_precision_states_are_compared_in_single_precision(intermediate):
    loss_function, shape = intermediate
    student, teacher = logits(*shape).bfloat16(), logits(*shape, seed=1).bfloat16()
    half, _ = loss_function(student, teacher)
    assert half.dtype == torch.float32
    assert torch.equal(half, loss_function(student.float(), teacher.float())[0])
