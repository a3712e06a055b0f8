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
def test_student_that_equals_its_teacher_loses_nothing(temperature):
    same = 5 * logits(4, 7, 3)
    loss, count = soft_label_loss(same, same.clone(), temperature)
    assert float(loss) == 0
    assert int(count) == 28
    # What is added to all the logits of a position changes no probability.
    shifted, _ = soft_label_loss(same + 3, same, temperature)
    assert float(shifted) == pytest.approx(0, abs=1e-4)


def test_loss_is_the_divergence_from_the_teacher():
    student = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])  # (1/2, 1/2), (1/4, 3/4)
    teacher = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])  # (3/4, 1/4), (1/2, 1/2)
    first = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    second = 1 / 2 * math.log(2) + 1 / 2 * math.log(2 / 3)
    loss, count = soft_label_loss(student, teacher, temperature=1.0)
    assert float(loss) == pytest.approx(first + second)
    assert int(count) == 2


def test_temperature_softens_and_its_square_restores_the_scale():
    student, teacher = torch.tensor([0.0, 0.0]), torch.tensor([2 * math.log(3), 0.0])
    loss, _ = soft_label_loss(student, teacher, temperature=2.0)  # softened: (1/2, 1/2) and (3/4, 1/4)
    assert float(loss) == pytest.approx(4 * (3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)))


@pytest.mark.parametrize("temperature", [2.0, 10.0])
def test_loss_grows_with_the_square_when_logits_grow_with_the_temperature(temperature):
    student, teacher = logits(5, 3), logits(5, 3, seed=1)
    loss, _ = soft_label_loss(student, teacher, 1.0)
    scaled, _ = soft_label_loss(temperature * student, temperature * teacher, temperature)
    assert float(scaled) == pytest.approx(temperature**2 * float(loss), rel=1e-5)


def test_gradient_is_the_difference_of_probabilities_times_the_temperature():
    student, teacher = logits(5, 3).requires_grad_(), logits(5, 3, seed=1)
    soft_label_loss(student, teacher, 4.0)[0].backward()
    expected = 4.0 * ((student.detach() / 4).softmax(-1) - (teacher / 4).softmax(-1))
    torch.testing.assert_close(student.grad, expected)


def test_masked_positions_count_for_nothing():
    student, teacher = logits(2, 3, 4).requires_grad_(), logits(2, 3, 4, seed=1)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    loss, count = soft_label_loss(student, teacher, 2.0, mask)
    alone, _ = soft_label_loss(student[mask.bool()], teacher[mask.bool()], 2.0)
    assert float(loss.detach()) == pytest.approx(float(alone.detach()))
    assert int(count) == 3
    loss.backward()
    assert student.grad[mask == 0].abs().max() == 0
    assert student.grad[mask == 1].abs().min() > 0


def test_masked_positions_may_hold_anything():
    student, teacher = logits(3, 2), logits(3, 2, seed=1)
    student[1] = float("nan")
    loss, count = soft_label_loss(student, teacher, 2.0, torch.tensor([True, False, True]))
    assert math.isfinite(float(loss))
    assert int(count) == 2


@pytest.mark.parametrize("objective", [lambda s, t: soft_label_loss(s, t, 2.0), squared_error])
def test_parts_of_a_batch_add_up_to_the_batch(objective):
    student, teacher = logits(8, 3), logits(8, 3, seed=1)
    whole, parts = (
        objective(student, teacher),
        [objective(student[i : i + 2], teacher[i : i + 2]) for i in range(0, 8, 2)],
    )
    assert sum(float(loss) for loss, _ in parts) == pytest.approx(float(whole[0]))
    assert sum(int(count) for _, count in parts) == int(whole[1]) == 8


def test_half_precision_is_compared_in_single():
    student, teacher = logits(4, 3), logits(4, 3, seed=1)
    half, _ = soft_label_loss(student.bfloat16(), teacher.bfloat16(), 2.0)
    single, _ = soft_label_loss(student.bfloat16().float(), teacher.bfloat16().float(), 2.0)
    assert half.dtype == torch.float32
    assert torch.equal(half, single)


