import math

import pytest
import torch

from hf_efficient.distillation.objectives import soft_label_loss, squared_error


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
