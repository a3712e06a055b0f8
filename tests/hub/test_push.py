"""What is pushed, and that it loads and computes as the local model where this package is not installed."""

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

requested = json.loads(Path("requested.json").read_text())
texts, facts = requested["texts"], {"files": {}, "logits": {}, "pipeline": {}, "exported": {}, "graph": {}, "type": {}}
for name, trusts in (("me/films", True), ("me/stock", False)):
    model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=trusts).eval()
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trusts)
    with torch.no_grad():
        facts["logits"][name] = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.tolist()
    run = pipeline("text-classification", name, trust_remote_code=trusts)
    facts["pipeline"][name] = [[result["label"], result["score"]] for result in run(texts)]
for name, folder in requested["exports"]:
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=name == "me/films")
    model = ExportedModel.from_pretrained(name, subfolder=folder)
    outputs = model(**tokenizer(texts, padding=True, return_tensors="pt"))
    facts["exported"][f"{name}/{folder}"] = outputs.logits.tolist()
for name, file in requested["graphs"]:  # alone, as transformers.js fetches it
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
    """Both folders after a push, and the output of the commands; `compress` pushed the first one before."""
    before = {folder: hashes(folder) for folder in (job.folder, stock)}
    films = shell("push", job.folder, "--repo_id", "me/films", "--tag", "v1")
    other = shell("push", stock, "--repo_id", "me/stock")
    assert (films.status, other.status) == (0, 0), films.err + other.err
    return SimpleNamespace(films=films, stock=other, before=before)


@pytest.fixture(scope="session")
def facts(pushed, environment, tmp_path_factory):
    """Results of a process that has neither the package, nor a token, nor local files of the models."""
    folder = tmp_path_factory.mktemp("consumer")
    web = "onnx" in EXPORTS
    requested = {
        "texts": TEXTS,
        "exports": [("me/stock", format) for format in EXPORTS]
        + [(name, "onnx") for name in ("me/films", "me/films-ONNX") if web],
        "graphs": [("me/films-ONNX", "model_quantized.onnx"), ("me/stock", "model.onnx")] if web else [],
    }
    (folder / "requested.json").write_text(json.dumps(requested))
    result = run(environment(), ["-I", "-c", CONSUMER], folder)
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "facts.json").read_text())


def local_logits(folder, model):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits


def assert_close(actual, expected, atol=1e-5):
    torch.testing.assert_close(torch.tensor(actual), expected, atol=atol, rtol=atol)


def test_pushed_model_computes_as_the_local_one_without_the_package(facts, job, stock):
    assert facts["package"] is None
    for name, folder, atol in (("me/films", job.folder, 1e-3), ("me/stock", stock, 1e-5)):
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        assert_close(facts["logits"][name], local_logits(folder, model), atol)
        labels, scores = zip(*facts["pipeline"][name], strict=True)
        expected = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))(TEXTS)
        assert list(labels) == [result["label"] for result in expected]
        assert_close(scores, torch.tensor([result["score"] for result in expected]), atol)


@pytest.mark.skipif(not EXPORTS, reason="neither onnxruntime nor openvino is installed")
def test_pushed_exports_compute_as_the_local_ones(facts, job, stock):
    folders = {"me/films": job.folder, "me/films-ONNX": job.folder, "me/stock": stock}
    assert facts["exported"]
    for name, logits in facts["exported"].items():
        repo_id, _, format = name.rpartition("/")
        assert_close(logits, local_logits(folders[repo_id], load_exported(folders[repo_id] / format)), 1e-4)


@pytest.mark.skipif("onnx" not in EXPORTS, reason="onnxruntime is not installed")
def test_transformers_js_gets_a_single_graph_file_and_a_stock_config(facts, job, stock):
    graphs = facts["graph"]
    assert_close(
        graphs["me/films-ONNX/model_quantized.onnx"],
        local_logits(job.folder, load_exported(job.folder / "onnx")),
        1e-4,
    )
    assert_close(graphs["me/stock/model.onnx"], local_logits(stock, load_exported(stock / "onnx")), 1e-4)
    assert facts["type"] == {"me/films-ONNX": ["bert", {"dtype": "q8"}], "me/stock": ["bert", {"dtype": "fp32"}]}


