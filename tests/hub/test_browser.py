"""A pushed classifier and its teacher predict in a real browser as in Python, and nothing leaves the machine."""

import re
from types import SimpleNamespace

import pytest
import torch
from reviews import flags, write_reviews
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.exporters import ExportedModel
from web import LIBRARY, RUNTIME, browser_requirements, chromium_at, requested_hosts, run_page, site_of, spaces_at

from hf_efficient import CompressionReport
from hf_efficient.hub.space import PageSources, WebModel, render_space

TEXT = "the good film number 3 was great"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """An open browser, a site with transformers.js, and the URLs of all requests."""
    chromium, packages = browser_requirements()
    folder = tmp_path_factory.mktemp("site")
    with site_of(folder, packages) as url, chromium_at(chromium, tmp_path_factory.mktemp("profile")) as context:
        requests: list[str] = []
        context.on("request", lambda request: requests.append(request.url))
        yield SimpleNamespace(context=context, requests=requests, folder=folder, url=url)


@pytest.fixture(scope="module")
def pushed(browser, hub, shell, review_model_dir, tmp_path_factory):
    """A pruned int8 student, its float teacher and the Space of both, pushed by the command line."""
    place = tmp_path_factory.mktemp("pushed")
    write_reviews(place / "train.csv", 64)
    write_reviews(place / "dev.csv", 24, shift=64)
    shared = {"model_name_or_path": review_model_dir, "export": "onnx", "num_train_epochs": None}

    def run_command(*arguments):
        result = shell(*arguments)
        assert result.status == 0, result.err
        return result.out

    with spaces_at(hub) as spaces:
        floats = {"export_quantization": "none", "output_dir": place / "teacher"}
        run_command("export", *flags(place, **shared, **floats))
        run_command("push", place / "teacher", "--repo_id", "me/teacher")
        run_command("prune", *flags(place, **shared, target_flops=1.5, output_dir=place / "student"))
        space = ("--space", "me/reviews", "--space_teacher", "me/teacher")
        sources = ("--space_library", f"{browser.url}/{LIBRARY}", "--space_runtime", f"{browser.url}/{RUNTIME}")
        output = run_command("push", place / "student", "--repo_id", "me/student", *space, *sources)
        assert f"me/reviews: {hub.url}/spaces/me/reviews" in output
        assert spaces == {"me/reviews": "static"}
    files = hub.repos["me/reviews"].files()
    (browser.folder / "index.html").write_bytes(files["index.html"])
    return SimpleNamespace(student=place / "student", teacher=review_model_dir, files=files)


def classes(model, folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        probabilities = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
    return dict(zip(("negative", "positive"), probabilities.tolist(), strict=True))


def test_page_reports_a_missing_network_and_then_predicts_as_python_does(browser, pushed):
    page = browser.context.new_page()
    page.route(f"**/{LIBRARY}", lambda route: route.abort())
    page.goto(f"{browser.url}/index.html")
    assert run_page(page, TEXT)["student"]["prediction"] == ""
    assert page.inner_text("#problem") == (
        f"transformers.js could not be loaded from {browser.url}/{LIBRARY}. Check your network connection."
    )
    page.unroute(f"**/{LIBRARY}")
    shown = run_page(page, TEXT)
    assert page.inner_text("#problem") == ""
    expected = {
        "teacher": classes(AutoModelForSequenceClassification.from_pretrained(pushed.teacher), pushed.teacher, TEXT),
        "student": classes(ExportedModel.from_pretrained(pushed.student / "onnx"), pushed.student, TEXT),
    }
    # int8 kernels of WebAssembly round differently from those of this processor.
    for role, tolerance in (("teacher", 1e-4), ("student", 0.02)):
        card = shown[role]
        assert card["classes"] == pytest.approx(expected[role], abs=tolerance)
        assert card["prediction"] == max(expected[role], key=expected[role].get)
        assert card["median"] > 0
        assert re.fullmatch(r"[\d.]+ ms", card["speed"])
        assert re.fullmatch(r"median of \d+ runs after 3 warm-up runs, one text of 9 tokens", card["runs"])
        assert card["status"].startswith("Loaded, ")
    assert re.match(
        r"In this browser the student is (.* times as fast as|slower than) its teacher",
        page.inner_text("#verdict"),
    )
    assert "me/student-ONNX, int8" in page.inner_text("#student")
    assert "me/teacher, float32" in page.inner_text("#teacher")
    report = CompressionReport.load(pushed.student)
    header, body = report.table_cells()
    rows = page.eval_on_selector_all("tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))")
    assert rows == [header, *body]
    loaded = len(browser.requests)
    again = run_page(page, "the awful film number 1 was dull")
    assert again["teacher"]["prediction"] == "negative"
    assert len(browser.requests) == loaded
    assert {"127.0.0.1"} == requested_hosts(browser.requests)


def test_card_of_the_space_names_the_models(pushed):
    card = pushed.files["README.md"].decode()
    for line in ("sdk: static", "- me/student-ONNX", "- me/teacher", "- hf_efficient"):
        assert f"{line}\n" in card


def test_page_reports_a_model_that_cannot_be_loaded_and_runs_the_other(browser, hub, pushed):
    report = CompressionReport.load(pushed.student)
    sources = PageSources(f"{browser.url}/{LIBRARY}", hub.url, f"{browser.url}/{RUNTIME}")
    student, missing = WebModel("me/student-ONNX", "q8"), WebModel("me/nothing")
    render_space(browser.folder / "broken", student, missing, report, "A teacher that is not there", sources)
    page = browser.context.new_page()
    page.goto(f"{browser.url}/broken/index.html")
    shown = run_page(page, TEXT)
    assert shown["teacher"]["status"].startswith("me/nothing could not be loaded. ")
    assert shown["teacher"]["speed"] == ""
    assert shown["student"]["prediction"] == "positive"
    assert shown["student"]["median"] > 0
    assert page.inner_text("#verdict") == ""
