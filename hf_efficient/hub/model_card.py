"""A folder that speaks for itself: report, picture and card beside the weights; and its way to the Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

from hf_efficient.hub.citations import list_citations
from hf_efficient.hub.files import REPOSITORY_NAME_COMMENT
from hf_efficient.measurement.report import PICTURE_NAME, CompressionReport
from hf_efficient.models import FAMILIES

logger = logging.get_logger(__name__)

# How each export is called, and what it needs besides transformers and torch.
EXPORT_RUNTIMES = {"onnx": ("ONNX Runtime", "onnx onnxruntime"), "openvino": ("OpenVINO", "openvino")}
# What a compressed model takes over from the card of the model that it is made of.
INHERITED_METADATA = ("license", "license_name", "license_link", "language")
TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"


def write_report_and_card(
    report: CompressionReport, folder: str | os.PathLike[str], base_model: str | None = None
) -> None:
    """Write the report (`compression_report.json` and `.png`) and the card `README.md` beside the model."""
    report.plot(folder)
    path = Path(folder) / "README.md"
    beside = path.with_suffix(".md.partial")
    build_model_card(report, folder, base_model).save(beside)
    beside.replace(path)
    report.save(folder)  # last: where it lies, a run is finished


def build_model_card(
    report: CompressionReport, folder: str | os.PathLike[str], base_model: str | None = None
) -> ModelCard:
    """Return the card of the model in `folder`: metadata with a model index, and a text rendered from `report`.

    `base_model` is mentioned when it is a name on the Hub; a path on this machine is nobody's business.
    """
    config = AutoConfig.from_pretrained(folder)
    folder = Path(folder)
    public_base = base_model if base_model and not Path(base_model).exists() and base_model.count("/") <= 1 else None
    final, title = report.final, folder.resolve().name
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
    told = {"model": "A fine-tuned model, measured.", "teacher": "A model in forms for several runtimes, measured."}
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=report.task if report.task != "regression" else "text-classification",
        base_model=public_base,
        base_model_relation=("quantized" if _is_quantized(config) or _has_codebooks(config) else "finetune")
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
        title=title,
        summary=told.get(final.role) or _summary(report),
        table=report.markdown(),
        circumstances=report.conditions(),
        evaluation=_evaluation_note(report),
        picture=PICTURE_NAME if (folder / PICTURE_NAME).exists() else None,
        stages=[*(report.stages or ["Fine-tuned, not compressed."]), *_training_cost_lines(report)],
        requirements=" ".join(_requirements(config)),
        snippet=_usage_snippet(config, report, folder),
        loading_note=_loading_note(config, report),
        exports=[
            (EXPORT_RUNTIMES[model.role], model.role) for model in report.models if model.role in EXPORT_RUNTIMES
        ],
        writes=_generates_text(config),
        limits=_limitations(report),
        version=(report.environment.get("packages") or {}).get("hf_efficient"),
        citations=list_citations(report.configs),
    )


def _base_model_metadata(base_model: str | None) -> dict[str, Any]:
    """Return what the card of `base_model`, a folder or a name on the Hub, says of licence and languages."""
    if not base_model:
        return {}
    try:
        path = Path(base_model) / "README.md"
        told = ModelCard.load(path if path.exists() else base_model, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError, HfHubHTTPError) as error:
        logger.info(f"the card of {base_model!r} cannot be read, so no licence is taken over from it: {error}")
        return {}
    return {name: told[name] for name in INHERITED_METADATA if told.get(name)}


def _emissions(report: CompressionReport) -> dict[str, Any] | None:
    """Return the CO2 of training in grams for the card's metadata, where energy was counted and the country known."""
    if report.training is None or report.training.co2_grams is None:
        return None
    where = report.environment
    return {
        "emissions": report.training.co2_grams,
        "source": "codecarbon",
        "training_type": "fine-tuning",
        "hardware_used": where.get("accelerator") or where.get("processor"),
    }


def _training_cost_lines(report: CompressionReport) -> list[str]:
    """Return how long the training took and, where it was counted, what energy it took."""
    if report.training is None:
        return []
    energy = report.training.energy_joules
    counted = f"{energy / 3.6e6:.3g} kWh" if energy else "energy not measured, no counter could be read"
    return [f"pruning and training it took {report.training.seconds / 60:.1f} minutes; {counted}"]


def needs_remote_code(config: PreTrainedConfig) -> bool:
    """Whether a model with this config is one of our classes rather than a stock one."""
    return any(isinstance(config, family.pruned_config_class) for family in FAMILIES.values())


def _requirements(config: PreTrainedConfig) -> list[str]:
    return ["transformers", "torch"] + (["torchao"] if _is_quantized(config) else [])


