"""A training step reads nothing from its device, and copies nothing there: tried with tensors of the meta device.

A meta tensor has no values, so reading one is an error of torch: `item`, `bool`, `tolist`, `cpu`. Copies to the device
are found by the operations themselves, except for those of numbers and lists, which torch makes out of sight.
"""

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trainers import arguments, bert
from transformers import BertForMaskedLM, TrainerState

from hf_efficient import DistillationConfig, QuantizationConfig
from hf_efficient.distillation.distiller import Distiller
from hf_efficient.distillation.embeddings import similarity_error, similarity_order_loss, uniformity_loss
from hf_efficient.distillation.teacher import Teacher
from hf_efficient.pruning.callbacks import GateClosingCallback
from hf_efficient.quantization.calibration import InputStatistics
from hf_efficient.quantization.fake_quantization import enable_fake_quantization, set_input_statistics
from hf_efficient.quantization.module_selection import select_linears
from hf_efficient.trainer.finite import FiniteChecks
from hf_efficient.trainer.loss import AccumulatedLoss

META = torch.device("meta")
SIGNALS = {
    "soft labels": {},
    "hidden states": {"hidden_weight": 1.0},
    "embeddings and attention": {"embedding_weight": 1.0, "attention_weight": 1.0},
    "relations": {"relation_weight": 1.0},
}


class NoCopies(TorchDispatchMode):
    """Fails at operations that take a CPU tensor, other than a number, to the meta device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)]
        made = [leaf for leaf in tree_leaves(output) if torch.is_tensor(leaf)]
        from_cpu = [tensor for tensor in given if tensor.device.type == "cpu"]
        if from_cpu and any(tensor.device == META for tensor in (*made, *given)):
            raise AssertionError(f"{func} copies {[tuple(tensor.shape) for tensor in from_cpu]} to the device")
        return output


def make_batch(labels):
    ids = torch.zeros(4, 8, dtype=torch.long, device=META)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def step(args, model, distiller, batches):
    """Run what the trainer runs of this package in a step of several batches."""
    accelerator = Accelerator(cpu=True)
    loss, finite = AccumulatedLoss(args, accelerator), FiniteChecks(args, accelerator)
    loss.distiller = distiller

    def task_loss(model, inputs, return_outputs):
        outputs = model(**inputs)
        return outputs.loss, outputs

    loss.count_window(model, batches, META)
    for batch in batches:
        value, _ = loss(model, model, batch, task_loss, progress=0.5)
        value.backward()
        finite.watch_loss(value, 1)
    finite.watch_norm(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]), 1)


@pytest.fixture
def args(tmp_path, monkeypatch):
    args = arguments(tmp_path, gradient_accumulation_steps=2)
    assert args.device.type == "cpu"  # which also sets up the processes
    monkeypatch.setattr(type(args), "device", META)
    # Transformers itself looks, once in each forward pass, whether there is any padding; not in a trace.
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda tensor: True)
    return args


@pytest.mark.parametrize("signals", SIGNALS.values(), ids=SIGNALS)
def test_distillation_reads_nothing(args, signals):
    student, teacher = bert().to(META), bert(2).to(META)
    distiller = Distiller(Teacher([teacher]), DistillationConfig(**signals))
    distiller.prepare(student)
    labels = torch.zeros(4, dtype=torch.long, device=META)
    with NoCopies():
        step(args, student, distiller, [make_batch(labels), make_batch(labels)])


def test_labels_of_tokens_and_a_trimmed_vocabulary_read_nothing(args):
    student, teacher = (bert(model_class=BertForMaskedLM).to(META) for _ in range(2))
    token_ids = torch.arange(student.config.vocab_size)
    distiller = Distiller(Teacher([teacher], token_ids=token_ids), DistillationConfig())
    distiller.prepare(student)
    labels = torch.zeros(4, 8, dtype=torch.long, device=META)
    with NoCopies():
        step(args, student, distiller, [make_batch(labels), make_batch(labels)])


@pytest.mark.parametrize("loss", [similarity_order_loss, similarity_error, lambda one, other: uniformity_loss(one)])
def test_losses_on_embeddings_read_nothing(loss):
    embeddings = torch.zeros(4, 8, device=META, requires_grad=True)
    with NoCopies():
        loss(embeddings, torch.zeros(4, 8, device=META))[0].backward()


@pytest.mark.parametrize("scheme", ["int8_static", "int8_dynamic"])
def test_fake_quantization_reads_nothing(args, scheme):
    model, config = bert(), QuantizationConfig(scheme, aware=True)
    statistics = InputStatistics(-1.0, 3.0, -2.0, 10.0, (2,))
    model = model.to(META)
    enable_fake_quantization(model, config)
    if scheme == "int8_static":
        set_input_statistics(model, config, {name: statistics for name, _ in select_linears(model, config)})
    labels = torch.zeros(4, dtype=torch.long, device=META)
    with NoCopies():
        step(args, model, None, [make_batch(labels)])


def test_gates_read_nothing_between_updates(args):
    model = bert().to(META)
    callback = GateClosingCallback(lambda progress, scores: pytest.fail("no update"), "fisher", rescore=lambda: None)
    state = TrainerState(max_steps=320, global_step=1)
    callback.on_train_begin(args, state, None, model=model)
    labels = torch.zeros(4, dtype=torch.long, device=META)
    with NoCopies():
        step(args, model, None, [make_batch(labels)])
        callback.on_substep_end(args, state, None)
        step(args, model, None, [make_batch(labels)])
        callback.on_pre_optimizer_step(args, state, None)
        callback.on_step_end(args, state, None)
    callback.close()
    assert all(total.device == META for total in callback.sums.values())


def test_reading_is_found():
    with pytest.raises(RuntimeError, match="meta"):
        bool(torch.ones((), device=META))
    with NoCopies(), pytest.raises(AssertionError, match="copies"):
        torch.ones(3).to(META)
