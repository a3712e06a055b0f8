"""A folder that speaks for itself: report, picture and card beside the weights; and its way to the Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitInfo, EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoConfig, PreTrainedConfig, TrainingArguments
from transformers.utils import logging

from hf_efficient.measurement.report import PICTURE_NAME, CompressionReport
from hf_efficient.models import FAMILIES
from hf_efficient.pushable import THIS
from hf_efficient.pushing import PushConfig, push, push_in_background

logger = logging.get_logger(__name__)

# How each export is called, and what it needs besides transformers and torch.
LOADERS = {"onnx": ("ONNX Runtime", "onnx onnxruntime"), "openvino": ("OpenVINO", "openvino")}
# What a compressed model takes over from the card of the model that it is made of.
INHERITED = ("license", "license_name", "license_link", "language")
TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
CITATIONS = {
    "inside": "Jiao et al. 2020, *TinyBERT: Distilling BERT for Natural Language Understanding*, arXiv 1909.10351",
    "relations": "Wang et al. 2021, *MiniLMv2: Multi-Head Self-Attention Relation Distillation ...*, arXiv 2012.15828",
    "targets": "Kim and Rush 2016, *Sequence-Level Knowledge Distillation*, arXiv 1606.07947",
    "distillation": "Hinton et al. 2015, *Distilling the Knowledge in a Neural Network*, arXiv 1503.02531",
    "activation": "Hu et al. 2016, *Network Trimming: A Data-Driven Neuron Pruning Approach ...*, arXiv 1607.03250",
    "fisher": "Kwon et al. 2022, *A Fast Post-Training Pruning Framework for Transformers*, arXiv 2204.09656",
    "gradual": "Zhu and Gupta 2017, *To prune, or not to prune: exploring the efficacy ...*, arXiv 1710.01878",
    "magnitude_l1": "Li et al. 2017, *Pruning Filters for Efficient ConvNets*, arXiv 1608.08710",
    "movement": "Sanh et al. 2020, *Movement Pruning: Adaptive Sparsity by Fine-Tuning*, arXiv 2005.07683",
    "rewinding": "Renda et al. 2020, *Comparing Rewinding and Fine-tuning in ... Pruning*, arXiv 2003.02389",
    "snip": "Lee et al. 2019, *SNIP: Single-shot Network Pruning based on Connection Sensitivity*, arXiv 1810.02340",
    "taylor": "Michel et al. 2019, *Are Sixteen Heads Really Better than One?*, arXiv 1905.10650",
    "wanda": "Sun et al. 2024, *A Simple and Effective Pruning Approach for Large Language Models*, arXiv 2306.11695",
    "magnitude": "Han et al. 2015, *Learning both Weights and Connections ...*, arXiv 1506.02626",
    "pruning": "Kurtic et al. 2023, *ZipLM: Inference-Aware Structured Pruning of Language Models*, arXiv 2302.04089",
    "codebook": "Han et al. 2016, *Deep Compression: ... Trained Quantization and Huffman Coding*, arXiv 1510.00149",
    "quantization": "Jacob et al. 2018, *Quantization and Training of Neural Networks for ...*, arXiv 1712.05877",
}


def write_documents(report: CompressionReport, folder: str | os.PathLike[str], base_model: str | None = None) -> None:
    """Writes the report (`compression_report.json` and `.png`) and the card `README.md` beside the model."""
    report.plot(folder)
    path = Path(folder) / "README.md"
    beside = path.with_suffix(".md.partial")
    model_card(report, folder, base_model).save(beside)
    beside.replace(path)
    report.save(folder)  # last: where it lies, a run is finished


def model_card(report: CompressionReport, folder: str | os.PathLike[str], base_model: str | None = None) -> ModelCard:
    """Returns the card of the model in `folder`: metadata with a model index, and a text rendered from `report`.

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
        base_model_relation=("quantized" if _is_quantized(config) or _codebooks(config) else "finetune")
        if public_base
        else None,
        tags=["hf_efficient", *sorted(set(report.configs) & {"pruning", "distillation", "quantization"})],
        metrics=[name for name in final.metrics if name != "loss"],
        datasets=[dataset] if dataset else None,
        model_name=title,
        eval_results=results or None,
        co2_eq_emissions=_emissions(report),
        **_inherited(base_model),
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=title,
        summary=told.get(final.role) or _summary(report),
        table=report.markdown(),
        circumstances=report.circumstances(),
        evaluation=_evaluation(report),
        picture=PICTURE_NAME if (folder / PICTURE_NAME).exists() else None,
        stages=[*(report.stages or ["Fine-tuned, not compressed."]), *_effort(report)],
        requirements=" ".join(_requirements(config)),
        snippet=_snippet(config, report, folder),
        loading_note=_loading_note(config, report),
        exports=[(LOADERS[model.role], model.role) for model in report.models if model.role in LOADERS],
        writes=_writes(config),
        limits=_limits(report),
        version=(report.environment.get("packages") or {}).get("hf_efficient"),
        citations=_citations(report.configs),
    )


def _inherited(base_model: str | None) -> dict[str, Any]:
    """Returns what the card of `base_model`, a folder or a name on the Hub, says of licence and languages."""
    if not base_model:
        return {}
    try:
        path = Path(base_model) / "README.md"
        told = ModelCard.load(path if path.exists() else base_model, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError, HfHubHTTPError) as error:
        logger.info(f"the card of {base_model!r} cannot be read, so no licence is taken over from it: {error}")
        return {}
    return {name: told[name] for name in INHERITED if told.get(name)}