@pytest.mark.skipif("onnx" not in EXPORTS, reason="onnxruntime is not installed")
def test_companion_repository_has_the_onnx_files_and_the_cards_link_to_each_other(pushed, hub, job):
    companion, main = hub.repos["me/films-ONNX"].files(), hub.repos["me/films"].files()
    assert companion.keys() == {
        ".gitattributes",
        "README.md",
        "config.json",
        "special_tokens_map.json",
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
    card = (job.folder / "README.md").read_text().rstrip()
    assert 'name = "out"' in card
    assert text.startswith(card.replace('name = "out"', 'name = "me/films"'))
    assert ModelCard(text).data.model_name == "out"


def test_private_files_and_the_token_are_never_pushed(pushed, hub, job):
    assert (job.folder / "_student").is_dir()
    for repo in hub.repos.values():
        for commit in repo.commits.values():
            paths = [part for path in commit.files for part in path.split("/")]
            assert not [part for part in paths if re.match(r"_|checkpoint-|\.(?!gitattributes)", part)]
            assert not [part for part in paths if re.search(r"\.(pt|pth|partial|pkl)$|^(trainer|training)_", part)]
            pickled = [path for path in commit.files if path.endswith(".bin") and "openvino" not in path]
            assert not pickled
    assert hub.storage_credentials == []  # the storage host of large files must not get the token


def test_files_for_resuming_and_hidden_files_are_not_collected(small):
    excluded = (
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
    for path in (*excluded, "notes/more.txt"):
        (small / path).parent.mkdir(parents=True, exist_ok=True)
        (small / path).write_bytes(b"x")
    assert collect_files(small).keys() - before == {"notes/more.txt"}


@pytest.mark.skipif("openvino" not in EXPORTS, reason="openvino is not installed")
def test_weights_of_openvino_are_pushed_although_they_are_bin_files(pushed, hub):
    assert "openvino/openvino_model.bin" in hub.repos["me/stock"].files()


def test_checkpoints_pushed_during_training_have_code_and_a_card(job, hub):
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
    assert shapes[0] != shapes[1]  # the second round pruned more
    assert not list(job.folder.rglob("_push-*"))


def test_push_does_not_change_the_folder_and_a_second_one_not_the_repository(pushed, hub, job, stock, shell):
    commits = {name: len(repo.commits) for name, repo in hub.repos.items()}
    again = shell("push", job.folder, "--repo_id", "me/films", "--tag", "v1")
    assert again.status == 0, again.err
    assert {name: len(repo.commits) for name, repo in hub.repos.items()} == commits
    assert pushed.before == {folder: hashes(folder) for folder in (job.folder, stock)}
    head = hub.repos["me/films"].branches["main"]
    assert hub.repos["me/films"].tags == {"v1": head}
    assert f"me/films: {hub.url}/me/films/commit/{head}" in again.out


def test_token_does_not_leak(pushed, job, hub, shell, facts):
    for secret in (TOKEN, OTHERS_TOKEN):
        assert secret.encode() not in hub.kept()
        assert secret not in job.output + shell.output + shell.log.read_text()
        for folder in (job.folder, job.folder.parent):
            assert not [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
        line = Path(f"/proc/{shell.process.pid}/cmdline")
        assert not line.exists() or secret.encode() not in line.read_bytes()


def test_dry_run_lists_files_and_sizes_without_requests(job, shell, hub, capsys):
    seen = len(hub.seen)
    assert shell("push", job.folder, "--repo_id", "club/films", "--dry_run", token=None).status == 0
    assert len(hub.seen) == seen
    assert main(["push", str(job.folder), "--repo_id", "club/films", "--dry_run"]) == 0  # offline, as all tests are
    out = capsys.readouterr().out
    size = (job.folder / "model.safetensors").stat().st_size
    assert f"{size:>14,}  model.safetensors\n" in out
    assert "_student" not in out
    assert ("club/films-ONNX: " in out) == ("onnx" in EXPORTS)
