"""Names of datasets, metrics, models, stages and folders that would be code or markup where they are shown."""

import ast
import re
import shutil

import pytest
import transformers
import yaml
from markdown_it import MarkdownIt

from hf_efficient import CompressionReport
from hf_efficient.commands.job import print_report
from hf_efficient.hub.model_card import write_report_and_card
from hf_efficient.hub.usage import auto_class_name, quoted
from hf_efficient.measurement.report_rows import Latency, ModelRow, with_ratios

NAMES = {
    "rich markup": "[/red][bold]x[/bold]",
    "rich link": "[link=https://x.y]a[/link]",
    "mathtext": "$x^$ \\frac{",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "html comment": "<!-- hidden",
    "html entity": "&lt;b&gt;&#60;i&#62;",
    "link": "[a](javascript:alert(1)) ![b](https://x.y/z.png)",
    "table": "a | b | c\\|",
    "heading": "\n# Title\n\n## Usage",
    "fence": "```\n```python\nimport os",
    "front matter": "x\n---\nlicense: mit\n---\n",
    "yaml": "a: [b, {c: *d",
    "yaml tag": "!!python/object/apply:os.system ['true']",
    "double quote": '"); import os; ("',
    "single quote": "'); import os; ('",
    "backslash": "a\\",
    "backslash and quote": 'a\\"); import os  # ',
    "template": "{{ 7 * 7 }}{% for %}",
    "terminal": "\x1b[31mred\x1b]0;title\x07\x9b2J\r\b",
    "right to left": "\u202egnp.exe\u2066\u200b",
    "surrogate": "caf\udce9",
    "line separators": "a\u2028b\u2029c\x85d\x0ce",
    "format": "%s {0} {name!r} ${HOME} $(true) `true`",
    "long": "x" * 200,
}
DRAWN = ("mathtext", "terminal", "surrogate", "long")


@pytest.fixture(scope="module")
def model_dir(make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("named") / "plain"
    make_model().save_pretrained(folder)
    return folder


def report_named(name):
    latency = Latency(1.0, 1.0, 8, 64, 2, "torch")
    rows = [ModelRow(name, role, {name: 0.5}, latency_ms=latency) for role in ("teacher", "student", "onnx")]
    return CompressionReport("text-classification", name, name, (name,), with_ratios(rows, name))


def card_named(name, model_dir, tmp_path):
    """Return metadata and text of the card of a folder and a report with this name."""
    folder = tmp_path / name.replace("/", ".")
    shutil.copytree(model_dir, folder)
    write_report_and_card(report_named(name), folder)
    assert CompressionReport.load(folder).dataset == name
    text = (folder / "README.md").read_bytes().decode()  # no lone surrogates
    empty, metadata, body = re.split(r"^---\n", text, maxsplit=2, flags=re.MULTILINE)
    assert empty == ""
    return yaml.safe_load(metadata), body


@pytest.fixture
def no_picture(monkeypatch):
    monkeypatch.setattr(CompressionReport, "plot", lambda *_: None)


@pytest.fixture
def plain_card(model_dir, tmp_path, no_picture):
    return card_named("plain", model_dir, tmp_path)[1]


def tags(markdown):
    return re.findall(r"<([a-z0-9]+)", MarkdownIt("commonmark").enable("table").render(markdown))


def python_blocks(markdown):
    return [
        token.content for token in MarkdownIt().parse(markdown) if token.type == "fence" and token.info == "python"
    ]


def without_texts(code):
    """Return the syntax tree of `code` with its strings left out."""
    return re.sub(r"value='[^']*'|value=\"[^\"]*\"", "value", ast.dump(ast.parse(code)))


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_card(name, model_dir, tmp_path, plain_card):
    expected = plain_card
    metadata, body = card_named(name, model_dir, tmp_path / "hostile")
    dataset = metadata["model-index"][0]["results"][0]["dataset"]
    assert dataset["name"] == dataset["type"]
    assert "license" not in metadata
    assert metadata["tags"] == ["hf_efficient"]
    assert re.findall(r"^#+ (?!plain).*$", expected, re.MULTILINE) == re.findall(r"^## .*$", body, re.MULTILINE)
    assert tags(body) == tags(expected)
    blocks = python_blocks(body)
    assert len(blocks) == len(python_blocks(expected)) > 1
    for block, plain in zip(blocks, python_blocks(expected), strict=True):
        assert without_texts(block) == without_texts(plain)
    assert all(len(line.split(" | ")) == 4 for line in body.split("\n") if line.startswith("| latency"))


@pytest.mark.parametrize("name", DRAWN)
def test_picture(name, tmp_path):
    assert report_named(NAMES[name]).plot(tmp_path).stat().st_size > 10_000


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_screen(name, capsys):
    print_report(report_named(name))
    screen = capsys.readouterr().out
    assert screen.encode()
    assert not set(screen) & set("\x1b\x07\x9b\r\b\u202e\u2066\udce9")
    if name.isprintable() and name.isascii() and " " not in name:
        assert name[:10] in screen


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_quoted_name_is_one_python_string_that_can_be_printed(name):
    code = quoted(name)
    assert ast.literal_eval(code) == name
    assert code[0] == code[-1] == '"'
    assert code.isprintable()


@pytest.mark.parametrize(
    "architecture", ["BertForX\nimport os", "X(", "", "NopeForNothing", "BertForSequenceClassification; import os"]
)
def test_architecture_is_no_code(architecture):
    config = transformers.BertConfig(architectures=[architecture], auto_map={"AutoModel;x": f"a.{architecture}"})
    assert auto_class_name(config) == "AutoModel"
