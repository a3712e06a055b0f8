import pytest

from hf_efficient.measurement.formatting import (
    NOT_MEASURED,
    format_bytes,
    format_count,
    format_duration_ms,
    format_flops,
    format_joules,
    format_metric,
    format_number,
    format_percent,
    format_ratio,
    format_seconds,
    format_watt_hours,
)

FORMATTERS = (
    format_bytes,
    format_count,
    format_duration_ms,
    format_flops,
    format_joules,
    format_metric,
    format_number,
    format_percent,
    format_ratio,
    format_seconds,
    format_watt_hours,
)


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_none_is_not_measured(formatter):
    assert formatter(None) == NOT_MEASURED == "not measured"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (45, "45 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (412_345, "412 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),  # not 1000 kB
        (36_240_000, "36.2 MB"),
        (1_340_000_000, "1.34 GB"),
        (12_345 * 10**12, "12,300 TB"),
    ],
)
def test_bytes_have_three_digits_in_the_unit_that_suits(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("flops", "text"),
    [(0, "0 FLOP"), (3_100_000, "3.10 MFLOP"), (1_239_000_000, "1.24 GFLOP"), (45_678, "45.7 kFLOP")],
)
def test_flops_have_three_digits_in_the_unit_that_suits(flops, text):
    assert format_flops(flops) == text


@pytest.mark.parametrize(("count", "text"), [(7, "7"), (33_059, "33.1 k"), (22_713_986, "22.7 M"), (1.24e9, "1.24 B")])
def test_counts_have_three_digits(count, text):
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (3.2e-7, "0.320 µs"),
        (0.42, "420 ms"),
        (1.0, "1.00 s"),
        (59.96, "60.0 s"),
        (150.0, "2.50 min"),
        (3599.0, "1.00 h"),
        (90_000.0, "25.0 h"),
    ],
)
def test_durations_have_three_digits_in_the_unit_that_suits(seconds, text):
    assert format_seconds(seconds) == text
    assert format_duration_ms(1e3 * seconds) == text


def test_energies_have_three_digits_in_the_unit_that_suits():
    assert [format_joules(value) for value in (0.34, 12.0, 4567.0)] == ["340 mJ", "12.0 J", "4.57 kJ"]
    assert [format_watt_hours(3600 * value) for value in (0.5, 12.0, 2000.0)] == ["500 mWh", "12.0 Wh", "2.00 kWh"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (1.2, "1.20"), (999.6, "1,000"), (45_678, "45,700"), (-2.5, "-2.50")],
)
def test_numbers_have_three_digits_and_no_exponent(value, text):
    assert format_number(value) == text


def test_numbers_that_are_not_finite_are_shown_as_such():
    assert (format_number(float("nan")), format_metric(float("inf"))) == ("nan", "inf")


def test_metrics_have_four_decimals_up_to_one_and_four_digits_beyond():
    assert [format_metric(value) for value in (0.906, 1.0, -0.12, 35.7211, 1234.5)] == [
        "0.9060", "1.0000", "-0.1200", "35.72", "1,234"
    ]  # fmt: skip


def test_ratios_and_fractions():
    assert [format_ratio(value) for value in (2.5, 12.34, 0.5)] == ["2.50x", "12.3x", "0.500x"]
    assert [format_percent(value) for value in (0.987, 1.0)] == ["98.7%", "100.0%"]
