"""Arguments that contradict each other are refused before any work, each with a message that says what to do."""

from types import SimpleNamespace

import pytest
import torch
from trainers import arguments, build, classifier, collate, rows
from transformers import RemBertConfig, RemBertForSequenceClassification, Trainer

from hf_efficient import DistillationConfig, ExportConfig, PruningConfig, QuantizationConfig
from hf_efficient.errors import UnsupportedModelError, UserError
from hf_efficient.pruning.criteria import WEIGHT_BASED_CRITERIA
from hf_efficient.trainer import validation
from hf_efficient.trainer.techniques import Techniques
from hf_efficient.trainer.validation import check_arguments

HEADS = PruningConfig(heads=0.5)
RAMP = PruningConfig(heads=0.5, ramp=0.5)
AWARE = QuantizationConfig("int8_dynamic", aware=True)


def check(folder, techniques, teachers=(), model=None, fsdp=False, train_dataset=None, **trainer_arguments):
    """Check the techniques with a stock trainer."""
    if model is None and "model_init" not in trainer_arguments:
        model = classifier()
    defaults = {"args": arguments(folder), "data_collator": collate}
    trainer = Trainer(**{**defaults, "model": model, "train_dataset": train_dataset, **trainer_arguments})
    if fsdp:
        plugin = SimpleNamespace(fsdp_version=2, state_dict_type="StateDictType.FULL_STATE_DICT")
        trainer.accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    check_arguments(trainer, techniques, teachers)


@pytest.mark.parametrize(
    "techniques",
    [
        Techniques(),
        Techniques(distillation=DistillationConfig(hidden_weight=1.0), pruning=RAMP, quantization=AWARE),
        Techniques(quantization=QuantizationConfig("codebook")),
    ],
    ids=["no technique", "all at once", "codebooks"],
)
def test_techniques_that_can_be_combined_are_accepted(tmp_path, techniques):
    check(tmp_path, techniques, teachers=() if techniques.distillation is None else [classifier()])


@pytest.mark.parametrize(
    ("techniques", "teachers", "message"),
    [
        (Techniques(), ["a teacher"], "given without distillation: add distillation=DistillationConfig"),
        (
            Techniques(pruning=PruningConfig(layers="decoder=0.5")),
            [],
            "names decoder: the model has the stacks encoder",
        ),
        (
            Techniques(quantization=QuantizationConfig()),
            [],
            "ranges of activations from training data, and there is none",
        ),
        (
            Techniques(quantization=QuantizationConfig(skip_modules=".*")),
            [],
            "nothing to quantize in BertForSequenceClassification",
        ),
        (Techniques(quantization=QuantizationConfig("codebook", skip_modules=".*")), [], "nothing to quantize"),
    ],
    ids=[
        "a teacher alone",
        "another stack",
        "static int8 without data",
        "int8 of no module",
        "codebooks of no module",
    ],
)
def test_techniques_that_cannot_work_are_refused(tmp_path, techniques, teachers, message):
    with pytest.raises(UserError, match=message):
        check(tmp_path, techniques, teachers)


def test_codebooks_of_an_unsupported_architecture_are_refused(tmp_path):
    sizes = {"vocab_size": 60, "embedding_size": 8, "hidden_size": 16, "num_attention_heads": 2}
    model = RemBertForSequenceClassification(RemBertConfig(**sizes, intermediate_size=32))
    with pytest.raises(UnsupportedModelError, match="rembert"):
        check(tmp_path, Techniques(quantization=QuantizationConfig("codebook")), model=model)


@pytest.mark.parametrize(
    ("is_fast", "settings", "requested"),
    [
        (False, {"bf16": True}, "bf16=True"),
        (False, {"bf16": True, "bf16_full_eval": True}, "bf16=True and bf16_full_eval=True"),
        (False, {}, None),
        (True, {"bf16": True}, None),
        (None, {"bf16": True}, None),
    ],
    ids=["training", "evaluation too", "float32", "fast processor", "unknown processor"],
)
def test_bfloat16_on_a_processor_without_it_gets_a_warning_with_what_it_costs(
    tmp_path, monkeypatch, is_fast, settings, requested
):
    messages = []
    monkeypatch.setattr(validation, "has_fast_bfloat16", lambda device: is_fast if device.type == "cpu" else None)
    monkeypatch.setattr(validation.logger, "warning_once", messages.append)
    build(tmp_path, **settings)
    assert [message.partition(":")[0] for message in messages] == ([] if requested is None else [requested])
    assert all("take 6 to 9 times as long in bfloat16 as in float32" in message for message in messages)


