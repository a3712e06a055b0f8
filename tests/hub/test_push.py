"""What is pushed, and that it answers as the local model does where this package is not installed."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from clients import EXPORTS, OTHERS_TOKEN, TOKEN, hashes, run
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hf_efficient import load_exported
from hf_efficient.cli import main
from hf_efficient.hub.files import collect_files

TEXTS = ["the good film number 3 was fine", "the awful film was dull", "a film"]
# Run where `hf_efficient` cannot be imported, with an empty cache and no token.
CONSUMER = """
import json, sys
sys.modules["hf_efficient"] = None  # importing it raises ImportError
from pathlib import Path
import torch
from huggingface_hub import hf_hub_download, list_repo_files
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.exporters import ExportedModel

asked = json.loads(Path("asked.json").read_text())
texts, facts = asked["texts"], {"files": {}, "logits": {}, "pipeline": {}, "exported": {}, "graph": {}, "type": {}}
for name, trusts in (("me/films", True), ("me/stock", False)):
    model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=trusts).eval()
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trusts)
    with torch.no_grad():
        facts["logits"][name] = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.tolist()
    run = pipeline("text-classification", name, trust_remote_code=trusts)
    facts["pipeline"][name] = [[found["label"], found["score"]] for found in run(texts)]
for name, folder in asked["exports"]:
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=name == "me/films")
    model = ExportedModel.from_pretrained(name, subfolder=folder)
    found = model(**tokenizer(texts, padding=True, return_tensors="pt"))
    facts["exported"][f"{name}/{folder}"] = found.logits.tolist()
for name, file in asked["graphs"]:  # alone, as transformers.js fetches it
    import onnxruntime
    graph = hf_hub_download(name, f"onnx/{file}", cache_dir=f"alone-{name.replace('/', '-')}")
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    batch = AutoTokenizer.from_pretrained(name)(texts, padding=True, return_tensors="np")
    names = [each.name for each in session.get_inputs()]
    facts["graph"][f"{name}/{file}"] = session.run(["logits"], {name: batch[name] for name in names})[0].tolist()
    config = AutoConfig.from_pretrained(name).to_dict()
    facts["type"][name] = [config["model_type"], config["transformers.js_config"]]
