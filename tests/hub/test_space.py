"""The page and the card of a Space show the report, whatever it holds; what cannot be shown is refused."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from huggingface_hub import RepoFile, SpaceCard
from test_model_card import row

from hf_efficient import CompressionReport
from hf_efficient.hub.config import TRANSFORMERS_JS_URL, PushConfig, SpaceConfig
from hf_efficient.hub.space import PageSources, WebModel, check_space_folder, render_space, resolve_web_model
from hf_efficient.measurement.report_rows import with_ratios

STUDENT, TEACHER = WebModel("me/small-films", "q8"), WebModel("you/films")
HTML_INJECTION = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'


class Page(HTMLParser):
    """A parsed page: its tags, the cells of its table and the texts of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.scripts, self.titles, self.links = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag == "a":
            self.links.append(dict(attributes)["href"])

    def handle_data(self, data):
        if self.lasttag == "script" and data.strip():
            self.scripts.append(data)
        elif self.lasttag in ("td", "th") and data.strip():
            self.cells[-1][-1] += data
        elif self.lasttag == "h1" and data.strip():
            self.titles.append(data)

    @property
    def settings(self):
        return json.loads(self.scripts[0])


@pytest.fixture
def report():
    models = with_ratios([row("teacher", 0.9, 50.0, 8_000_000), row("student", 0.891, 20.0, 2_000_000)], "accuracy")
    return CompressionReport("text-classification", "films", "accuracy", models=models)


@pytest.fixture
def write(tmp_path, report):
    def write(student=STUDENT, teacher=TEACHER, title="Films", sources=None, **changes):
        render_space(tmp_path / "space", student, teacher, replace(report, **changes), title, sources)
        return Page((tmp_path / "space" / "index.html").read_text())

    return write


def test_page_shows_the_table_of_the_report(write, report):
    header, body = report.table_cells()
    assert write().cells == [header, *body]


def test_page_has_the_models_and_their_addresses(write):
    page = write()
    assert page.settings == {
        "models": [
            {"role": "teacher", "repo_id": "you/films", "dtype": "fp32"},
            {"role": "student", "repo_id": "me/small-films", "dtype": "q8"},
        ],
        "library": TRANSFORMERS_JS_URL,
        "hub": "https://huggingface.co",
        "runtime": None,
    }
    assert re.search(r"@huggingface/transformers@\d+$", TRANSFORMERS_JS_URL)
    assert page.links[:2] == ["https://huggingface.co/you/films", "https://huggingface.co/me/small-films"]
    elsewhere = PageSources("https://example.org/t.js", "http://127.0.0.1:9/", "https://example.org/wasm/")
    page = write(sources=elsewhere)
    assert page.settings["library"] == "https://example.org/t.js"
    assert page.links[0] == "http://127.0.0.1:9/you/films"


def test_page_without_a_teacher_shows_the_student_alone(write, tmp_path):
    page = write(teacher=None)
    assert [model["role"] for model in page.settings["models"]] == ["student"]
    assert page.tags.count("article") == 1
    assert SpaceCard.load(tmp_path / "space" / "README.md").data.models == ["me/small-films"]


def test_titles_and_reports_are_escaped(write, report, tmp_path):
    harmless = write()
    models = [
        replace(each, name=f"{each.name} {HTML_INJECTION}", metrics={HTML_INJECTION: 0.5}) for each in report.models
    ]
    page = write(
        title=HTML_INJECTION,
        dataset=HTML_INJECTION,
        metric=HTML_INJECTION,
        models=models,
        environment={"processor": HTML_INJECTION},
    )
    assert sorted(set(page.tags)) == sorted(set(harmless.tags))
    assert page.tags.count("script") == 2
    assert page.titles == [HTML_INJECTION]
    assert page.cells[0][1] == f"teacher {HTML_INJECTION}"
    assert page.scripts[-1] == harmless.scripts[-1]
    assert SpaceCard.load(tmp_path / "space" / "README.md").data.title == HTML_INJECTION


def test_card_names_the_models_and_the_static_sdk(write, tmp_path):
    write(title="Films: small and large")
    card = SpaceCard.load(tmp_path / "space" / "README.md")
    assert (card.data.sdk, card.data.title) == ("static", "Films: small and large")
    assert card.data.models == ["you/films", "me/small-films"]
    assert card.data.tags == ["hf_efficient", "transformers.js"]
    assert "runs `you/films` and `me/small-films` in your browser" in card.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WebModel("me/films", "int8"), "dtype='int8' is unknown: give one of fp32, q8"),
        (lambda: WebModel("me/../films"), "is not a repository name"),
        (lambda: PageSources(library="javascript:alert(1)"), "library='javascript:alert(1)' is not a web address"),
        (lambda: SpaceConfig("films"), "space='films' is not a full repository name: give user/name"),
        (lambda: SpaceConfig("me/films", "a/b/c"), "space_teacher='a/b/c' is not a full repository name"),
        (lambda: SpaceConfig("me/films", space_runtime="dist"), "runtime='dist' is not a web address"),
        (lambda: SpaceConfig(space_teacher="me/films"), "describe a Space, and none is named: give space=user/name"),
    ],
)
def test_invalid_names_and_addresses_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_other_tasks_are_refused(write, tmp_path):
    with pytest.raises(ValueError, match="a Space shows models for text-classification and regression"):
        write(task="summarization")
    assert not (tmp_path / "space").exists()


@pytest.mark.parametrize("setting", [{"private": True}, {"revision": "side"}, {"create_pr": True}])
def test_a_model_that_is_not_public_on_main_is_refused(setting, tmp_path):
    with pytest.raises(ValueError, match="a Space loads the public model on main"):
        check_space_folder(tmp_path, PushConfig("me/films", **setting))


def test_folder_without_a_report_or_export_is_refused(tmp_path, report):
    with pytest.raises(ValueError, match=r"has no compression_report\.json"):
        check_space_folder(tmp_path, PushConfig("me/films"))
    report.save(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="no model that a browser can run: export one with `--export onnx`"):
        check_space_folder(tmp_path, PushConfig("me/films"))


class FakeApi:
    """The Hub's client for one repository; `blobs` maps ONNX files to their hashes."""

    def __init__(self, private=False, **blobs):
        self.private = private
        self.blobs = {
            "config.json": "c",
            "tokenizer.json": "t",
            **{f"onnx/{name}.onnx": b for name, b in blobs.items()},
        }

    def model_info(self, _repo_id):
        return self

    def get_paths_info(self, _repo_id, paths):
        return [RepoFile(path=path, size=1, oid=self.blobs[path]) for path in paths if path in self.blobs]


@pytest.mark.parametrize(
    ("blobs", "dtype"),
    [
        ({"model": "a"}, "fp32"),
        ({"model": "a", "model_quantized": "b"}, "fp32"),
        ({"model": "a", "model_quantized": "a"}, "q8"),
        ({"model_quantized": "b"}, "q8"),
    ],
)
def test_resolve_web_model_takes_the_dtype_of_the_files(blobs, dtype):
    assert resolve_web_model(FakeApi(**blobs), "me/films") == WebModel("me/films", dtype)


@pytest.mark.parametrize(
    ("api", "message"),
    [
        (FakeApi(), "me/films lacks files that transformers.js needs"),
        (FakeApi(private=True, model="a"), "me/films is private"),
    ],
)
def test_resolve_web_model_refuses_what_a_browser_cannot_load(api, message):
    with pytest.raises(ValueError, match=message):
        resolve_web_model(api, "me/films")
