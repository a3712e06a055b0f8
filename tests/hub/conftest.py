"""A Hub on this machine, and processes that use the real client with a token that must not leak."""

import os
import shutil
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from clients import EXPORTS, OTHERS_TOKEN, RUN, TOKEN, Shell, run
from loopback import Hub
from reviews import flags, write_reviews
from transformers import AutoModelForSequenceClassification

from hf_efficient import export


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    """The Hub: one token for `me` and the organization `club`, another for `other`."""
    with Hub({TOKEN: ("me", "club"), OTHERS_TOKEN: ("other",)}) as served:
        yield served


@pytest.fixture(autouse=True)
def _every_fault_happened(hub) -> Iterator[None]:
    yield
    unused = [fault for fault in hub.faults if fault.count]
    hub.faults.clear()
    assert not unused


@pytest.fixture(scope="session")
def environment(hub, tmp_path_factory):
    """Returns the environment variables of a process that uses this Hub with an empty cache."""

    def make(token: str | None = None) -> dict[str, str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path_factory.mktemp("home")),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
        }
        return {**others, **settings, **({"HF_TOKEN": token} if token else {})}

    return make


@pytest.fixture(scope="session")
def shell(environment, tmp_path_factory) -> Iterator[Shell]:
    """A process that runs commands with a token with write access."""
    opened = Shell(environment(TOKEN), tmp_path_factory.mktemp("shell") / "stderr")
    yield opened
    opened.process.stdin.close()
    opened.process.wait(timeout=60)


@pytest.fixture(scope="session")
def job(environment, review_model_dir, tmp_path_factory) -> SimpleNamespace:
    """`compress --push_to_hub` with two rounds of pruning that pushes every checkpoint: its folder and its output."""
    folder = tmp_path_factory.mktemp("job")
    write_reviews(folder / "train.csv", 64)
    write_reviews(folder / "dev.csv", 16, shift=64)
    arguments = flags(
        folder,
        model_name_or_path=review_model_dir,
        num_train_epochs=2,
        target_flops=2,
        rounds=2,
        multiple_of=None,
        scheme="int8_dynamic",
        export="onnx" if "onnx" in EXPORTS else None,
        save_strategy="epoch",
        hub_strategy="every_save",
        hub_always_push=True,
        hub_model_id="me/films",
    )
    result = run(environment(TOKEN), ["-c", RUN, "compress", *arguments, "--push_to_hub"], folder)
    assert result.returncode == 0, result.stderr
    return SimpleNamespace(folder=folder / "out", output=result.stdout + result.stderr)


@pytest.fixture(scope="session")
def stock(review_model_dir, tmp_path_factory):
    """A folder with a model of a stock class, exported in float32."""
    folder = tmp_path_factory.mktemp("stock") / "out"
    shutil.copytree(review_model_dir, folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    for format in EXPORTS:
        export(model, folder / format, format)
    return folder


@pytest.fixture
def small(stock, tmp_path):
    """A folder with a stock model without exports."""
    shutil.copytree(stock, tmp_path / "small", ignore=shutil.ignore_patterns("onnx", "openvino"))
    return tmp_path / "small"