def _emissions(report: CompressionReport) -> dict[str, Any] | None:
    """Returns the CO2 of training in grams for the card's metadata, where energy was counted and the country known."""
    if report.training is None or report.training.co2_grams is None:
        return None
    where = report.environment
    return {
        "emissions": report.training.co2_grams,
        "source": "codecarbon",
        "training_type": "fine-tuning",
        "hardware_used": where.get("accelerator") or where.get("processor"),
    }


def _effort(report: CompressionReport) -> list[str]:
    """Returns how long the training took and, where it was counted, what energy it took."""
    if report.training is None:
        return []
    energy = report.training.energy_joules
    counted = f"{energy / 3.6e6:.3g} kWh" if energy else "energy not measured, no counter could be read"
    return [f"pruning and training it took {report.training.seconds / 60:.1f} minutes; {counted}"]


def push_folder(folder: Path, args: TrainingArguments) -> CommitInfo:
    """Uploads a finished folder as `Trainer.push_to_hub` would have; see `pushing.push`."""
    name = args.hub_model_id or folder.resolve().name
    *_, commit = push(folder, PushConfig(name, args.hub_private_repo, args.hub_revision), args.hub_token).values()
    return commit


def push_checkpoint(
    folder: str, repo_id: str, step: int, token: str | None, revision: str | None
) -> Future[CommitInfo]:
    """Uploads the model of a checkpoint in the background, with its code and a card; see `pushing`."""
    return push_in_background(folder, repo_id, step, token, revision)


def needs_code(config: PreTrainedConfig) -> bool:
    """Whether a model with this config is one of our classes rather than a stock one."""
    return any(isinstance(config, family.pruned_config_class) for family in FAMILIES.values())


def _requirements(config: PreTrainedConfig) -> list[str]:
    return ["transformers", "torch"] + (["torchao"] if _is_quantized(config) else [])


def _is_quantized(config: PreTrainedConfig) -> bool:
    return getattr(config, "quantization_config", None) is not None


def _codebooks(config: PreTrainedConfig) -> bool:
    return bool(getattr(config, "codebooks", None))


def _writes(config: PreTrainedConfig) -> bool:
    return (config.architectures or [""])[0].endswith("ForConditionalGeneration")


def _is_compiled(report: CompressionReport) -> bool:
    return any(model.role == "compiled" for model in report.models)


def _auto_classes() -> dict[str, str]:
    """Returns the name of the Auto class of every class, stock and pruned, by the class's name."""
    return {
        cls.__name__: str(pruned._auto_class)
        for family in FAMILIES.values()
        for stock, pruned in family.pruned_classes.items()
        for cls in (stock, pruned)
    }


def _snippet(config: PreTrainedConfig, report: CompressionReport, folder: Path) -> str:
    architecture = (config.architectures or [""])[0]
    head = architecture.partition("For")[2]
    auto = _auto_classes().get(architecture, f"AutoModelFor{head}" if head else "AutoModel")
    remote = ", trust_remote_code=True" if needs_code(config) else ""
    writes, compiles = _writes(config), _is_compiled(report) and not _writes(config)
    lines = ["import torch"] if compiles else []
    lines += [
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'name = "{folder.resolve().name}"{THIS}',
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
    if needs_code(config):
        reason = "Weights are indices into codebooks" if _codebooks(config) else "The layers differ in width"
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
                if _writes(config)
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


def _evaluation(report: CompressionReport) -> str:
    """Returns a sentence on how the metrics came about; empty where there are none."""
    if report.dataset is None or not report.final.metrics:
        return ""
    batch = (report.configs.get("training") or {}).get("per_device_eval_batch_size")
    how = f", in batches of {batch} in the order of the file" if batch else ""
    told = f" Metrics: on the evaluation split of {report.dataset}, in the precision of each column{how}."
    if str((report.configs.get("quantization") or {}).get("scheme")).startswith("int8"):
        told += " Eight bits round: other batches may move a prediction that is almost a tie."
    return told


def _limits(report: CompressionReport) -> str:
    where = f"the evaluation split of {report.dataset}" if report.dataset else "no evaluation set"
    chosen = (
        " What was removed was chosen by the training data: on other data or other languages more may be missing than "
        "the table shows."
    )
    removed = chosen if "pruning" in report.configs else ""
    return f"Quality is known on {where} alone.{removed} Speed was measured on one machine, named above."


def _citations(configs: Mapping[str, Any]) -> list[str]:
    used = [name for name in ("pruning", "distillation", "quantization") if name in configs]
    if (configs.get("quantization") or {}).get("scheme") == "codebook":
        used[used.index("quantization")] = "codebook"
    pruning = configs.get("pruning") or {}
    criterion = str(pruning.get("criterion"))
    teaching = configs.get("distillation") or {}
    asked = {
        "gradual": pruning.get("ramp"),
        "rewinding": pruning.get("rewind"),
        criterion: pruning,
        "inside": any(teaching.get(f"{name}_weight") for name in ("hidden", "embedding", "attention")),
        "relations": teaching.get("relation_weight"),
        "targets": teaching.get("targets", "gold") != "gold",
    }
    used = [name for name, wanted in asked.items() if wanted] + used
    return [CITATIONS[name] for name in used if name in CITATIONS]
