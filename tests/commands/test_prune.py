import pytest
import torch
from reviews import flags
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_efficient import CompressionReport
from hf_efficient.cli import main


def test_prune_in_rounds_scores_again_after_each_and_trains_nothing(job_dir):
    assert main(["prune", *flags(job_dir, neurons=0.75, rounds=2, num_train_epochs=None)]) == 0
    out = job_dir / "out"
    report = CompressionReport.load(out)
    assert [row.role for row in report.models] == ["teacher", "student"]
    assert [stage.split(":")[0] for stage in report.stages] == [
        f"pruned by fisher, round {n} of 2, outputs reconstructed by least squares" for n in (1, 2)
    ]
    counts = report.stages[-1].partition("heads and ")[2].removesuffix(" neurons").split(", ")
    # A quarter of 128, rounded up to multiples of four in each round.
    assert sum(map(int, counts)) == pytest.approx(32, abs=8)
    assert report.configs["training"]["num_train_epochs"] == 0
    assert not list(out.glob("_*"))
    assert "PrunedBertForSequenceClassification" in (out / "config.json").read_text()


def test_vocabulary_alone_changes_no_prediction(job_dir):
    assert main(["prune", *flags(job_dir, vocabulary=True, num_train_epochs=None)]) == 0
    texts = ["a good film", "the film number 3 was awful"]
    logits = []
    for name in ("model", "out"):
        tokenizer = AutoTokenizer.from_pretrained(job_dir / name)
        model = AutoModelForSequenceClassification.from_pretrained(job_dir / name)
        with torch.no_grad():
            logits.append(model(**tokenizer(texts, padding=True, return_tensors="pt")).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "nothing is to be pruned"),
        ({"heads": 0.5, "scheme": "int8_dynamic"}, "prune does not quantize"),
        ({"heads": 0.5, "ramp": 0.5}, "ramp and rewind need training"),
        ({"heads": 0.5, "before_training": True}, "prunes a model before fine-tuning"),
        ({"n_m": "3:2"}, "is not a pattern"),
        ({"weights": 0.5, "criterion": "activation"}, "does not score single connections"),
    ],
    ids=str,
)
def test_prune_refuses_what_it_cannot_do(job_dir, capsys, changes, sentence):
    assert main(["prune", *flags(job_dir, num_train_epochs=None, **changes)]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (job_dir / "out" / "config.json").exists()
