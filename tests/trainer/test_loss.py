"""The accumulated loss, without a trainer around it."""

import pytest
import torch
from accelerate import Accelerator
from trainers import arguments, classifier, collate, pad, rows, t5, written

from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.distillation.distiller import Distiller
from hf_efficient.distillation.teacher import Teacher
from hf_efficient.trainer.loss import AccumulatedLoss, select_model_inputs

CPU = torch.device("cpu")


def task_loss(model, inputs, return_outputs):
    outputs = model(**inputs)
    return outputs.loss, outputs


def build_loss(folder, accumulation=1, teacher=None, model=None, **settings):
    args = arguments(folder, gradient_accumulation_steps=accumulation)
    loss = AccumulatedLoss(args, Accelerator(cpu=True))
    if teacher is not None:
        config = DistillationConfig(**settings)
        loss.distiller = Distiller(Teacher([teacher], config.normalized_teacher_weights(1), None, None), config)
        loss.distiller.prepare(model)
    return loss


def gradient_of(loss, model, batches):
    """Return the gradient of one optimizer step over `batches`."""
    model.zero_grad()
    loss.count_window(model, batches, CPU)
    for batch in batches:
        loss(model, model, batch, task_loss, progress=0.0)[0].backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("distils", [False, True], ids=["labels", "teacher"])
@pytest.mark.parametrize("generates", [False, True], ids=["classifier", "seq2seq"])
def test_batches_of_different_sizes_have_the_gradient_of_one_batch(tmp_path, generates, distils):
    model = t5() if generates else classifier()
    data, collator = (list(written(8)), pad) if generates else (list(rows(8)), collate)
    teacher = None
    if distils:
        teacher = t5(seed=2) if generates else classifier()
        torch.nn.init.normal_(next(teacher.parameters()))
    loss = build_loss(tmp_path, accumulation=2, teacher=teacher, model=model)
    parts = gradient_of(loss, model, [collator(data[:6]), collator(data[6:])])
    together = gradient_of(loss, model, [collator(data)])
    assert parts.keys() == together.keys()
    for name, expected in together.items():
        torch.testing.assert_close(parts[name], expected, rtol=1e-4, atol=1e-6, msg=name)
    assert sum(float(gradient.abs().sum()) for gradient in together.values()) > 1e-3


def test_loss_of_trainer_is_used_if_it_is_exact(tmp_path):
    assert build_loss(tmp_path).uses_parent_loss(classifier())
    assert not build_loss(tmp_path).uses_parent_loss(t5())  # a mean over tokens
    assert not build_loss(tmp_path, accumulation=2).uses_parent_loss(classifier())
    model = classifier()
    assert not build_loss(tmp_path, teacher=classifier(), model=model).uses_parent_loss(model)


def test_logged_terms_are_means_over_the_steps_since_the_last_log(tmp_path):
    model = classifier()
    loss = build_loss(tmp_path, teacher=classifier(), model=model, hard_label_weight=0.5)
    batch = collate(list(rows(8)))
    for _ in range(2):
        gradient_of(loss, model, [batch])
    logs = {"loss": 1.0}
    loss.add_logs(logs, step=2)
    assert logs["hard_label_loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    assert logs["soft_label_loss"] == pytest.approx(0.0, abs=1e-6)  # the teacher is equal to the model
    evaluation = {"eval_loss": 1.0}
    loss.add_logs(evaluation, step=2)
    assert evaluation == {"eval_loss": 1.0}


def test_cached_teacher_outputs_do_not_reach_the_model():
    batch = {**collate(list(rows(2))), "teacher_logits": torch.zeros(2, 3)}
    assert set(select_model_inputs(classifier(), batch)) == {"input_ids", "attention_mask", "labels"}