def _is_quantized(config: PreTrainedConfig) -> bool:
    return getattr(config, "quantization_config", None) is not None


def _has_codebooks(config: PreTrainedConfig) -> bool:
    return bool(getattr(config, "codebooks", None))


def _generates_text(config: PreTrainedConfig) -> bool:
    return (config.architectures or [""])[0].endswith("ForConditionalGeneration")


def _is_compiled(report: CompressionReport) -> bool:
    return any(model.role == "compiled" for model in report.models)


def _auto_classes() -> dict[str, str]:
    """Return the name of the Auto class of every class, stock and pruned, by the class's name."""
    return {
        cls.__name__: str(pruned._auto_class)
        for family in FAMILIES.values()
        for stock, pruned in family.pruned_classes.items()
        for cls in (stock, pruned)
    }


def _usage_snippet(config: PreTrainedConfig, report: CompressionReport, folder: Path) -> str:
    architecture = (config.architectures or [""])[0]
    head = architecture.partition("For")[2]
    auto = _auto_classes().get(architecture, f"AutoModelFor{head}" if head else "AutoModel")
    remote = ", trust_remote_code=True" if needs_remote_code(config) else ""
    writes, compiles = _generates_text(config), _is_compiled(report) and not _generates_text(config)
    lines = ["import torch"] if compiles else []
    lines += [
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'name = "{folder.resolve().name}"{REPOSITORY_NAME_COMMENT}',
        f"tokenizer = AutoTokenizer.from_pretrained(name{remote})",
        f"model = {auto}.from_pretrained(name{remote}).eval()",
    ]
    if compiles:
        lines += ["model = torch.compile(model, dynamic=True)  # the first call takes a while, the others are fast"]
    if writes:
        lines += [
            'inputs = tokenizer("a text to read", return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))",
        ]
    if head == "SequenceClassification":
        lines += [
            'inputs = tokenizer("a text to classify", return_tensors="pt")',
            "print(model.config.id2label[model(**inputs).logits.argmax(-1).item()])",
        ]
    return "\n".join(lines)


def _loading_note(config: PreTrainedConfig, report: CompressionReport) -> str:
    notes = []
    if needs_remote_code(config):
        reason = "Weights are indices into codebooks" if _has_codebooks(config) else "The layers differ in width"
        notes.append(
            f"{reason}, which no stock class can hold: `trust_remote_code=True` runs the Python "
            "files of this repository; with `import hf_efficient` beforehand it is not needed."
        )
    else:
        notes.append("The shape is one that a stock class of Transformers holds: no code of this repository is run.")
    if _is_quantized(config):
        notes.append(
            "The 8-bit weights are torchao's. "
            + (
                "Writing a text they are not faster than float; what `torch.compile` speeds up is one forward pass."
                if _generates_text(config)
                else "`torch.compile` makes them fast; it needs a C++ compiler."
                if _is_compiled(report)
                else "`torch.compile(model, dynamic=True)` makes them fast given a C++ compiler: not measured."
            )
        )
    return " ".join(notes)


def _summary(report: CompressionReport) -> str:
    final = report.final
    parts = []
    if final.ratios.size:
        parts.append(f"{final.ratios.size:.1f} times smaller than its teacher")
    if final.ratios.generation:  # what one waits for of a model that writes
        parts.append(f"writes {final.ratios.generation:.2f} times as fast")
    elif final.ratios.speedup:
        parts.append(f"{final.ratios.speedup:.2f} times as fast")
    if final.ratios.metric_retained:
        parts.append(f"with {final.ratios.metric_retained:.1%} of its {report.metric}")
    return f"A compressed model: {', '.join(parts)}." if parts else "A compressed model."


def _evaluation_note(report: CompressionReport) -> str:
    """Return a sentence on how the metrics came about; empty where there are none."""
    if report.dataset is None or not report.final.metrics:
        return ""
    batch = (report.configs.get("training") or {}).get("per_device_eval_batch_size")
    how = f", in batches of {batch} in the order of the file" if batch else ""
    told = f" Metrics: on the evaluation split of {report.dataset}, in the precision of each column{how}."
    if str((report.configs.get("quantization") or {}).get("scheme")).startswith("int8"):
        told += " Eight bits round: other batches may move a prediction that is almost a tie."
    return told


def _limitations(report: CompressionReport) -> str:
    where = f"the evaluation split of {report.dataset}" if report.dataset else "no evaluation set"
    chosen = (
        " What was removed was chosen by the training data: on other data or other languages more may be missing than "
        "the table shows."
    )
    removed = chosen if "pruning" in report.configs else ""
    return f"Quality is known on {where} alone.{removed} Speed was measured on one machine, named above."
