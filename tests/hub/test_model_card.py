import json
import shutil
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from transformers import BertConfig, BertForSequenceClassification

from hf_efficient import CompressionReport, DistillationConfig
from hf_efficient.hub.escaping import escape_markdown
from hf_efficient.hub.model_card import write_report_and_card
from hf_efficient.measurement.report import TrainingResources
from hf_efficient.measurement.report_rows import GenerationLatency, Latency, ModelRow, with_ratios
from hf_efficient.pruning.selection import remove_units


def row(role, accuracy, milliseconds, size, **changes):
    latency = Latency(milliseconds, milliseconds, 8, 64, 2, "torch float32")
    return ModelRow(role, role, {"accuracy": accuracy}, bytes_on_disk=size, latency_ms=latency, **changes)


@pytest.fixture
def report():
    return CompressionReport(
        task="text-classification",
        dataset="films",
        metric="accuracy",
        stages=("pruned by fisher", "trained for 7 steps"),
        models=with_ratios([row("teacher", 0.9, 50.0, 8_000_000), row("student", 0.891, 20.0, 2_000_000)], "accuracy"),
        environment={"processor": "abacus", "packages": {"hf_efficient": "0.1.0"}},
        configs={"pruning": {"criterion": "fisher"}, "distillation": {}},
    )


@pytest.fixture
def folder(tmp_path):
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "small-films")
    return tmp_path / "small-films"


def test_card_has_the_measurements_and_metadata_of_the_report(folder, report):
    write_report_and_card(report, folder, base_model="somebody/films")
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "somebody/films"
    assert card.data.base_model_relation == "finetune"
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.tags == ["hf_efficient", "distillation", "pruning"]
    [result] = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("accuracy", 0.891, "films")
    for text in (
        "A compressed model that, compared with its teacher, is 4.00 times smaller, is 2.50 times as fast and keeps "
        "99.0% of its accuracy.",
        "| latency | 50.0 ms | 20.0 ms |",
        "| energy of 1,000 predictions | not measured | not measured |",
        "batch 8 x 64 tokens, models timed alternately, on abacus, 2 threads",
        "\n\n![Quality, latency, size and structure of the models](compression_report.png)\n\n## Compression\n",
        "* trained for 7 steps",
        "AutoModelForSequenceClassification.from_pretrained(name).eval()",
        "pip install transformers torch\n",
        "Kwon et al. 2022",
        "Hinton et al. 2015",
    ):
        assert text in card.text
    assert "trust_remote_code" not in card.text
    assert "Jacob" not in card.text  # nothing was quantized
    assert json.loads((folder / "compression_report.json").read_text())["dataset"] == "films"
    assert not list(folder.glob("*partial*"))


def test_first_line_says_what_was_asked_and_not_reached(folder, report):
    missed = replace(report, configs={"pruning": {"target_speedup": 3.0}})
    write_report_and_card(missed, folder)
    text = ModelCard.load(folder / "README.md").text
    assert "\n\n3x speed-up asked, 2.50x reached. A compressed model that, compared with" in text
    write_report_and_card(replace(report, configs={"pruning": {"target_speedup": 2.5}}), folder)
    text = ModelCard.load(folder / "README.md").text
    assert "\n\nA compressed model" in text
    assert "2.5x speed-up asked, 2.50x reached." in text


def with_quantized(report, milliseconds):
    rows = [*report.models, row("quantized", 0.89, milliseconds, 500_000)]
    return replace(report, models=with_ratios(rows, "accuracy"))


def test_card_of_a_slower_quantized_model_recommends_the_float_student(folder, report):
    (folder / "_student").mkdir()
    shutil.copy(folder / "config.json", folder / "_student")
    write_report_and_card(with_quantized(report, 200.0), folder)
    text = ModelCard.load(folder / "README.md").text
    assert (
        "A compressed model that, compared with its teacher, is 4.00 times smaller, is 2.50 times as fast and keeps "
        "99.0% of its accuracy, in the form recommended here (student). The model in the output folder, quantized, is "
        "smaller, not faster here: it takes 10.0 times as long as the float student, which is in the folder _student."
    ) in text
    assert "0.25" not in text.partition("## Evaluation")[0]
    code = "from transformers import AutoModelForSequenceClassification\n"
    code += 'model = AutoModelForSequenceClassification.from_pretrained("small-films/_student")\n```'
    assert code in text
    assert "`_student` of the float student is kept by the run and not pushed" in text


def test_card_of_a_faster_quantized_model_states_its_numbers(folder, report):
    write_report_and_card(with_quantized(report, 10.0), folder)
    text = ModelCard.load(folder / "README.md").text
    assert "is 16.0 times smaller, is 5.00 times as fast and keeps 98.9% of its accuracy.\n" in text
    assert "On this machine use quantized: 5.00 times as fast as the teacher, 2.00 times as fast as the" in text
    assert "smaller, not faster" not in text


def test_card_of_a_slower_quantization_alone_does_not_state_its_speed(folder, report):
    teacher, quantized = row("teacher", 0.9, 50.0, 8_000_000), row("quantized", 0.9, 500.0, 2_000_000)
    write_report_and_card(replace(report, models=with_ratios([teacher, quantized], "accuracy"), configs={}), folder)
    summary = ModelCard.load(folder / "README.md").text.partition("## Evaluation")[0]
    assert "compared with its teacher, is 4.00 times smaller and keeps 100.0% of its accuracy." in summary
    assert "is smaller, not faster here: it takes 10.0 times as long as the teacher." in summary