def test_squared_error_is_the_mean_over_outputs_summed_over_positions():
    student, teacher = torch.tensor([[1.0, 2.0], [3.0, 3.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert [float(value) for value in squared_error(student, teacher)] == [2.5 + 6.5, 2]
    assert [float(value) for value in squared_error(student, teacher, torch.tensor([0, 1]))] == [6.5, 1]


# ---- what is inside, and labels that hold independently ----

INSIDE = {
    "squared error": squared_error,
    "cosine distance": cosine_distance,
    "attention": attention_loss,
    "relations": lambda student, teacher, mask=None: relation_loss(student, teacher, 2, mask),
}
SHAPES = {name: (4, 3, 7, 7) if name == "attention" else (4, 7, 8) for name in INSIDE}


@pytest.fixture(params=INSIDE)
def inside(request):
    """An objective, and the shape of what it compares: 4 rows of 7 tokens."""
    return INSIDE[request.param], SHAPES[request.param]


def padded(values, by, filled=float("nan")):
    """Appends tokens of garbage; scores are of pairs of tokens, and get them on both sides."""
    tokens = (0, by, 0, by) if values.dim() == 4 else (0, 0, 0, by)
    return torch.nn.functional.pad(values, tokens, value=filled)


def test_inside_a_student_that_equals_its_teacher_loses_nothing(inside):
    objective, shape = inside
    same, mask = 5 * logits(*shape), torch.arange(7) < torch.tensor([[7], [4], [1], [6]])
    assert float(objective(same, same.clone())[0]) == 0
    loss, count = objective(same, same.clone(), mask)
    assert (float(loss), int(count)) == (0, 18)
    assert float(objective(same, 5 * logits(*shape, seed=1), mask)[0]) > 1


@pytest.mark.parametrize("filled", [float("nan"), 1e4, -3.0])
def test_inside_padding_changes_nothing(inside, filled):
    objective, shape = inside
    student, teacher = logits(*shape), logits(*shape, seed=1)
    whole, count = objective(student, teacher)
    mask = torch.arange(10) < 7
    found, counted = objective(padded(student, 3, filled), padded(teacher, 3, -filled), mask.expand(4, -1))
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=0)
    assert int(counted) == int(count) == 28


def test_inside_padding_gets_no_gradient(inside):
    objective, shape = inside
    student, teacher = padded(logits(*shape), 3, 2.0).requires_grad_(), padded(logits(*shape, seed=1), 3, 5.0)
    objective(student, teacher, (torch.arange(10) < 7).expand(4, -1))[0].backward()
    there = torch.zeros_like(student).bool()
    (there[..., :7, :7] if student.dim() == 4 else there[..., :7, :]).fill_(True)
    assert float(student.grad[~there].abs().max()) == 0
    assert float(student.grad[there].abs().min()) > 0


def test_inside_parts_of_a_batch_add_up_to_the_batch(inside):
    objective, shape = inside
    student, teacher, mask = (
        logits(*shape),
        logits(*shape, seed=1),
        torch.arange(7) < torch.tensor([[7], [4], [1], [6]]),
    )
    whole = objective(student, teacher, mask)
    parts = [objective(student[i : i + 1], teacher[i : i + 1], mask[i : i + 1]) for i in range(4)]
    assert sum(float(loss) for loss, _ in parts) == pytest.approx(float(whole[0]), rel=1e-6)
    assert sum(int(count) for _, count in parts) == int(whole[1]) == 18


def test_independent_labels_diverge_each_on_its_own():
    student = torch.tensor([[0.0, 0.0]])  # yes with 1/2 and 1/2
    teacher = torch.tensor([[2 * math.log(3), 0.0]])  # at T=2 with 3/4 and 1/2
    first = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    loss, count = independent_soft_label_loss(student, teacher, 2.0)
    assert float(loss) == pytest.approx(4 * first / 2)
    assert int(count) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 7.0])
