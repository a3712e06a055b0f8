"""Models of families that are unknown: layers are dropped where they are found, the rest works or is refused."""

import pytest
import torch
import transformers
from trainers import build, collate, log_entries, rows, without_report

from hf_efficient import DistillationConfig, PruningConfig, QuantizationConfig, prune, quantize
from hf_efficient.distillation.students import student_from_layers
from hf_efficient.errors import UnsupportedModelError, UserError
from hf_efficient.models import find_family
from hf_efficient.quantization import validation

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
FIELDS = {
    "RemBert": {},
    "MobileBert": {"intra_bottleneck_size": 16, "embedding_size": 16, "true_hidden_size": 16},
    "NomicBert": {},
    "ConvBert": {"embedding_size": 32},
}


def classifier(name, **fields):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **FIELDS.get(name, {}), **fields})
    assert find_family(config) is None
    return getattr(transformers, f"{name}ForSequenceClassification")(config)


@pytest.mark.parametrize("name", FIELDS)
def test_student_of_an_unknown_family_has_some_of_the_layers(name, tmp_path):
    teacher = classifier(name)
    student = student_from_layers(teacher, "1,3")
    assert (type(student), student.config.num_hidden_layers) == (type(teacher), 2)
    path = next(name for name, module in teacher.named_modules() if isinstance(module, torch.nn.ModuleList))
    kept = student.get_submodule(path)
    for index, source in enumerate((1, 3)):
        expected = teacher.get_submodule(path)[source].state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in kept[index].state_dict().items())
    student.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    batch = collate(list(rows(3)))
    torch.testing.assert_close(loaded(**batch).logits, student.eval()(**batch).logits)


def test_student_of_an_unknown_family_is_distilled_and_reported(tmp_path):
    teacher = classifier("RemBert")
    techniques = {"teacher": teacher, "distillation": DistillationConfig()}
    trainer = build(tmp_path, model=student_from_layers(teacher, 2), techniques=techniques, max_steps=2)
    trainer.train()
    assert len([entry for entry in log_entries(trainer) if entry["soft_label_loss"] > 0]) == 2
    assert [row.role for row in trainer.report.models] == ["teacher", "student"]
    assert trainer.report.row("student").parameters < trainer.report.row("teacher").parameters


def test_layers_that_cannot_be_found_or_depend_on_their_number_are_refused():
    teacher = classifier("RemBert")
    teacher.rembert.encoder.layer.append(teacher.rembert.encoder.layer[0])
    with pytest.raises(UnsupportedModelError, match="has 0 lists of num_hidden_layers=4 alike layers"):
        student_from_layers(teacher, 2)
    teacher = classifier("RemBert")
    for index, layer in enumerate(teacher.rembert.encoder.layer):
        layer.output.LayerNorm.eps = 1e-5 + index  # as of an architecture whose layers know their number
    with pytest.raises(UnsupportedModelError, match=r"with the layers 0, 2 computes something else"):
        student_from_layers(teacher, 2)
    with pytest.raises(UserError, match="there are 4 in the encoder"):
        student_from_layers(classifier("RemBert"), "0,4")
    decoder = transformers.GPT2Model(transformers.GPT2Config(n_embd=8, n_layer=2, n_head=1, vocab_size=10))
    with pytest.raises(UnsupportedModelError, match="decoder only"):
        student_from_layers(decoder, 1)


@pytest.mark.parametrize(
    ("technique", "work"),
    [
        ("heads", lambda model, folder: prune(model, PruningConfig(heads=0.5, criterion="magnitude"))),
        ("layers", lambda model, folder: prune(model, PruningConfig(layers=0.5, criterion="magnitude"))),
        ("8 bits", lambda model, folder: quantize(model, QuantizationConfig("int8_dynamic"))),
        ("codebooks", lambda model, folder: quantize(model, QuantizationConfig("codebook"))),
        (
            "hidden states",
            lambda model, folder: without_report(
                build(folder, model=model, techniques={"distillation": DistillationConfig(hidden_weight=1.0)})
            ).train(),
        ),
    ],
)
def test_other_techniques_are_refused_with_a_sentence(technique, work, tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"What works with other models: distillation .* what does not"):
        work(classifier("RemBert"), tmp_path)


@pytest.mark.skipif(validation.find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.parametrize("name", ["RemBert", "NomicBert"])
def test_unknown_family_gets_8_bits_of_torchao(name):
    model, batch = classifier(name).eval(), collate(list(rows(3)))
    quantized = quantize(model, QuantizationConfig("int8_weight_only", torchao=True))
    with torch.no_grad():
        error = (quantized(**batch).logits - model(**batch).logits).norm() / model(**batch).logits.norm()
    assert 0 < float(error) < 0.1
