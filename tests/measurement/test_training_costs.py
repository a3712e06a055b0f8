import json

import pytest
from rich.console import Console

from hf_efficient.measurement.training_costs import HEADER, TrainingCost, TrainingCosts
from hf_efficient.measurement.training_costs_plot import plot_costs
from hf_efficient.measurement.training_settings import Setting, setting_grid

FAST, SMALL, MIDDLE = Setting(), Setting(checkpointing=True, accumulation=4), Setting(accumulation=2)
DISTILLED, FAILED = Setting(distillation=True), Setting(attention="eager")


def cost(setting, peak, rate):
    return TrainingCost(setting, 8 // setting.accumulation, peak, peak // 2, peak // 4, 8e3 / rate, rate)


ROWS = (
    cost(FAST, 4_000_000_000, 100.0),
    cost(MIDDLE, 2_000_000_000, 90.0),
    cost(SMALL, 800_000_000, 50.0),
    cost(DISTILLED, 6_000_000_000, 70.0),
    TrainingCost(FAILED, 8, failure="ended by SIGKILL: out of memory?"),
)


@pytest.fixture
def costs():
    return TrainingCosts(
        model="a-model",
        architecture="BertForSequenceClassification",
        parameters=1000,
        batch_size=8,
        sequence_length=128,
        warmup_steps=1,
        steps=3,
        environment={"processor": "a processor", "threads": 2, "accelerator": None, "instructions": ["avx2"]},
        settings=ROWS,
    )


@pytest.mark.parametrize(
    ("budget", "best"),
    [(None, FAST), (10**10, FAST), (4 * 10**9, FAST), (4 * 10**9 - 1, MIDDLE), (10**9, SMALL), (10**8, None)],
)
def test_fastest_setting_that_fits_is_recommended(costs, budget, best):
    row = costs.fastest(budget, distillation=False)
    assert (row if row is None else row.setting) == best


def test_setting_without_a_peak_fits_no_budget(costs):
    unknown = TrainingCost(Setting(precision="bf16"), 8, step_ms=1.0, samples_per_second=8000.0)
    assert costs.with_row(unknown).fastest() == unknown
    assert costs.with_row(unknown).fastest(10**12).setting == FAST
    assert costs.with_row(unknown).smallest().setting == SMALL


def test_training_with_a_teacher_is_recommended_separately(costs):
    assert [row.setting for row in costs.recommended()] == [FAST, DISTILLED]
    first, second = costs.recommendations(10**9)
    assert first == (
        "Fastest that fits 1.00 GB: with checkpointing, accumulation 4, fp32, sdpa attention, without distillation "
        "(800 MB, 50.0 samples/s)."
    )
    assert second.startswith("Nothing fits 1.00 GB; the smallest is: without checkpointing, accumulation 1")
    assert "with distillation (6.00 GB, 70.0 samples/s)" in second


def test_no_recommendation_without_measurements(costs):
    failed = costs.select([FAILED])
    assert failed.recommended(10**9) == ()
    assert failed.recommendations(10**9) == ["No recommendation without distillation: no setting could be measured."]


def test_costs_survive_json(costs, tmp_path):
    costs.save(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["training_costs.json"]
    assert TrainingCosts.load(tmp_path / "new") == costs
    data = json.loads((tmp_path / "new" / "training_costs.json").read_text())
    assert data["schema_version"] == 1
    assert data["settings"][2]["checkpointing"] is True
    assert data["settings"][2]["accumulation"] == 4
    assert data["settings"][4]["peak_memory_bytes"] is None
    with pytest.raises(ValueError, match="schema version 9, this package reads version 1"):
        TrainingCosts.from_json(json.dumps({**data, "schema_version": 9}))


def test_interrupted_measurements_are_resumed(costs, tmp_path):
    new = costs.select([])
    assert new.merge_saved(tmp_path) == new
    costs.save(tmp_path)
    assert new.merge_saved(tmp_path).settings == ROWS
    assert new.merge_saved(tmp_path).measured() == {FAST, MIDDLE, SMALL, DISTILLED}  # FAILED is measured again


@pytest.mark.parametrize("change", [{"batch_size": 16}, {"model": "other"}, {"environment": {"threads": 8}}])
def test_costs_of_something_else_are_not_resumed(costs, tmp_path, change):
    costs.save(tmp_path)
    other = TrainingCosts(**{**vars(costs), **change, "settings": ()})
    with pytest.raises(
        ValueError, match=f"was measured with a different {next(iter(change))}: give another --output_"
    ):
        other.merge_saved(tmp_path)
    assert TrainingCosts.load(tmp_path) == costs


def test_new_row_replaces_that_of_its_setting(costs):
    row = cost(FAST, 1, 1.0)
    assert [row.setting for row in costs.with_row(row).settings] == [MIDDLE, SMALL, DISTILLED, FAILED, FAST]
    assert costs.with_row(row).select([FAST, SMALL]).settings == (row, ROWS[2])


def test_cells_mark_failed_and_fastest_settings(costs):
    cells = costs.table_cells({SMALL})
    assert {len(row) for row in cells} == {len(HEADER)}
    assert cells[2] == (
        ["on", "4 x 2", "fp32", "sdpa", "off", "800 MB", "400 MB", "200 MB", "160 ms", "50.0", "fastest"]
    )
    assert cells[4][5:] == ["not measured"] * 5 + ["ended by SIGKILL: out of memory?"]


def test_table_on_screen_fits_120_columns(costs):
    failed = TrainingCost(
        Setting(precision="bf16"), 8, failure="RuntimeError: [enforce fail] " + "out of memory " * 12
    )
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(costs.with_row(failed).table(10**9))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text
    for name in HEADER:
        assert name in text
    assert "[enforce fail]" in text
    assert text.count("failed") == 2


@pytest.mark.parametrize(
    ("rows", "budget"), [(ROWS, None), (ROWS, 10**9), (ROWS[:1], 10**12), (ROWS[4:], 10**9), ((), None)]
)
def test_picture_is_drawn_for_any_measurements(costs, tmp_path, rows, budget):
    path = plot_costs(costs.select([row.setting for row in rows]), tmp_path, budget)
    assert [each.name for each in tmp_path.iterdir()] == ["training_costs.png"]
    assert path.read_bytes().startswith(b"\x89PNG")


def test_picture_has_a_panel_for_each_precision_and_for_distillation(costs, tmp_path, monkeypatch):
    figures = []
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure) or path.touch())
    settings = setting_grid(8, attention=("sdpa",), checkpointing=(False,))
    rows = [cost(setting, 10**9 // setting.accumulation, 50.0) for setting in settings]
    plot_costs(TrainingCosts(**{**vars(costs), "settings": rows}), tmp_path)
    [figure] = figures
    texts = {text.get_text() for text in figure.texts}
    assert {f"{name}, {kind} distillation" for name in ("fp32", "bf16") for kind in ("with", "without")} <= texts
    assert [len(axes.lines[0].get_xdata()) for axes in figure.axes] == [4] * 4
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2", "4", "8"]
