"""What a browser needs on this machine: Spaces at the loopback Hub, a site for pages and scripts, and Chromium."""

import functools
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

LIBRARY = "node_modules/@huggingface/transformers/dist/transformers.min.js"
RUNTIME = "node_modules/onnxruntime-web/dist"
# No other host than this machine has an address.
LOCAL_ONLY = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def browser_requirements() -> tuple[str, Path]:
    """Returns the path of Chromium and the folder of npm's packages; skips the test where one is missing."""
    pytest.importorskip("playwright", reason="the extra hf_efficient[browser] is not installed")
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="the extra hf_efficient[onnx] is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    packages = Path(os.environ.get("HF_EFFICIENT_NODE_MODULES", "node_modules"))
    if not (packages.parent / LIBRARY).is_file():
        pytest.skip("HF_EFFICIENT_NODE_MODULES is not a node_modules folder with @huggingface/transformers")
    return chromium, packages


@contextmanager
def spaces_at(hub) -> Iterator[dict[str, str]]:
    """Lets the Hub have Spaces too, under other names than models; yields the SDK of each Space that is created."""
    spaces: dict[str, str] = {}
    before = [server.RequestHandlerClass for server in hub.servers]

    class Handler(before[0]):
        def parse_request(self) -> bool:
            is_valid = super().parse_request()
            if is_valid:
                self.path = re.sub(r"^/spaces/", "/", re.sub(r"^/api/spaces/", "/api/models/", self.path))
            return is_valid

        def create(self) -> dict:
            repository, request = super().create(), self._json()
            if request.get("type") == "space":
                spaces[repository["name"]] = request["sdk"]
            return repository

    for server in hub.servers:
        server.RequestHandlerClass = Handler
    yield spaces
    for server, handler in zip(hub.servers, before, strict=True):
        server.RequestHandlerClass = handler


class _Files(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@contextmanager
def site_of(folder: Path, packages: Path) -> Iterator[str]:
    """Serves `folder`, with npm's packages in it, and yields its address."""
    (folder / "node_modules").symlink_to(packages.resolve(), target_is_directory=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Files, directory=str(folder)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@contextmanager
def chromium_at(executable: str, profile: Path) -> Iterator[object]:
    """Opens Chromium without a window and with an empty profile; yields what Playwright calls a context."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            profile, executable_path=executable, headless=True, args=[*CHROMIUM_FLAGS, LOCAL_ONLY]
        )
        yield context
        context.close()


def requested_hosts(requests: list[str]) -> set[str | None]:
    """Returns the hosts of requests; `blob:` and `data:` are parts of the page itself."""
    return {urlsplit(url).hostname for url in requests if not url.startswith(("blob:", "data:"))}


def shown(page) -> dict:
    """Returns what the card of each role shows: prediction, probability of each class, milliseconds, status."""
    script = """cards => JSON.stringify(Object.fromEntries(cards.map((card) => [card.id, {
        prediction: card.querySelector(".prediction").textContent,
        classes: Object.fromEntries([...card.querySelectorAll("li")].map(
            (row) => [row.querySelector("span").textContent, Number(row.querySelector("data").value)])),
        speed: card.querySelector(".speed").textContent,
        median: Number(card.querySelector(".speed data")?.value),
        runs: card.querySelector(".runs").textContent,
        status: card.querySelector(".status").textContent,
    }])))"""
    return json.loads(page.eval_on_selector_all(".model", script))


def run_page(page, text: str) -> dict:
    """Enters a text, presses the button and returns what the page shows in the end."""
    page.fill("#text", text)
    page.click("#go")
    page.wait_for_function("() => !document.getElementById('go').disabled", timeout=60_000)
    return shown(page)
