"""A sentence embedder or reranker that was exported to ONNX or OpenVINO, as a module of sentence-transformers.

It is saved beside the export, and needs transformers, sentence-transformers and the runtime.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import InputModule
from transformers import AutoTokenizer
from transformers.exporters import ExportedModel

OUTPUTS = {"sentence_embedding": "sentence_embedding", "last_hidden_state": "token_embeddings", "logits": "scores"}


class RuntimeModule(InputModule):
    """Runs the export in a folder: `SentenceTransformer(folder, trust_remote_code=True)`, or `CrossEncoder`."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.exported = ExportedModel.from_pretrained(folder)

    @property
    def max_seq_length(self) -> int:
        """The number of tokens at which texts are cut."""
        return int(self.tokenizer.model_max_length)

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self.tokenizer.model_max_length = value

    def get_embedding_dimension(self) -> int:
        """Return the size of the embeddings."""
        return int(self.forward(self.preprocess([""]))["sentence_embedding"].shape[-1])

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Return the tokens of texts, or of pairs of texts, (texts, tokens)."""
        columns = [list(inputs)] if isinstance(inputs[0], str) else list(map(list, zip(*inputs, strict=True)))
        columns[0] = [(prompt or "") + text for text in columns[0]]
        return dict(self.tokenizer(*columns, padding=True, truncation=True, return_tensors="pt"))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add the embeddings of the texts, or the scores of the pairs, to `features`."""
        ids = features["input_ids"].cpu()
        values = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids), **features}
        names = self.exported.components["model"].metadata.kwargs
        outputs = self.exported(**{name: values[name].cpu() for name in names})
        return {**features, **{OUTPUTS[name]: value for name, value in outputs.items() if name in OUTPUTS}}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Copy the export, its tokenizer and this module to another folder."""
        shutil.copytree(self.folder, output_path, dirs_exist_ok=True)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> RuntimeModule:
        """Return the module in a folder, or in a repository on the Hub."""
        options = {name: kwargs[name] for name in ("token", "cache_folder", "revision", "local_files_only")}
        return cls(cls.load_dir_path(model_name_or_path, subfolder, **options))
