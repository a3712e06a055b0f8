"""A Hub on this machine, and processes that use the real client on it with a token that must be seen nowhere."""

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
    """The Hub: one token for `me` and the organisation `club`, another for `other`."""
    with Hub({TOKEN: ("me", "club"), OTHERS_TOKEN: ("other",)}) as served:
        yield served


@pytest.fixture(autouse=True)
def _no_fault_is_left(hub) -> Iterator[None]:
    yield
    left = [fault for fault in hub.faults if fault.count]
    hub.faults.clear()
    assert not left


@pytest.fixture(scope="session")
def environment(hub, tmp_path_factory):
    """Makes the environment of a process that asks this Hub and knows nothing yet."""

    def make(token: str | None = None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
        place = str(tmp_path_factory.mktemp("home"))
        told = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": place,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
        }
        return {**kept, **told, **({"HF_TOKEN": token} if token else {})}

    return make


@pytest.fixture(scope="session")
def shell(environment, tmp_path_factory) -> Iterator[Shell]:
    """A shell of who may write."""
    opened = Shell(environment(TOKEN), tmp_path_factory.mktemp("shell") / "stderr")
    yield opened
    opened.process.stdin.close()
    opened.process.wait(timeout=60)


@pytest.fixture(scope="session")
def job(environment, review_model_dir, tmp_path_factory) -> SimpleNamespace:
    """`compress --push_to_hub` in two rounds of pruning, every checkpoint pushed too: its folder and what it said."""
    place = tmp_path_factory.mktemp("job")
    write_reviews(place / "train.csv", 64)
    write_reviews(place / "dev.csv", 16, shift=64)
    asked = flags(
        place,
        model_name_or_path=review_model_dir,
        num_train_epochs=2,
        target_flops=2,
        rounds=2,
        multiple_of=None,
        scheme="int8_dynamic",
        export="onnx",
        save_strategy="epoch",
        hub_strategy="every_save",
        hub_always_push=True,
        hub_model_id="me/films",
    )
    done = run(environment(TOKEN), ["-c", RUN, "compress", *asked, "--push_to_hub"], place)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(folder=place / "out", said=done.stdout + done.stderr)


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
    """A folder with a stock model alone."""
    shutil.copytree(stock, tmp_path / "small", ignore=shutil.ignore_patterns("onnx", "openvino"))
    return tmp_path / "small"
