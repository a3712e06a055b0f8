"""A page that runs teacher and student side by side in a browser, for a static Space on the Hub."""

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
# The names of transformers.js for the forms of a model, and the files that it takes for them.
ONNX_FILES = {"fp32": "onnx/model.onnx", "q8": "onnx/model_quantized.onnx"}
SPACE_TASKS = ("text-classification", "regression")
TEMPLATES = Path(__file__).parent / "templates"
PAGE, CARD = "space.html", "space_card.md"


@dataclass(frozen=True)
class WebModel:
    """A model on the Hub that transformers.js can load, and in which form: "fp32" or "q8".

    Raises ValueError: the form is unknown, or the name is none of a repository.
    """

    repo_id: str
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        check_repo_name(self.repo_id, "repo_id")
        if self.dtype not in ONNX_FILES:
            raise UserError(f"dtype={self.dtype!r} is unknown: give one of {', '.join(ONNX_FILES)}")


def check_space_folder(folder: Path, config: PushConfig) -> None:
    """Raises ValueError: a Space could not show what `folder` holds, pushed as `config` says. Nothing is asked for."""
    if config.private or config.revision or config.create_pr:
        raise UserError("a Space shows what everybody finds on main: leave out private, revision and create_pr")
    if not (folder / REPORT_NAME).is_file():
        raise UserError(
            f"{str(folder)!r} has no {REPORT_NAME}, which a Space shows: let `hf-efficient compress` make it"
        )
    check_space_task(CompressionReport.load(folder))
    contents = collect_files(folder)
    if not transformers_js_files(contents):
        raise UserError(
            f"{str(folder)!r} holds no model that a browser can run: make one by `--export onnx`, and pip install onnx"
        )
    if "tokenizer.json" not in contents:
        raise UserError(f"{str(folder)!r} has no tokenizer.json, which transformers.js reads: save a fast tokenizer")


def push_space(folder: Path, repo_id: str, config: SpaceConfig, token: str | None = None) -> str:
    """Make or renews the Space for the model in `folder`, which browsers load from `repo_id`; returns its address.

    Raises ValueError: a model is private or lacks what transformers.js reads. Raises PushError: the Hub refused,
    failed, or was not reached.
    """
    api, space = HfApi(library_name="hf_efficient", token=token), str(config.space)
    with explain_hub_errors(folder, space), tempfile.TemporaryDirectory() as made:
        student = resolve_web_model(api, repo_id)
        teacher = resolve_web_model(api, config.space_teacher) if config.space_teacher else None
        name = repo_id.rpartition("/")[2].removesuffix(ONNX_REPOSITORY_SUFFIX)
        title = f"{name} beside its teacher" if teacher else f"{name} in your browser"
        report = CompressionReport.load(folder)
        render_space(Path(made), student, teacher, report, title, config.sources(api.endpoint))
        api.create_repo(space, repo_type="space", space_sdk="static", exist_ok=True)
        api.upload_folder(repo_id=space, repo_type="space", folder_path=made, commit_message="Show the model")
    return f"{api.endpoint}/spaces/{space}"


def resolve_web_model(api: HfApi, repo_id: str) -> WebModel:
    """Return what transformers.js finds under a name on the Hub: float where there is a float form, else 8 bits.

    Where both of its files are the same they are in 8 bits, as `push` makes them.

    Raises ValueError: it is private, or files are missing.
    """
    if api.model_info(repo_id).private:
        raise UserError(f"{repo_id} is private, and no visitor's browser may load it: make it public on the Hub")
    asked = [*REQUIRED_FILES, *ONNX_FILES.values()]
    held = {each.path: each for each in api.get_paths_info(repo_id, asked) if isinstance(each, RepoFile)}
    float_form, eight_bits = (held.get(path) for path in ONNX_FILES.values())
    if not set(REQUIRED_FILES) <= held.keys() or not (float_form or eight_bits):
        raise UserError(
            f"{repo_id} lacks what transformers.js reads ({', '.join(REQUIRED_FILES)}, {' or '.join(ONNX_FILES.values())}): push a "
            "folder that `hf-efficient export --export onnx` wrote, or name another repository"
        )
    same = float_form and eight_bits and float_form.blob_id == eight_bits.blob_id
    return WebModel(repo_id, "fp32" if float_form and not same else "q8")


def check_space_task(report: CompressionReport) -> None:
    """Raises ValueError: the page cannot show what a model of this task answers."""
    if report.task not in SPACE_TASKS:
        raise UserError(
            f"a Space shows models that label a text ({', '.join(SPACE_TASKS)}), and this is for {report.task}"
        )


def render_space(
    folder: Path,
    student: WebModel,
    teacher: WebModel | None,
    report: CompressionReport,
    title: str,
    sources: PageSources | None = None,
) -> None:
    """Write `index.html` and `README.md` of a static Space into `folder`.

    The page loads the models in the visitor's browser, shows what they answer to a text and how long that takes
    there, and below it the table of `report`. Without a teacher the student stands alone.

    Raises ValueError: the task is not one of labelling a text.
    """
    check_space_task(report)
    models = {"teacher": teacher, "student": student}
    shown = [{"role": role, **asdict(model)} for role, model in models.items() if model is not None]
    sources = sources or PageSources()
    folder.mkdir(parents=True, exist_ok=True)
    page = _page(report, title, shown, sources)
    (folder / "index.html").write_text(page, encoding="utf-8")
    _card(title, [model["repo_id"] for model in shown]).save(folder / "README.md")


def _page(report: CompressionReport, title: str, models: Sequence[dict[str, str]], sources: PageSources) -> str:
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(), undefined=StrictUndefined
    )
    header, body = report.table_cells()
    return templates.get_template(PAGE).render(
        title=title,
        models=models,
        settings={"models": models, **asdict(sources)},
        hub=sources.hub.rstrip("/"),
        header=header,
        body=body,
        dataset=report.dataset,
        circumstances=report.conditions(),
        version=(report.environment.get("packages") or {}).get("hf_efficient"),
    )


def _card(title: str, repo_ids: list[str]) -> SpaceCard:
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
    return SpaceCard.from_template(data, template_path=str(TEMPLATES / CARD), title=title, models=repo_ids)