def test_independent_labels_that_are_equal_lose_nothing_however_sure(temperature):
    same = torch.tensor([[-200.0, 200.0, 0.3], [1.0, -2.0, 90.0]])
    loss, count = independent_soft_label_loss(same, same.clone(), temperature)
    assert (float(loss), int(count)) == (0, 2)


def test_independent_labels_of_padding_count_for_nothing():
    student, teacher = logits(3, 4), logits(3, 4, seed=1)
    student[1] = float("nan")
    mask = torch.tensor([True, False, True])
    loss, count = independent_soft_label_loss(student, teacher, 2.0, mask)
    alone, _ = independent_soft_label_loss(student[mask], teacher[mask], 2.0)
    assert float(loss) == pytest.approx(float(alone))
    assert int(count) == 2


def test_one_independent_label_is_two_classes():
    student, teacher = logits(5, 1), logits(5, 1, seed=1)
    yes_no = [torch.cat([values, torch.zeros(5, 1)], -1) for values in (student, teacher)]
    expected, _ = soft_label_loss(*yes_no, 3.0)
    torch.testing.assert_close(independent_soft_label_loss(student, teacher, 3.0)[0], expected)


def test_cosine_distance_is_one_minus_the_cosine():
    student, teacher = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0]]), torch.tensor([[5.0, 5.0], [0, -1], [9, 0]])
    loss, count = cosine_distance(student, teacher)
    assert float(loss) == pytest.approx((1 - math.sqrt(0.5)) + 2 + 0)
    assert int(count) == 3


def test_attention_is_averaged_over_heads_and_over_keys_that_count():
    student, teacher = torch.zeros(1, 2, 2, 2), torch.tensor([[[[1.0, 2.0], [3.0, 9.0]], [[0.0, 4.0], [1.0, 9.0]]]])
    loss, count = attention_loss(student, teacher)
    assert (float(loss), int(count)) == ((1 + 4 + 0 + 16) / 4 + (9 + 81 + 1 + 81) / 4, 2)
    loss, count = attention_loss(student, teacher, torch.tensor([[True, False]]))
    assert (float(loss), int(count)) == ((1 + 0) / 2, 1)


def test_relations_are_scaled_products_of_tokens_with_each_other():
    scale = math.sqrt(2)  # of two dimensions a head
    student = torch.zeros(1, 2, 2)  # every relation 1/2
    teacher = torch.tensor([[[1.0, 0.0], [scale * math.log(3), 0.0]]])
    # The first token's products with both, scaled: 1/sqrt(2) and log(3). The second's: log(3) and sqrt(2) log(3)^2.
    rows = [(1 / scale, math.log(3)), (math.log(3), scale * math.log(3) ** 2)]
    expected = 0.0
    for row in rows:
        chances = [math.exp(value) / sum(map(math.exp, row)) for value in row]
        expected += sum(p * math.log(p / 0.5) for p in chances)
    loss, count = relation_loss(student, teacher, heads=1)
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert int(count) == 2


def test_relations_of_heads_are_averaged():
    student, teacher = logits(2, 5, 8), logits(2, 5, 8, seed=1)
    first, second = (relation_loss(student[..., part], teacher[..., part], 1)[0] for part in (slice(4), slice(4, 8)))
    torch.testing.assert_close(relation_loss(student, teacher, 2)[0], (first + second) / 2)


def test_relations_compare_models_of_other_widths():
    student, teacher = logits(2, 5, 8), logits(2, 5, 24, seed=1)
    assert float(relation_loss(student, teacher, 4)[0]) > 1
    # Zeros beside the states change no product, only the scale: sqrt(2) times the states makes up for four times more.
    wider = torch.cat([math.sqrt(2) * student, torch.zeros(2, 5, 24)], -1)
    assert float(relation_loss(student, wider, 1)[0]) == pytest.approx(0, abs=1e-5)


def test_inside_half_precision_is_compared_in_single(inside):
    objective, shape = inside
    student, teacher = logits(*shape).bfloat16(), logits(*shape, seed=1).bfloat16()
    half, _ = objective(student, teacher)
    assert half.dtype == torch.float32
    assert torch.equal(half, objective(student.float(), teacher.float())[0])
