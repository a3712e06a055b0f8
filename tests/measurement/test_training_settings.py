import pytest

from hf_efficient.measurement.training_settings import Setting, parse_budget, setting_grid


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
def test_budget_is_a_number_and_a_unit(text, size):
    assert parse_budget(text) == size


@pytest.mark.parametrize("text", ["8", "GB", "8 apples", "-8GB", "0GB", "0.0MB", "8GB RAM", "", "1e3MB", "8,5GB"])
def test_other_budgets_are_refused_with_examples(text):
    with pytest.raises(ValueError, match=r"is not an amount of memory.*8GB, 500MB or 8GiB") as error:
        parse_budget(text)
    assert repr(text) in str(error.value)


def test_full_grid_has_64_settings():
    settings = setting_grid(32)
    assert len(set(settings)) == len(settings) == 64
    assert settings[0] == Setting()
    assert [setting.accumulation for setting in settings[:4]] == [1, 2, 4, 8]
    assert not any(setting.distillation for setting in settings[:32])


def test_accumulations_that_do_not_divide_the_batch_are_left_out():
    settings = setting_grid(12, (False,), (1, 2, 4, 8, 1), ("fp32",), ("sdpa",), (False,))
    assert [setting.accumulation for setting in settings] == [1, 2, 4]
    with pytest.raises(ValueError, match="accumulation=8 does not divide train_batch_size=12"):
        setting_grid(12, accumulation=(8,))


@pytest.mark.parametrize(("batch", "accumulation"), [(0, (1,)), (8, (2, 0)), (-4, (-1,))])
def test_numbers_below_one_are_refused(batch, accumulation):
    with pytest.raises(ValueError, match="must be at least 1"):
        setting_grid(batch, accumulation=accumulation)


def test_settings_are_described_in_words():
    assert Setting(checkpointing=True, accumulation=4, precision="bf16", distillation=True).describe() == (
        "with checkpointing, accumulation 4, bf16, sdpa attention, with distillation"
    )