facts["package"] = sys.modules["hf_efficient"]
Path("facts.json").write_text(json.dumps(facts))
"""


@pytest.fixture(scope="session")
def pushed(job, stock, shell, hub):
    """Both folders after a push, and what the commands said; the first one was pushed by `compress` already."""
    before = {folder: hashes(folder) for folder in (job.folder, stock)}
    films = shell("push", job.folder, "--repo_id", "me/films", "--tag", "v1")
    other = shell("push", stock, "--repo_id", "me/stock")
    assert (films.status, other.status) == (0, 0), films.err + other.err
    return SimpleNamespace(films=films, stock=other, before=before)


@pytest.fixture(scope="session")
def facts(pushed, environment, tmp_path_factory):
    """What a process found that has neither the package, nor a token, nor a file of the models."""
    place = tmp_path_factory.mktemp("consumer")
    web = "onnx" in EXPORTS
    asked = {
        "texts": TEXTS,
        "exports": [("me/stock", format) for format in EXPORTS]
        + [(name, "onnx") for name in ("me/films", "me/films-ONNX") if web],
        "graphs": [("me/films-ONNX", "model_quantized.onnx"), ("me/stock", "model.onnx")] if web else [],
    }
    (place / "asked.json").write_text(json.dumps(asked))
    done = run(environment(), ["-I", "-c", CONSUMER], place)
    assert done.returncode == 0, done.stderr
    return json.loads((place / "facts.json").read_text())


def local(folder, model):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits


def assert_close(found, expected, atol=1e-5):
    torch.testing.assert_close(torch.tensor(found), expected, atol=atol, rtol=atol)


def test_what_was_pushed_answers_as_the_local_model_where_the_package_is_not_installed(facts, job, stock):
    assert facts["package"] is None
    for name, folder, atol in (("me/films", job.folder, 1e-3), ("me/stock", stock, 1e-5)):
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        assert_close(facts["logits"][name], local(folder, model), atol)
        labels, scores = zip(*facts["pipeline"][name], strict=True)
        expected = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))(TEXTS)
        assert list(labels) == [found["label"] for found in expected]
        assert_close(scores, torch.tensor([found["score"] for found in expected]), atol)


@pytest.mark.skipif(not EXPORTS, reason="neither onnxruntime nor openvino is installed")
def test_exports_answer_as_the_local_ones(facts, job, stock):
    folders = {"me/films": job.folder, "me/films-ONNX": job.folder, "me/stock": stock}
    assert facts["exported"]
    for name, found in facts["exported"].items():
        repo_id, _, format = name.rpartition("/")
        assert_close(found, local(folders[repo_id], load_exported(folders[repo_id] / format)), 1e-4)


@pytest.mark.skipif("onnx" not in EXPORTS, reason="onnxruntime is not installed")
def test_a_reader_in_a_browser_finds_one_whole_graph_and_a_stock_config(facts, job, stock):
    found = facts["graph"]
    assert_close(
        found["me/films-ONNX/model_quantized.onnx"], local(job.folder, load_exported(job.folder / "onnx")), 1e-4
    )
    assert_close(found["me/stock/model.onnx"], local(stock, load_exported(stock / "onnx")), 1e-4)
    assert facts["type"] == {"me/films-ONNX": ["bert", {"dtype": "q8"}], "me/stock": ["bert", {"dtype": "fp32"}]}


@pytest.mark.skipif("onnx" not in EXPORTS, reason="onnxruntime is not installed")
def test_the_companion_holds_what_others_read_and_the_cards_point_at_each_other(pushed, hub, job):
    companion, main = hub.repos["me/films-ONNX"].files(), hub.repos["me/films"].files()
    assert companion.keys() == {
        ".gitattributes",
        "README.md",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        *(f"onnx/{name}" for name in ("config.json", "export.json", "model.onnx", "model.onnx.data")),
        "onnx/model_quantized.onnx",
    }
    assert companion["onnx/model_quantized.onnx"] == companion["onnx/model.onnx"]
    card = ModelCard(companion["README.md"].decode())
    assert (card.data.base_model, card.data.library_name) == ("me/films", "transformers.js")
    assert card.data.pipeline_tag == "text-classification"
    assert "onnx" in card.data.tags
    assert "https://huggingface.co/me/films)" in card.text
    text = main["README.md"].decode()
    assert text.count("https://huggingface.co/me/films-ONNX") == 1
    local = (job.folder / "README.md").read_text().rstrip()
    assert 'name = "out"' in local
    assert text.startswith(local.replace('name = "out"', 'name = "me/films"'))
    assert ModelCard(text).data.model_name == "out"


def test_what_must_not_leave_never_does(pushed, hub, job):
    assert (job.folder / "_student").is_dir()
    for repo in hub.repos.values():
        for commit in repo.commits.values():
            paths = [part for path in commit.files for part in path.split("/")]
            assert not [part for part in paths if re.match(r"_|checkpoint-|\.(?!gitattributes)", part)]
            assert not [part for part in paths if re.search(r"\.(pt|pth|partial|pkl)$|^(trainer|training)_", part)]
            pickled = [path for path in commit.files if path.endswith(".bin") and "openvino" not in path]
            assert not pickled
    assert hub.told_storage == []  # where large files lie is none of the token's business


def test_what_lies_beside_a_model_stays_here(small):
    stays = (
        "_student/model.safetensors",
        "_round-1/checkpoint-3/model.safetensors",
        "checkpoint-3/model.safetensors",
        "onnx.partial/model.onnx",
        "README.md.partial",
        "training_args.bin",
        "pytorch_model.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "last.ckpt",
        "data.pkl",
        "trainer_state.json",
        "gates.safetensors",
        "projections.safetensors",
        "runs/events.out.tfevents.1.machine",
        ".cache/huggingface/token",
        ".env",
        "__pycache__/code.pyc",
    )
    before = collect_files(small).keys()
    for path in (*stays, "notes/more.txt"):
        (small / path).parent.mkdir(parents=True, exist_ok=True)
        (small / path).write_bytes(b"x")
    assert collect_files(small).keys() - before == {"notes/more.txt"}


@pytest.mark.skipif("openvino" not in EXPORTS, reason="openvino is not installed")
def test_weights_of_openvino_are_no_pickles(pushed, hub):
    assert "openvino/openvino_model.bin" in hub.repos["me/stock"].files()


def test_checkpoints_pushed_while_training_hold_code_and_a_card(job, hub):
    history = [commit for commit in hub.repos["me/films"].history() if commit.title.startswith("Training in progress")]
    assert len(history) == 2  # an epoch in each round
    shapes = []
    for commit in reversed(history):
        files = {path: file.data for path, file in commit.files.items()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "pruned_bert.py"} <= files.keys()
        code = {name for name in files if name.endswith(".py")}
        assert code == {path.name for path in job.folder.glob("*.py")}
        assert "in training" in files["README.md"].decode()
        shapes.append(json.loads(files["config.json"])["structure"])
    assert shapes[0] != shapes[1]  # the second round cut further
    assert not list(job.folder.rglob("_push-*"))


def test_a_push_changes_nothing_here_and_a_second_one_nothing_there(pushed, hub, job, stock, shell):
    commits = {name: len(repo.commits) for name, repo in hub.repos.items()}
    again = shell("push", job.folder, "--repo_id", "me/films", "--tag", "v1")
    assert again.status == 0, again.err
    assert {name: len(repo.commits) for name, repo in hub.repos.items()} == commits
    assert pushed.before == {folder: hashes(folder) for folder in (job.folder, stock)}
    head = hub.repos["me/films"].branches["main"]
    assert hub.repos["me/films"].tags == {"v1": head}
    assert f"me/films: {hub.url}/me/films/commit/{head}" in again.out


def test_the_token_is_seen_nowhere(pushed, job, hub, shell, facts):
    for secret in (TOKEN, OTHERS_TOKEN):
        assert secret.encode() not in hub.kept()
        assert secret not in job.said + shell.said + shell.log.read_text()
        for folder in (job.folder, job.folder.parent):
            assert not [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
        line = Path(f"/proc/{shell.process.pid}/cmdline")
        assert not line.exists() or secret.encode() not in line.read_bytes()


def test_a_dry_run_names_files_and_sizes_and_asks_nobody(job, shell, hub, capsys):
    seen = len(hub.seen)
    assert shell("push", job.folder, "--repo_id", "club/films", "--dry_run", token=None).status == 0
    assert len(hub.seen) == seen
    assert main(["push", str(job.folder), "--repo_id", "club/films", "--dry_run"]) == 0  # offline, as all tests are
    out = capsys.readouterr().out
    size = (job.folder / "model.safetensors").stat().st_size
    assert f"{size:>14,}  model.safetensors\n" in out
    assert "_student" not in out
    assert ("club/films-ONNX: " in out) == ("onnx" in EXPORTS)
