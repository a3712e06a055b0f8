"""The model card of a compressed model, rendered from its report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from transformers import PreTrainedConfig
from transformers.utils import logging

from hf_efficient.files.replacing import replacing
from hf_efficient.hub.citations import list_citations
from hf_efficient.hub.config import is_repo_name
from hf_efficient.hub.escaping import escape_markdown, escape_names
from hf_efficient.hub.reader_files import complete_reader_files
from hf_efficient.hub.sentence_snippets import serving_snippet
from hf_efficient.hub.snippets import export_snippet, required_packages, usage_snippet, uses_torchao
from hf_efficient.hub.usage import (
    EXPORT_RUNTIMES,
    generates_text,
    is_pruned,
    loading_code,
    needs_remote_code,
    read_config,
    sentence_class,
)
from hf_efficient.measurement.formatting import (
    format_number,
    format_percent,
    format_range,
    format_seconds,
    format_watt_hours,
)
from hf_efficient.measurement.recommendation import student_forms
from hf_efficient.measurement.report import PICTURE_NAME, STUDENT_FOLDER, CompressionReport
from hf_efficient.measurement.report_rows import ModelRow

logger = logging.get_logger(__name__)

# Metadata that a compressed model inherits from the card of its base model.
INHERITED_METADATA = ("license", "license_name", "license_link", "language")
TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"


def write_report_and_card(
    report: CompressionReport, folder: str | os.PathLike[str], base_model: str | None = None
) -> None:
    """Write `compression_report.json`, its plot and the card `README.md` into `folder`.

    The other files there are completed for servers and other libraries.
    """
    report.save(folder)  # first, so that what fails below loses no measurement
    complete_reader_files(Path(folder))
    with replacing(Path(folder) / "README.md") as temporary:
        build_model_card(report, folder, base_model).save(temporary)
    report.plot(folder)


def build_model_card(
    report: CompressionReport, folder: str | os.PathLike[str], base_model: str | None = None
) -> ModelCard:
    """Return the card of the model in `folder`: metadata with evaluation results, and a text rendered from `report`.

    It shows the picture that `CompressionReport.plot` draws, which may be drawn after it.
    `base_model` is named in the metadata if it is a repository on the Hub, and not if it is a local path.
    """
    config, folder = read_config(folder), Path(folder)
    is_repository = bool(base_model) and not Path(str(base_model)).exists() and is_repo_name(str(base_model))
    public_base = base_model if is_repository else None
    final, title, shown = report.final, folder.resolve().name, escape_names(report)
    results = [
        EvalResult(
            task_type=report.task or "other",
            dataset_type=report.dataset or "unknown",
            dataset_name=report.dataset or "unknown",
            metric_type=name,
            metric_value=value,
        )
        for name, value in final.metrics.items()
        if name != "loss"
    ]
    dataset = (report.configs.get("data") or {}).get("dataset_name")
    summaries = {"model": "A fine-tuned model.", "teacher": "A fine-tuned model with exports for other runtimes."}
    data = ModelCardData(
        library_name="sentence-transformers" if sentence_class(config, folder) else "transformers",
        pipeline_tag=report.task if report.task != "regression" else "text-classification",
        base_model=public_base,
        base_model_relation=("quantized" if uses_torchao(config) or _has_codebooks(config) else "finetune")
        if public_base
        else None,
        tags=["hf_efficient", *sorted(set(report.configs) & {"pruning", "distillation", "quantization"})],
        metrics=[name for name in final.metrics if name != "loss"],
        datasets=[dataset] if dataset else None,
        model_name=title,
        eval_results=results or None,
        co2_eq_emissions=_emissions(report),
        **_base_model_metadata(base_model),
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=escape_markdown(title),
        summary=summaries.get(final.role) or _summary(shown),
        table=shown.markdown(),
        conditions=shown.conditions(),
        evaluation=_evaluation_note(shown),
        picture=PICTURE_NAME,
        stages=[*(shown.stages or ["fine-tuned, not compressed"]), *_training_cost_lines(report)],
        requirements=" ".join(required_packages(config, folder)),
        snippet=usage_snippet(config, report, folder),
        loading_note=_loading_note(config, report),
        exports=[
            (*EXPORT_RUNTIMES[model.role], model.role, export_snippet(config, folder, model.role))
            for model in report.models
            if model.role in EXPORT_RUNTIMES
        ],
        serving_code=serving_snippet(config, folder),
        recommendation=_recommendation_note(shown),
        loading_code="\n".join(_recommended_code(report, folder)),
        generates_text=generates_text(config),
        limitations=_limitations(shown),
        version=(report.environment.get("packages") or {}).get("hf_efficient"),
        citations=list_citations(report.configs),
    )


def _base_model_metadata(base_model: str | None) -> dict[str, Any]:
    """Return license and languages from the card of `base_model`, a folder or a repository; nothing if it has none."""
    if not base_model or not (Path(base_model).exists() or is_repo_name(base_model)):
        return {}
    folder = Path(base_model)
    if folder.exists() and not (folder / "README.md").exists():
        return {}  # a relative path may look like the name of a repository
    try:
        source = folder / "README.md" if folder.exists() else base_model
        base_metadata = ModelCard.load(source, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError, HfHubHTTPError) as error:
        logger.info(f"the card of {base_model!r} cannot be read, so the new card has no license: {error}")
        return {}
    return {name: base_metadata[name] for name in INHERITED_METADATA if base_metadata.get(name)}


def _emissions(report: CompressionReport) -> dict[str, Any] | None:
    """Return the CO2 emissions of training in grams for the metadata; None if they were not measured."""
    if report.training is None or report.training.co2_grams is None:
        return None
    environment = report.environment
    return {
        "emissions": report.training.co2_grams,
        "source": "codecarbon",
        "training_type": "fine-tuning",
        "hardware_used": environment.get("accelerator") or environment.get("processor"),
    }


def _training_cost_lines(report: CompressionReport) -> list[str]:
    """Return a line on the time and energy of training; none if they are not known."""
    if report.training is None:
        return []
    duration, energy = format_seconds(report.training.seconds), report.training.energy_joules
    if energy is None:
        return [f"pruning and training took {duration}; energy was not measured, since no counter was available"]
    return [f"pruning and training took {duration} and {format_watt_hours(energy)}"]


def _has_codebooks(config: PreTrainedConfig) -> bool:
    return bool(getattr(config, "codebooks", None))


def _loading_note(config: PreTrainedConfig, report: CompressionReport) -> str:
    """Return sentences on what loading the model needs and on running it fast."""
    notes = []
    if is_pruned(config):
        reason = (
            "The weights are stored as indices into codebooks" if _has_codebooks(config) else "Layers differ in width"
        )
        notes.append(
            f"{reason}, which the classes of Transformers do not support: `trust_remote_code=True` runs the Python "
            "files in this repository. It is not needed after `import hf_efficient`."
        )
    elif needs_remote_code(config):
        notes.append("The model has a class of its own: `trust_remote_code=True` runs the code that its config names.")
    else:
        notes.append("The model loads as a class of Transformers, without code from this repository.")
    if uses_torchao(config):
        notes.append(
            "The int8 weights are torchao tensors. "
            + (
                "They do not speed up generation; `torch.compile` speeds up a single forward pass only."
                if generates_text(config)
                else "They are fast with `torch.compile(model, dynamic=True)` only, which needs a C++ compiler."
            )
        )
    if getattr(config, "int8", None):
        notes.append(
            "The 8-bit weights are plain integers, packed for the processor when the model first runs, without a "
            "compiler or another library."
        )
    return " ".join(notes)


def _summary(report: CompressionReport) -> str:
    """Return targets that were missed, and a sentence that compares the recommended form with its teacher."""
    return " ".join(filter(None, [report.missed_targets(), _comparison(report), report.slower_form_note()]))


def _comparison(report: CompressionReport) -> str:
    """Return a sentence on the recommended form, or on the model in the folder, if the teacher is recommended."""
    row: ModelRow = report.headline_row
    if row.role == "teacher" and report.final.role != "teacher":
        row = report.final
    ratios, parts = row.ratios, []
    if ratios.size is not None:
        is_smaller = ratios.size >= 1
        factor = format_number(ratios.size if is_smaller else 1 / ratios.size)
        parts.append(f"is {factor} times {'smaller' if is_smaller else 'larger'}")
    if row is report.final and report.ships_slower_form:
        pass
    elif ratios.generation is not None:  # matters more than a forward pass
        parts.append(f"generates text {format_number(ratios.generation)} times as fast")
    elif ratios.speedup is not None:
        parts.append(f"is {format_number(ratios.speedup)} times as fast")
    if ratios.metric_retained is not None:
        interval = row.retained_intervals.get(str(report.metric))
        range = "" if interval is None else f" ({format_range(interval.low, interval.high)})"
        parts.append(f"keeps {format_percent(ratios.metric_retained)}{range} of its {report.metric}")
    if not parts:
        return "A compressed model."
    listed = " and ".join([part for part in (", ".join(parts[:-1]), parts[-1]) if part])
    form = f", in the form recommended here ({row.name})" if row is not report.final else ""
    return f"A compressed model that, compared with its teacher, {listed}{form}."


def _recommendation_note(report: CompressionReport) -> str:
    """Return what was asked and reached, and which form to use on the machine of the measurements."""
    return " ".join(filter(None, [report.target_note(), report.recommendation()]))


def _recommended_code(report: CompressionReport, folder: Path) -> list[str]:
    """Return the code that loads the recommended form, if there are other forms; see `loading_code`."""
    return loading_code(report, folder, folder.resolve().name) if report.recommendation() else []


def _evaluation_note(report: CompressionReport) -> str:
    """Return sentences on how the metrics were measured; empty if there are none."""
    if report.dataset is None or not report.final.metrics:
        return ""
    batch = (report.configs.get("training") or {}).get("per_device_eval_batch_size")
    batches = f" and in batches of {batch}" if batch else ""
    split = f"the evaluation split of {report.dataset}"
    note = f" Metrics were measured on {split}, each model in its own precision{batches}."
    quantization = report.configs.get("quantization") or {}
    if str(quantization.get("scheme")).startswith("int8") and quantization.get("torchao", True):
        note += " With int8, predictions that are almost a tie can depend on the other texts of a batch."
    return note


def _limitations(report: CompressionReport) -> str:
    """Return sentences on what the measurements do not show."""
    sentences = ["Quality was not measured."]
    if report.dataset and report.final.metrics:
        sentences = [f"Quality was measured on the evaluation split of {report.dataset} only."]
    if "pruning" in report.configs:
        sentences.append(
            "Pruning keeps what matters for the training data, so the loss of quality on other data or in other "
            "languages can be larger than the table shows."
        )
    sentences.append("Speed was measured on one machine, named above; on another a different form can be the fastest.")
    if report.final.role == "quantized" and student_forms(report.models)[0].role == "student":
        sentences.append(f"The folder `{STUDENT_FOLDER}` of the float student is kept by the run and not pushed.")
    return " ".join(sentences)
