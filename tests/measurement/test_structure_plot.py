import pytest
from matplotlib.text import Text

from hf_efficient.measurement.canvas import Canvas
from hf_efficient.measurement.report_rows import ModelRow
from hf_efficient.measurement.structure_plot import StructurePlot

COLOURS = {"teacher": "grey", "student": "blue", "quantized": "green"}


def encoder_decoder(encoder, decoder, heads=12):
    """Return a structure that keeps these layers of an encoder and a decoder."""

    def layer(source, kinds):
        return {"source": source, "heads": {kind: list(range(heads)) for kind in kinds}, "neurons": {"ff": 100}}

    return {
        "decoder": [layer(source, ("attention", "cross_attention")) for source in decoder],
        "encoder": [layer(source, ("attention",)) for source in encoder],
    }


def row(role, structure):
    return ModelRow(role, role, structure=structure)


def draw(plot):
    canvas = Canvas(12, 4)
    plot.plot(canvas, 0.3, 0.3, 11)
    return canvas.figure, [text.get_text() for text in canvas.figure.findobj(Text) if text.get_text()]


def test_layers_are_grouped_by_stack_and_removed_ones_marked():
    teacher, student = encoder_decoder(range(4), range(2)), encoder_decoder((0, 3), (1,), heads=5)
    figure, texts = draw(StructurePlot.of([row("teacher", teacher), row("student", student)], COLOURS))
    heads, neurons = figure.axes
    assert [bar.get_height() for bar in heads.patches] == [12, 12, 12, 12, 24, 24, 5, 0, 0, 5, 0, 10]
    assert [bar.get_height() for bar in neurons.patches] == [100] * 6 + [100, 0, 0, 100, 0, 100]
    assert {"teacher: 96", "student: 20", "teacher: 600", "student: 300", "removed"} <= set(texts)
    assert {"encoder layer", "decoder layer"} <= set(texts)
    assert sum(text.get_text() == "✕" for text in heads.texts) == 3


def test_models_that_share_a_structure_are_drawn_once():
    teacher, student = encoder_decoder(range(2), ()), encoder_decoder((0,), ())
    plot = StructurePlot.of([row("teacher", teacher), row("student", student), row("quantized", student)], COLOURS)
    assert plot.names == ["teacher", "student"]
    assert plot.colours == ["grey", "blue"]


def test_structures_without_a_difference_are_not_drawn():
    structure = encoder_decoder(range(2), ())
    assert StructurePlot.of([row("teacher", structure), row("quantized", structure)], COLOURS) is None
    assert StructurePlot.of([row("teacher", None), row("student", None)], COLOURS) is None
    assert StructurePlot.of([], COLOURS) is None


def test_structure_of_a_single_model_is_drawn():
    _, texts = draw(StructurePlot.of([row("student", encoder_decoder(range(2), ()))], COLOURS))
    assert {"student: 24", "layer"} <= set(texts)
    assert "removed" not in texts


@pytest.mark.parametrize(("layers", "count"), [(12, 12), (48, 24)])
def test_not_every_layer_of_a_deep_model_has_a_number(layers, count):
    figure, _ = draw(StructurePlot.of([row("student", encoder_decoder(range(layers), ()))], COLOURS))
    assert len(figure.axes[0].get_xticks()) == count


def test_long_names_take_another_line_of_the_legend():
    rows = [
        ModelRow(f"a rather long name of model {number}", f"role {number}", structure=encoder_decoder((0, number), ()))
        for number in range(1, 7)
    ]
    plot = StructurePlot.of(rows, {row.role: "grey" for row in rows})
    few = StructurePlot.of(rows[:2], {row.role: "grey" for row in rows})
    assert plot.height(11) > few.height(11)
    assert all(name.endswith("…") for name in plot.names)
