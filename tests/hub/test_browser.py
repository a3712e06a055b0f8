"""A pushed classifier answers in a real browser as in Python, beside its teacher, and nothing leaves the machine."""

import re
from types import SimpleNamespace

import pytest
import torch
from reviews import flags, write_reviews
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.exporters import ExportedModel
from web import LIBRARY, RUNTIME, asked_hosts, chromium_at, needed, run_page, site_of, spaces_at

from hf_efficient import CompressionReport
from hf_efficient.hub.space import PageSources, WebModel, render_space

TEXT = "the good film number 3 was great"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """An open browser, a site that has transformers.js, and all the addresses that were asked for."""
    chromium, packages = needed()
    folder = tmp_path_factory.mktemp("site")
    with site_of(folder, packages) as url, chromium_at(chromium, tmp_path_factory.mktemp("profile")) as context:
        requests: list[str] = []
        context.on("request", lambda request: requests.append(request.url))
        yield SimpleNamespace(context=context, requests=requests, folder=folder, url=url)


@pytest.fixture(scope="module")
def pushed(browser, hub, shell, review_model_dir, tmp_path_factory):
    """A pruned student of uneven shape in 8 bits, its teacher in float, and the Space of both, pushed by the CLI."""
    place = tmp_path_factory.mktemp("pushed")
    write_reviews(place / "train.csv", 64)
    write_reviews(place / "dev.csv", 24, shift=64)
    shared = {"model_name_or_path": review_model_dir, "export": "onnx", "num_train_epochs": None}

    def done(*arguments):
        said = shell(*arguments)
        assert said.status == 0, said.err
        return said.out

    with spaces_at(hub) as made:
        floats = {"export_quantization": "none", "output_dir": place / "teacher"}
        done("export", *flags(place, **shared, **floats))
        done("push", place / "teacher", "--repo_id", "me/review_model_dir")
        done("prune", *flags(place, **shared, target_flops=1.5, output_dir=place / "student"))
        asked = ("--space", "me/reviews", "--space_teacher", "me/review_model_dir")
        sources = ("--space_library", f"{browser.url}/{LIBRARY}", "--space_runtime", f"{browser.url}/{RUNTIME}")
        said = done("push", place / "student", "--repo_id", "me/review_model_dir-small", *asked, *sources)
        assert f"me/reviews: {hub.url}/spaces/me/reviews" in said
        assert made == {"me/reviews": "static"}
    files = hub.repos["me/reviews"].files()
    (browser.folder / "index.html").write_bytes(files["index.html"])
    return SimpleNamespace(student=place / "student", teacher=review_model_dir, files=files)


def classes(model, folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        shares = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
    return dict(zip(("negative", "positive"), shares.tolist(), strict=True))


def test_the_page_says_that_there_is_no_network_then_answers_as_python_does_and_tells_the_speed(browser, pushed):
    page = browser.context.new_page()
    page.route(f"**/{LIBRARY}", lambda route: route.abort())
    page.goto(f"{browser.url}/index.html")
    assert run_page(page, TEXT)["student"]["answer"] == ""
    assert page.inner_text("#problem") == (
        f"transformers.js could not be loaded from {browser.url}/{LIBRARY}: is there a network?"
    )
    page.unroute(f"**/{LIBRARY}")
    found = run_page(page, TEXT)
    assert page.inner_text("#problem") == ""
    expected = {
        "teacher": classes(AutoModelForSequenceClassification.from_pretrained(pushed.teacher), pushed.teacher, TEXT),
        "student": classes(ExportedModel.from_pretrained(pushed.student / "onnx"), pushed.student, TEXT),
    }
    # Eight bits round otherwise in WebAssembly than in the instructions of this processor.
    for role, tolerance in (("teacher", 1e-4), ("student", 0.02)):
        card = found[role]
        assert card["classes"] == pytest.approx(expected[role], abs=tolerance)
        assert card["answer"] == max(expected[role], key=expected[role].get)
        assert card["median"] > 0
        assert re.fullmatch(r"[\d.]+ ms", card["speed"])
        assert re.fullmatch(r"median of \d+ runs after 3 to warm up, one text of 9 tokens", card["runs"])
        assert card["status"].startswith("Loaded, ")
    assert re.match(r"The student is .* times as fast.* here", page.inner_text("#verdict"))
    assert "me/review_model_dir-small-ONNX, 8-bit" in page.inner_text("#student")
    assert "me/review_model_dir, 32-bit float" in page.inner_text("#teacher")
    report = CompressionReport.load(pushed.student)
    header, body = report.table_cells()
    rows = page.eval_on_selector_all("tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))")
    assert rows == [header, *body]
    loaded = len(browser.requests)
    again = run_page(page, "the awful film number 1 was dull")
    assert again["teacher"]["answer"] == "negative"
    assert len(browser.requests) == loaded
    assert {"127.0.0.1"} == asked_hosts(browser.requests)


def test_the_space_says_what_it_shows(pushed):
    card = pushed.files["README.md"].decode()
    for line in ("sdk: static", "- me/review_model_dir-small-ONNX", "- me/review_model_dir", "- hf_efficient"):
        assert f"{line}\n" in card


def test_what_cannot_be_loaded_is_told_and_the_rest_runs(browser, hub, pushed):
    report = CompressionReport.load(pushed.student)
    sources = PageSources(f"{browser.url}/{LIBRARY}", hub.url, f"{browser.url}/{RUNTIME}")
    student, nothing = WebModel("me/review_model_dir-small-ONNX", "q8"), WebModel("me/nothing")
    render_space(browser.folder / "broken", student, nothing, report, "A teacher that is not there", sources)
    page = browser.context.new_page()
    page.goto(f"{browser.url}/broken/index.html")
    found = run_page(page, TEXT)
    assert found["teacher"]["status"].startswith("me/nothing could not be loaded. ")
    assert found["teacher"]["speed"] == ""
    assert found["student"]["answer"] == "positive"
    assert found["student"]["median"] > 0
    assert page.inner_text("#verdict") == ""