def test_local_path_is_not_named_as_base_model(folder, report, tmp_path):
    write_report_and_card(report, folder, base_model=str(tmp_path))
    text = (folder / "README.md").read_text()
    assert str(tmp_path) not in text
    assert "base_model" not in text


@pytest.mark.parametrize("shape", ["uneven widths", "a stock shape"])
def test_card_of_t5_loads_it_with_its_auto_class(make_model, select, report, tmp_path, shape):
    head = "T5ForConditionalGeneration"
    remove_units(make_model(head), select(shape, head)).save_pretrained(tmp_path)
    write_report_and_card(report, tmp_path)
    assert (
        "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer" in ModelCard.load(tmp_path / "README.md").text
    )


def test_card_of_a_generating_model_compares_generation(folder, report):
    slow, fast = GenerationLatency(20.0, 4.0, 16, 16, 16), GenerationLatency(10.0, 2.5, 16, 16, 16)
    rows = [row("teacher", 0.9, 50.0, 8, generation_ms=slow), row("student", 0.9, 20.0, 2, generation_ms=fast)]
    write_report_and_card(replace(report, models=with_ratios(rows, "accuracy")), folder)
    text = ModelCard.load(folder / "README.md").text
    assert "generates text 1.68 times as fast and keeps" in text  # (20 + 15 * 4) / (10 + 15 * 2.5)
    assert "2.50 times as fast" not in text


def test_license_and_languages_are_those_of_the_base_model(folder, report, tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "README.md").write_text(
        "---\nlicense: cc-by-4.0\nlanguage: [de]\npipeline_tag: x\n---\n# t"
    )
    write_report_and_card(report, folder, base_model=str(tmp_path / "teacher"))
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.language, data.pipeline_tag) == ("cc-by-4.0", ["de"], "text-classification")


def test_folder_without_a_card_is_not_looked_up_on_the_hub(folder, report, tmp_path, monkeypatch):
    (tmp_path / "somebody" / "films").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    loaded = []
    load = ModelCard.load
    monkeypatch.setattr(ModelCard, "load", lambda source, **_: loaded.append(source) or load(source))
    write_report_and_card(report, folder, base_model="somebody/films")
    assert loaded == []
    assert "license" not in load(folder / "README.md").data.to_dict()


def test_card_has_no_license_if_that_of_the_base_model_is_unknown(folder, report):
    write_report_and_card(report, folder, base_model="somebody/films")  # cannot be reached
    assert ModelCard.load(folder / "README.md").data.license is None


def test_card_has_energy_and_emissions_of_training_if_measured(folder, report):
    def card(**training):
        write_report_and_card(replace(report, training=TrainingResources(**training)), folder)
        return ModelCard.load(folder / "README.md")

    measured = card(seconds=90.0, energy_joules=7.2e6, co2_grams=110.0)
    assert "* pruning and training took 1.50 min and 2.00 kWh" in measured.text
    assert measured.data.co2_eq_emissions["emissions"] == 110.0
    assert measured.data.co2_eq_emissions["source"] == "codecarbon"
    unknown = card(seconds=90.0)
    assert "* pruning and training took 1.50 min; energy was not measured" in unknown.text
    assert "co2_eq_emissions" not in unknown.data.to_dict()


def test_dataset_on_the_hub_is_in_the_metadata(folder, report):
    configs = {**report.configs, "data": {"dataset_name": "somebody/reviews"}}
    write_report_and_card(replace(report, configs=configs), folder)
    assert ModelCard.load(folder / "README.md").data.datasets == ["somebody/reviews"]


def test_card_cites_the_papers_of_generated_targets(folder, report):
    configs = {**report.configs, "distillation": {"targets": "teacher"}}
    write_report_and_card(replace(report, configs=configs), folder)
    assert "Kim and Rush 2016" in ModelCard.load(folder / "README.md").text
    write_report_and_card(report, folder)
    assert "Kim and Rush 2016" not in ModelCard.load(folder / "README.md").text


@pytest.mark.parametrize(
    ("targets", "description"),
    [
        ("gold", "labels"),
        ("teacher", "targets generated by the teacher"),
        ("both", "labels and targets generated by the teacher"),
    ],
)
def test_stage_names_the_targets_of_training(targets, description):
    assert DistillationConfig(targets=targets).describe() == f"{description}, the teacher's soft labels (T=2)"


def test_names_have_no_meaning_in_html_and_markdown():
    text = escape_markdown("<script>alert(1)</script> [link](http://x) | `code` **bold**\n# Title & more")
    assert "<" not in text
    assert "\n" not in text
    assert text == (
        "&lt;script&gt;alert(1)&lt;/script&gt; \\[link\\](http://x) \\| \\`code\\` \\*\\*bold\\*\\* "
        "\\# Title &amp; more"
    )


def test_report_is_written_before_what_could_fail(folder, report, monkeypatch):
    def fail(*_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(type(report), "plot", fail)
    with pytest.raises(RuntimeError, match="no fonts"):
        write_report_and_card(report, folder)
    assert type(report).load(folder).models == report.models
    assert (folder / "README.md").exists()


def test_names_are_drawn_as_they_are(folder, report):
    assert replace(report, dataset="$x^$ [/red]").plot(folder).exists()
