from dataclasses import replace

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from hf_efficient.measurement.intervals import Interval
from hf_efficient.measurement.report_plot import plot_report, role_colours
from hf_efficient.measurement.report_rows import GenerationLatency, Latency, ModelRow, with_ratios
from hf_efficient.measurement.training_curve import TrainingPoint

LONG_NAME = "distilbert-base-uncased-finetuned-sst-2-english"
CONDITIONS = "Latency: median of one forward pass at batch 1 x 128 tokens, on a processor. " * 3


def draw(models, metric="accuracy", title="reviews"):
    figure = plot_report(with_ratios(models, metric), metric, title, CONDITIONS)
    FigureCanvasAgg(figure).draw()
    return figure


def texts_of(figure):
    """Return the texts that are drawn: all but tick labels of hidden axes or beyond their limits."""
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += axes.texts
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = axis.get_view_interval()
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in texts if text.get_text().strip()]


def shown(figure):
    return [text.get_text() for text in texts_of(figure)]


def assert_readable(figure):
    """Check that no text overlaps another or leaves the picture."""
    renderer = figure.canvas.get_renderer()
    width, height = figure.canvas.get_width_height()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts_of(figure)]
    for index, (text, box) in enumerate(boxes):
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
        for other_text, other in boxes[index + 1 :]:
            overlap_width = min(box.x1, other.x1) - max(box.x0, other.x0)
            overlap_height = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(overlap_width, overlap_height) <= 1, (text, other_text)


def variants(count, name=""):
    return [
        ModelRow(
            f"{name} openvino_int8_weight_only {number}",
            "teacher" if number == 0 else f"student {number}",
            {"accuracy": 0.9 - 0.01 * number},
            bytes_on_disk=int(268e6 / (1 + number)),
            latency_ms=Latency(60.0 / (1 + number), 70.0, 1, 128, 2, "openvino int8_weight_only"),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_up_to_eight_models_with_long_names_do_not_overlap(count):
    assert_readable(draw(variants(count, LONG_NAME)))


def test_bars_show_values_with_units_and_ratios(teacher_row, student_row):
    texts = shown(draw([student_row, teacher_row]))
    assert texts.index("large") < texts.index("small")  # the teacher first
    assert {"Accuracy", "Latency (ms)", "Size on disk (MB)"} <= set(texts)
    assert {"0.9000", "80.0 ms", "440 MB"} <= set(texts)
    assert {"0.8100", "90.0% kept", "32.0 ms", "2.50x faster", "80.0 MB", "5.50x smaller"} <= set(texts)
    assert CONDITIONS.strip() in [" ".join(text.split()) for text in texts]


def test_share_that_is_kept_has_its_interval_in_a_second_line(teacher_row, student_row):
    interval = Interval(0.85, 0.952, 0.95, 872, "paired bootstrap")
    figure = draw([teacher_row, replace(student_row, retained_intervals={"accuracy": interval})])
    assert "90.0% kept\n85.0 to 95.2" in shown(figure)
    assert_readable(figure)


@pytest.mark.parametrize("has_loss", [True, False])
def test_course_of_the_training_is_drawn_round_after_round(teacher_row, student_row, has_loss):
    curve = [
        TrainingPoint(round, 20 * index, 0.8 + 0.01 * index, 0.5 - 0.01 * index if has_loss else None)
        for round in (1, 2)
        for index in range(4)
    ]
    models = with_ratios([teacher_row, student_row], "accuracy")
    figure = plot_report(models, "accuracy", "reviews", CONDITIONS, curve)
    FigureCanvasAgg(figure).draw()
    assert_readable(figure)
    assert "Agreement with the teacher on held-out training rows" in shown(figure)
    axes = next(axes for axes in figure.axes if axes.get_ylabel() == "agreement")
    drawn = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 4]
    assert drawn == [[0, 20, 40, 60], [60, 80, 100, 120]]
    loss_axes = next(axes for axes in figure.axes if axes.get_ylabel() == "loss")
    assert loss_axes.axison == has_loss


def test_models_that_are_slower_and_larger_say_so(teacher_row, student_row):
    slow = replace(student_row, bytes_on_disk=880_000_000, latency_ms=replace(student_row.latency_ms, p50=100.0))
    assert {"1.25x slower", "2.00x larger"} <= set(shown(draw([teacher_row, slow])))
    assert {"same speed", "same size"} <= set(shown(draw([teacher_row, replace(teacher_row, role="copy")])))


def test_what_was_not_measured_is_written_so(teacher_row, unmeasured_row):
    figure = draw([teacher_row, unmeasured_row])
    assert shown(figure).count("not measured") == 3
    assert_readable(figure)


def test_panel_without_a_metric_is_left_out(teacher_row):
    assert "Accuracy" not in shown(draw([teacher_row], metric=None))
    assert "My metric" in shown(draw([teacher_row], metric="my_metric"))


def test_metrics_that_are_negative_or_undefined_have_no_fraction(teacher_row, student_row):
    rows = [
        replace(teacher_row, metrics={"spearman": -0.1}),
        replace(student_row, metrics={"spearman": 0.3}),
        replace(student_row, role="quantized", metrics={"spearman": float("nan")}),
    ]
    figure = draw(rows, "spearman")
    assert {"Spearman correlation", "-0.1000", "0.3000", "nan"} <= set(shown(figure))
    assert not [text for text in shown(figure) if "kept" in text]
    assert_readable(figure)


def test_models_of_the_same_name_have_a_bar_each(teacher_row, student_row):
    axes = draw([teacher_row, replace(student_row, name="large")]).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.9, 0.81]


def test_unit_is_in_the_title_where_all_labels_share_it(teacher_row, student_row):
    slow = replace(teacher_row, latency_ms=replace(teacher_row.latency_ms, p50=1200.0))
    texts = shown(draw([slow, student_row]))
    assert {"Latency", "1.20 s", "32.0 ms"} <= set(texts)


def test_generation_has_its_own_panel(teacher_row, student_row):
    rows = [
        replace(teacher_row, generation_ms=GenerationLatency(28.7, 9.6, 20, 16, 16)),
        replace(student_row, generation_ms=GenerationLatency(13.8, 3.8, 20, 16, 16)),
    ]
    figure = draw(rows)
    assert {"Generation (ms)", "211 ms", "86.0 ms", "2.45x faster"} <= set(shown(figure))
    assert_readable(figure)


def test_structure_is_drawn_below_the_bars(teacher_row, student_row):
    figure = draw([teacher_row, student_row])
    assert {"Attention heads per layer", "large: 12", "small: 2", "large: 192", "small: 40"} <= set(shown(figure))
    assert_readable(figure)


def test_report_without_models_can_be_drawn():
    assert_readable(draw([]))


def test_roles_keep_their_colours():
    assert role_colours(["teacher", "student"])["student"] == role_colours(["student", "onnx"])["student"]
    others = role_colours(["teacher", *(f"student {number}" for number in range(7))])
    assert len(set(others.values())) == 8
    assert len(role_colours([f"model {number}" for number in range(20)])) == 20
