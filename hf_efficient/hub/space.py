"""A static Space on the Hub that runs teacher and student next to each other in the browser."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import HfApi, RepoFile, SpaceCard, SpaceCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from hf_efficient.errors import UserError
from hf_efficient.hub.config import ONNX_REPOSITORY_SUFFIX, PageSources, PushConfig, SpaceConfig, check_repo_name
from hf_efficient.hub.error_messages import explain_hub_errors
from hf_efficient.hub.files import collect_files
from hf_efficient.hub.onnx_repository import transformers_js_files
from hf_efficient.measurement.report import REPORT_NAME, CompressionReport

REQUIRED_FILES = ("config.json", "tokenizer.json")
# The data types of transformers.js, and the files that it loads for them.
ONNX_FILES = {"fp32": "onnx/model.onnx", "q8": "onnx/model_quantized.onnx"}
SPACE_TASKS = ("text-classification", "regression")
TEMPLATES = Path(__file__).parent / "templates"
PAGE_TEMPLATE, CARD_TEMPLATE = "space.html", "space_card.md"


@dataclass(frozen=True)
class WebModel:
    """A model on the Hub that transformers.js can load, in the data type "fp32" or "q8".

    Raises UserError if the data type is unknown or the name is not a repository name.
    """

    repo_id: str
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        check_repo_name(self.repo_id, "repo_id")
        if self.dtype not in ONNX_FILES:
            raise UserError(f"dtype={self.dtype!r} is unknown: give one of {', '.join(ONNX_FILES)}")


def check_space_folder(folder: Path, config: PushConfig) -> None:
    """Raise UserError if a Space cannot show the model in `folder` once `config` has pushed it. Works offline."""
    if config.private or config.revision or config.create_pr:
        raise UserError("a Space loads the public model on main: leave out private, revision and create_pr")
    if not (folder / REPORT_NAME).is_file():
        raise UserError(
            f"{str(folder)!r} has no {REPORT_NAME}, which a Space shows: create it with `hf-efficient compress`"
        )
    check_space_task(CompressionReport.load(folder))
    contents = collect_files(folder)
    if not transformers_js_files(contents):
        raise UserError(
            f"{str(folder)!r} holds no model that a browser can run: export one with `--export onnx`, and pip "
            "install onnx"
        )
    if "tokenizer.json" not in contents:
        raise UserError(f"{str(folder)!r} has no tokenizer.json, which transformers.js needs: save a fast tokenizer")


def push_space(folder: Path, repo_id: str, config: SpaceConfig, token: str | None = None) -> str:
    """Create or update the Space for the model in `folder`, which browsers load from `repo_id`; return its URL.

    Raises UserError if a model is private or lacks files that transformers.js needs, PushError if the Hub refuses the
    push or cannot be reached.
    """
    api, space = HfApi(library_name="hf_efficient", token=token), str(config.space)
    with explain_hub_errors(folder, space), tempfile.TemporaryDirectory() as space_dir:
        student = resolve_web_model(api, repo_id)
        teacher = resolve_web_model(api, config.space_teacher) if config.space_teacher else None
        name = repo_id.rpartition("/")[2].removesuffix(ONNX_REPOSITORY_SUFFIX)
        title = f"{name} and its teacher" if teacher else f"{name} in your browser"
        report = CompressionReport.load(folder)
        render_space(Path(space_dir), student, teacher, report, title, config.sources(api.endpoint))
        api.create_repo(space, repo_type="space", space_sdk="static", exist_ok=True)
        api.upload_folder(repo_id=space, repo_type="space", folder_path=space_dir, commit_message="Show the model")
    return f"{api.endpoint}/spaces/{space}"


def resolve_web_model(api: HfApi, repo_id: str) -> WebModel:
    """Return the model that transformers.js loads from a repository: in float32 if there is such a file, else in int8.

    Where both files are equal both are int8, as `push_folder` stores them.

    Raises UserError if the repository is private or files are missing.
    """
    if api.model_info(repo_id).private:
        raise UserError(f"{repo_id} is private, and browsers of visitors cannot load it: make it public on the Hub")
    candidate_files = [*REQUIRED_FILES, *ONNX_FILES.values()]
    remote_files = {
        file.path: file for file in api.get_paths_info(repo_id, candidate_files) if isinstance(file, RepoFile)
    }
    float_file, int8_file = (remote_files.get(path) for path in ONNX_FILES.values())
    if not set(REQUIRED_FILES) <= remote_files.keys() or (float_file is None and int8_file is None):
        raise UserError(
            f"{repo_id} lacks files that transformers.js needs ({', '.join(REQUIRED_FILES)}, "
            f"{' or '.join(ONNX_FILES.values())}): push a folder that `hf-efficient export --export onnx` wrote, or "
            "give another repository"
        )
    are_equal = float_file is not None and int8_file is not None and float_file.blob_id == int8_file.blob_id
    return WebModel(repo_id, "q8" if float_file is None or are_equal else "fp32")


def check_space_task(report: CompressionReport) -> None:
    """Raise UserError if the page cannot show the predictions of models for this task."""
    if report.task not in SPACE_TASKS:
        raise UserError(f"a Space shows models for {' and '.join(SPACE_TASKS)}, and this one is for {report.task}")


def render_space(
    folder: Path,
    student: WebModel,
    teacher: WebModel | None,
    report: CompressionReport,
    title: str,
    sources: PageSources | None = None,
) -> None:
    """Write `index.html` and `README.md` of a static Space into `folder`.

    The page loads the models in the visitor's browser and shows their predictions for a text, how long those take
    there, and the table of `report`. Without a teacher it shows the student alone.

    Raises UserError if the task is not one of `SPACE_TASKS`.
    """
    check_space_task(report)
    models = {"teacher": teacher, "student": student}
    shown = [{"role": role, **asdict(model)} for role, model in models.items() if model is not None]
    sources = PageSources() if sources is None else sources
    folder.mkdir(parents=True, exist_ok=True)
    page = _page(report, title, shown, sources)
    (folder / "index.html").write_text(page, encoding="utf-8")
    _card(title, [model["repo_id"] for model in shown]).save(folder / "README.md")


def _page(report: CompressionReport, title: str, models: Sequence[dict[str, str]], sources: PageSources) -> str:
    """Return the HTML of the page."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(), undefined=StrictUndefined
    )
    header, body = report.table_cells()
    return templates.get_template(PAGE_TEMPLATE).render(
        title=title,
        models=models,
        settings={"models": models, **asdict(sources)},
        hub=sources.hub.rstrip("/"),
        header=header,
        body=body,
        dataset=report.dataset,
        conditions=report.conditions(),
        version=(report.environment.get("packages") or {}).get("hf_efficient"),
    )


def _card(title: str, repo_ids: list[str]) -> SpaceCard:
    """Return the card of the Space."""
    data = SpaceCardData(
        title=title,
        sdk="static",
        app_file="index.html",
        models=repo_ids,
        tags=["hf_efficient", "transformers.js"],
        emoji="⚖️",
        colorFrom="blue",
        colorTo="green",
    )
    return SpaceCard.from_template(data, template_path=str(TEMPLATES / CARD_TEMPLATE), title=title, models=repo_ids)
