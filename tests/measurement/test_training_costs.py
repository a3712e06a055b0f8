import json

import pytest

from hf_efficient.measurement.training_costs import (
    HEADER,
    Setting,
    TrainingCost,
    TrainingCosts,
    parse_budget,
    setting_grid,
)
from hf_efficient.measurement.training_costs_plot import plot_costs

FAST, SMALL, BETWEEN = Setting(), Setting(checkpointing=True, accumulation=4), Setting(accumulation=2)
TAUGHT, FAILED = Setting(distillation=True), Setting(attention="eager")


def cost(setting, peak, rate):
    return TrainingCost(setting, 8 // setting.accumulation, peak, peak // 2, peak // 4, 8e3 / rate, rate)


ROWS = (
    cost(FAST, 4_000_000_000, 100.0),
    cost(BETWEEN, 2_000_000_000, 90.0),
    cost(SMALL, 800_000_000, 50.0),
    cost(TAUGHT, 6_000_000_000, 70.0),
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
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("500MB", 500 * 10**6),
        ("8GiB", 8 * 2**30),
        ("1.5 gb", 1_500_000_000),
        (" 512mib ", 512 * 2**20),
    ],
)
def test_a_budget_is_a_number_and_a_unit(text, size):
    assert parse_budget(text) == size


@pytest.mark.parametrize("text", ["8", "GB", "8 apples", "-8GB", "0GB", "0.0MB", "8GB RAM", "", "1e3MB", "8,5GB"])
def test_other_budgets_are_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"is no amount of memory.*8GB, 500MB or 8GiB") as error:
        parse_budget(text)
    assert repr(text) in str(error.value)


def test_the_whole_grid_has_64_settings():
    settings = setting_grid(32)
    assert len(set(settings)) == len(settings) == 64
    assert settings[0] == Setting()
    assert [setting.accumulation for setting in settings[:4]] == [1, 2, 4, 8]
    assert not any(setting.distillation for setting in settings[:32])


def test_accumulations_that_do_not_divide_the_batch_are_left_out():
    found = setting_grid(12, (False,), (1, 2, 4, 8, 1), ("fp32",), ("sdpa",), (False,))
    assert [setting.accumulation for setting in found] == [1, 2, 4]
    with pytest.raises(ValueError, match="accumulation=8 does not divide train_batch_size=12"):
        setting_grid(12, accumulation=(8,))


@pytest.mark.parametrize(("batch", "accumulation"), [(0, (1,)), (8, (2, 0)), (-4, (-1,))])
def test_less_than_one_is_refused(batch, accumulation):
    with pytest.raises(ValueError, match="must be at least 1"):
        setting_grid(batch, accumulation=accumulation)


@pytest.mark.parametrize(
    ("budget", "best"),
    [(None, FAST), (10**10, FAST), (4 * 10**9, FAST), (4 * 10**9 - 1, BETWEEN), (10**9, SMALL), (10**8, None)],
)
def test_the_fastest_that_fits_is_recommended(costs, budget, best):
    found = costs.fastest(budget, distillation=False)
    assert (found and found.setting) == best


def test_what_has_no_known_peak_fits_no_budget(costs):
    unknown = TrainingCost(Setting(precision="bf16"), 8, step_ms=1.0, samples_per_second=8000.0)
    assert costs.with_row(unknown).fastest() == unknown
    assert costs.with_row(unknown).fastest(10**12).setting == FAST
    assert costs.with_row(unknown).smallest().setting == SMALL


def test_training_with_a_teacher_is_recommended_apart(costs):
    assert [row.setting for row in costs.recommended()] == [FAST, TAUGHT]
    first, second = costs.recommendations(10**9)
    assert first == (
        "Fastest that fits 1.00 GB: with checkpointing, accumulation 4, fp32, sdpa attention, without distillation "
        "(800 MB, 50.00 samples/s)."
    )
    assert second.startswith("None fits 1.00 GB; the smallest there is: without checkpointing, accumulation 1")
    assert "with distillation (6.00 GB, 70.00 samples/s)" in second


def test_nothing_measured_says_so(costs):
    alone = costs.select([FAILED])
    assert alone.recommended(10**9) == ()
    assert alone.recommendations(10**9) == ["Nothing to recommend without distillation: no setting could be measured."]


def test_json_keeps_everything(costs, tmp_path):
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


def test_an_interrupted_run_goes_on(costs, tmp_path):
    new = costs.select([])
    assert new.merge_saved(tmp_path) == new
    costs.save(tmp_path)
    assert new.merge_saved(tmp_path).settings == ROWS
    assert new.merge_saved(tmp_path).measured() == {FAST, BETWEEN, SMALL, TAUGHT}  # what failed is tried again


@pytest.mark.parametrize("change", [{"batch_size": 16}, {"model": "other"}, {"environment": {"threads": 8}}])
def test_costs_of_something_else_are_not_gone_on_with(costs, tmp_path, change):
    costs.save(tmp_path)
    other = TrainingCosts(**{**vars(costs), **change, "settings": ()})
    with pytest.raises(ValueError, match=f"is of another {next(iter(change))}: give another --output_dir"):
        other.merge_saved(tmp_path)
    assert TrainingCosts.load(tmp_path) == costs


def test_a_setting_is_measured_once(costs):
    again = cost(FAST, 1, 1.0)
    assert [row.setting for row in costs.with_row(again).settings] == [BETWEEN, SMALL, TAUGHT, FAILED, FAST]
    assert costs.with_row(again).select([FAST, SMALL]).settings == (again, ROWS[2])


def test_the_table_tells_what_failed_and_what_to_take(costs):
    cells = costs.table_cells({SMALL})
    assert {len(row) for row in cells} == {len(HEADER)}
    assert cells[2] == (
        ["on", "4 x 2", "fp32", "sdpa", "off", "800 MB", "400 MB", "200 MB", "160 ms", "50.00", "recommended"]
    )
    assert cells[4][5:] == ["not measured"] * 5 + ["ended by SIGKILL: out of memory?"]
    assert costs.table(10**9).row_count == 5


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[4:], ()])
@pytest.mark.parametrize("budget", [None, 10**9])
def test_the_picture_is_drawn_whatever_was_measured(costs, tmp_path, rows, budget):
    path = plot_costs(costs.select([row.setting for row in rows]), tmp_path, budget)
    assert [each.name for each in tmp_path.iterdir()] == ["training_costs.png"]
    assert path.read_bytes().startswith(b"\x89PNG")
