"""Sentence embedders: a transformer, and the modules of its `modules.json` that make one embedding of its tokens.

The transformer stays the model: it is pruned, quantized, exported and saved as one without a task head.
`attach_sentence_modules` adds two things to it. A forward hook returns the embeddings beside the hidden states, as
`SentenceEmbeddingOutput`, and `save_pretrained` also writes the files of the modules, byte for byte as they were
read. What builds a model from another one passes them on by `copy_sentence_modules`; `copy.deepcopy` does so by
itself. Files and settings are those of sentence-transformers, which is needed neither here nor to train.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

EMBEDDING = "sentence_embedding"
Step = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class SentenceEmbeddingOutput(ModelOutput):
    """The outputs of a sentence embedder: `sentence_embedding` (texts, size), and those of its transformer."""

    sentence_embedding: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass(frozen=True)
class SentenceModules:
    """The modules after the transformer; called as a forward hook of it, they return its outputs and the embeddings.

    | field | meaning |
    | --- | --- |
    | files | the files of the modules and their settings, by path in the model's folder |
    | pooling | names of pooling modes, whose results are concatenated |
    | steps | what is done to the pooled embeddings: dense layers, normalization |
    | max_seq_length | the number of tokens at which texts are cut; None: what the transformer reads |
    | prompt | the default prompt, which is put before each text |
    """

    files: Mapping[str, bytes]
    pooling: tuple[str, ...]
    steps: Sequence[Step] = field(default=(), repr=False)
    max_seq_length: int | None = None
    prompt: str = ""

    @property
    def normalizes(self) -> bool:
        """Whether the embeddings have the length 1."""
        return bool(self.steps) and self.steps[-1] is normalize

    def __deepcopy__(self, memo: dict[int, Any]) -> SentenceModules:
        """Return itself: nothing of it changes."""
        return self

    def __call__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> SentenceEmbeddingOutput:
        """Return the outputs of a transformer, called with `args` and `kwargs`, with the embeddings of the texts.

        The second of `args`, after the tokens, is the mask in all encoders.
        """
        if EMBEDDING in output:  # an export that computes it
            return output
        hidden = output["last_hidden_state"]
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        return SentenceEmbeddingOutput(
            self.embed(hidden, torch.ones(hidden.shape[:2], device=hidden.device) if mask is None else mask),
            hidden,
            output.get("hidden_states"),
            output.get("attentions"),
        )

    def embed(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of texts.

        | argument | shape | meaning |
        | --- | --- | --- |
        | hidden | (texts, tokens, width) | last hidden states |
        | mask | (texts, tokens) | 1 for tokens, 0 for padding |
        | returns | (texts, size) | embeddings |
        """
        pooled = torch.cat([pool(mode, hidden, mask.to(hidden.device)) for mode in self.pooling], dim=-1)
        for step in self.steps:
            pooled = step(pooled)
        return pooled

    def size(self, width: int) -> int:
        """Return the size of the embeddings for hidden states of this width."""
        return self.embed(torch.zeros(1, 1, width), torch.ones(1, 1)).shape[-1]

    def write(self, folder: str | Path) -> None:
        """Write the files of the modules into `folder`."""
        for path, content in self.files.items():
            file = Path(folder) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def normalize(embeddings: torch.Tensor) -> torch.Tensor:
    """Return embeddings of length 1."""
    return F.normalize(embeddings, dim=-1)


def pool(mode: str, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return one vector (texts, width) of the hidden states (texts, tokens, width) that are not padding."""
    if mode in ("cls", "lasttoken"):
        is_token = mask.ne(0).int()
        index = is_token.argmax(1) if mode == "cls" else mask.shape[1] - 1 - is_token.flip(1).argmax(1)
        return hidden.gather(1, index[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)
    if mode == "max":
        return hidden.masked_fill(mask[..., None] == 0, torch.finfo(hidden.dtype).min).amax(1)
    weights = mask[..., None].float()  # half precision would round the sum over many tokens
    total, count = (hidden.float() * weights).sum(1), weights.sum(1).clamp(min=1e-9)
    return (total / (count if mode == "mean" else count.sqrt())).to(hidden.dtype)


# ---- the modules of a model ----


def attach_sentence_modules(model: Any, modules: SentenceModules) -> None:
    """Let `model`, a transformer or an export of one, return embeddings, and save the files of `modules` with it.

    They replace those that it has.
    """
    _detach(model)
    model.register_forward_hook(modules, with_kwargs=True)
    if isinstance(model, PreTrainedModel):
        model.save_pretrained = MethodType(_save_with_modules, model)


def find_sentence_modules(model: Any) -> SentenceModules | None:
    """Return the modules that are attached to `model`; None if it is no sentence embedder."""
    return next((hook for hook in model._forward_hooks.values() if isinstance(hook, SentenceModules)), None)


def copy_sentence_modules(model: Any, other: Any) -> Any:
    """Attach the modules of `model`, if there are any, to `other`, which was built from it, and return that."""
    modules = find_sentence_modules(model)
    if modules is not None and find_sentence_modules(other) is None:
        attach_sentence_modules(other, modules)
    return other


def embed_in_forward(model: Any) -> None:
    """Let `forward` of an embedder return hidden states and embeddings, in this order; an export records no hooks.

    The outputs are a dict, which loads without this package.
    """
    modules, forward = find_sentence_modules(model), model.forward
    if modules is None:
        return
    _detach(model)

    @functools.wraps(forward)
    def forward_with_embedding(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        outputs = modules(model, args, kwargs, forward(*args, **kwargs))
        return {name: outputs[name] for name in ("last_hidden_state", EMBEDDING)}

    model.forward = forward_with_embedding


def _detach(model: Any) -> None:
    for key in [key for key, hook in model._forward_hooks.items() if isinstance(hook, SentenceModules)]:
        del model._forward_hooks[key], model._forward_hooks_with_kwargs[key]


def _save_with_modules(model: PreTrainedModel, save_directory: Any, *args: Any, **kwargs: Any) -> None:
    type(model).save_pretrained(model, save_directory, *args, **kwargs)
    modules = find_sentence_modules(model)
    if modules is not None and kwargs.get("is_main_process", True):
        modules.write(save_directory)
