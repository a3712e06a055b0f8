"""Linears and embeddings whose weights are indices into tables of a few values: non-uniform quantization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

POWERS = 1 << torch.arange(8, dtype=torch.uint8)


def pack(indices: torch.Tensor, bits: int) -> torch.Tensor:
    """Return `indices` (count,), each below 2**bits, as the bytes that hold their bits one after another."""
    ones = indices.to(torch.uint8)[:, None] & POWERS[:bits].to(indices.device) != 0
    padded = F.pad(ones.flatten(), (0, -ones.numel() % 8)).view(-1, 8)
    return (padded * POWERS.to(indices.device)).sum(-1, dtype=torch.uint8)


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return the first `count` indices (count,), uint8, that `pack` wrote."""
    powers = POWERS.to(packed.device)
    ones = (packed[:, None] & powers != 0).flatten()[: bits * count].view(count, bits)
    return (ones * powers[:bits]).sum(-1, dtype=torch.uint8)


class Codebook(nn.Module):
    """A weight (rows, columns) whose every entry is one of 2**bits values, which `group` rows share.

    | buffer | shape |
    | --- | --- |
    | indices | (ceil(rows * columns * bits / 8),), packed |
    | table | (ceil(rows / group), 2**bits) |

    The weight is made when it is first asked for, and kept; with `keep_packed` it is made for every use and forgotten,
    which takes time and saves the memory.
    Source: Han et al. 2016, "Deep Compression", section 3 (weight sharing).
    """

    indices: torch.Tensor
    table: torch.Tensor

    def __init__(self, rows: int, columns: int, bits: int, group: int, keep_packed: bool = False) -> None:
        super().__init__()
        self.rows, self.columns, self.bits, self.group, self.keep_packed = rows, columns, bits, group, keep_packed
        self.register_buffer("indices", torch.zeros(-(-rows * columns * bits // 8), dtype=torch.uint8))
        self.register_buffer("table", torch.zeros(-(-rows // group), 1 << bits))
        self._made: torch.Tensor | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The weight, (rows, columns)."""
        # Made anew: who asks for it outside of `forward` may write into it, as transformers does where it initialises.
        return self._make() if self._made is None else self._made

    def _kept(self) -> torch.Tensor:
        if self.keep_packed or self._made is not None:
            return self.weight
        with torch.inference_mode(False):  # what is kept also serves who computes gradients later
            self._made = self._make()
        return self._made

    def _make(self) -> torch.Tensor:
        # Where transformers keeps a module in float32, it casts the indices too; they are whole numbers all the same.
        indices = unpack(self.indices.to(torch.uint8), self.bits, self.rows * self.columns).view(
            self.rows, self.columns
        )
        starts = torch.arange(self.rows, device=indices.device) // self.group << self.bits
        return self.table.flatten()[indices.long() + starts[:, None]]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        self._made = None  # of another device or type
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._made = None
        super()._load_from_state_dict(*args, **kwargs)


class CodebookLinear(Codebook):
    """A Linear of such a weight."""

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool, **how: Any) -> None:
        super().__init__(out_features, in_features, **how)
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return (..., out_features) of (..., in_features)."""
        return F.linear(states, self._kept(), self.bias)


class CodebookEmbedding(Codebook):
    """An Embedding of such a weight."""

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None, **how: Any) -> None:
        super().__init__(num_embeddings, embedding_dim, **how)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (..., embedding_dim) of (...)."""
        return F.embedding(ids, self._kept())


def codebook_for(module: nn.Module, **how: Any) -> Codebook:
    """Return an empty codebook in the place of a Linear or an Embedding, with its bias.

    Raises TypeError: it is neither.
    """
    found: Codebook
    if isinstance(module, nn.Linear):
        linear = CodebookLinear(module.in_features, module.out_features, module.bias is not None, **how)
        linear.bias = module.bias
        found = linear
    elif isinstance(module, nn.Embedding):
        found = CodebookEmbedding(module.num_embeddings, module.embedding_dim, module.padding_idx, **how)
    else:
        raise TypeError(f"a {type(module).__name__} has no codebook: only Linear and Embedding")
    return found.to(device=module.weight.device)


def install_codebooks(model: nn.Module, codebooks: Mapping[str, Mapping[str, Any]]) -> None:
    """Put empty codebooks, in place, where `codebooks` tells: {"name in the base model": {"bits": 4, "group": 16}}.

    `model` is the base model.
    """
    for name, how in codebooks.items():
        parent, _, short = name.rpartition(".")
        setattr(model.get_submodule(parent), short, codebook_for(model.get_submodule(name), **how))