def test_pruning_with_an_optimizer_of_the_unpruned_parameters_is_refused(tmp_path):
    model = classifier()
    optimizers = (torch.optim.SGD(model.parameters(), 0.1), None)
    with pytest.raises(UserError, match="leave `optimizers` out and give `optimizer_cls_and_kwargs`"):
        check(tmp_path, Techniques(pruning=HEADS), model=model, optimizers=optimizers)
    check(tmp_path, Techniques(), model=model, optimizers=optimizers)


@pytest.mark.parametrize("changes", [{"ramp": 0.5}, {"rewind": "weights"}], ids=str)
def test_schedules_of_training_without_training_are_refused(tmp_path, changes):
    techniques = Techniques(pruning=PruningConfig(heads=0.5, **changes))
    with pytest.raises(UserError, match="num_train_epochs is 0: give num_train_epochs or max_steps"):
        check(tmp_path, techniques, args=arguments(tmp_path, num_train_epochs=0))
    check(tmp_path, techniques, args=arguments(tmp_path, num_train_epochs=0, max_steps=1))


@pytest.mark.parametrize(
    ("techniques", "message"),
    [
        (Techniques(pruning=HEADS), "would undo the pruning in every round: give `model`"),
        (Techniques(distillation=DistillationConfig(hidden_weight=1.0)), "were mapped to those of the teacher"),
        (Techniques(quantization=AWARE), "without fake quantization: give `model`"),
    ],
    ids=["pruning", "intermediate outputs", "fake quantization"],
)
def test_model_init_is_refused_if_the_technique_changes_the_model(tmp_path, techniques, message):
    with pytest.raises(UserError, match=message):
        check(tmp_path, techniques, model_init=lambda: classifier())


def test_model_init_is_accepted_with_soft_labels(tmp_path):
    check(tmp_path, Techniques(distillation=DistillationConfig()), [classifier()], model_init=lambda: classifier())


def test_loss_function_with_distillation_is_refused(tmp_path):
    compute_loss_func = {"compute_loss_func": lambda outputs, labels, **_: outputs.loss}
    with pytest.raises(UserError, match="compute_loss_func would replace the distillation loss: give one of the two"):
        check(tmp_path, Techniques(distillation=DistillationConfig()), **compute_loss_func)
    check(tmp_path, Techniques(), **compute_loss_func)


@pytest.mark.parametrize("changes", [{"weights": 0.5}, {"heads": 0.5, "criterion": WEIGHT_BASED_CRITERIA[0]}], ids=str)
def test_ramp_that_reads_single_weights_is_refused_with_fsdp(tmp_path, changes):
    techniques = Techniques(pruning=PruningConfig(ramp=0.5, **changes))
    with pytest.raises(UserError, match=r"and FSDP shards them: use rounds, or criterion='fisher'"):
        check(tmp_path, techniques, fsdp=True)
    check(tmp_path, techniques)
    check(tmp_path, Techniques(pruning=RAMP), fsdp=True)


def test_calibrated_export_without_training_data_is_refused(tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    techniques = Techniques(export=ExportConfig(["openvino"], "int8"))
    with pytest.raises(UserError, match="give train_dataset, or export_quantization='int8_weight_only'"):
        check(tmp_path, techniques)
    check(tmp_path, techniques, train_dataset=rows())


@pytest.mark.parametrize(
    ("techniques", "message"),
    [
        ({"teacher": classifier()}, "given without distillation"),
        ({"teacher": classifier(labels=4), "distillation": DistillationConfig()}, "give both the same label map"),
    ],
    ids=["arguments", "labels of the teacher"],
)
def test_trainer_checks_its_arguments_when_it_is_built(tmp_path, techniques, message):
    with pytest.raises(UserError, match=message):
        build(tmp_path, techniques=techniques)
