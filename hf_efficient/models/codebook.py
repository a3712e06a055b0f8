"""Linears and embeddings whose weights are indices into tables of a few values (non-uniform quantization)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

POWERS = 1 << torch.arange(8, dtype=torch.uint8)


def pack(indices: torch.Tensor, bits: int) -> torch.Tensor:
    """Return `indices` (count,), each below 2**bits, packed into bytes without gaps."""
    ones = indices.to(torch.uint8)[:, None] & POWERS[:bits].to(indices.device) != 0
    padded = F.pad(ones.flatten(), (0, -ones.numel() % 8)).view(-1, 8)
    return (padded * POWERS.to(indices.device)).sum(-1, dtype=torch.uint8)


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return the first `count` indices (count,), uint8, of the output of `pack`."""
    powers = POWERS.to(packed.device)
    ones = (packed[:, None] & powers != 0).flatten()[: bits * count].view(count, bits)
    return (ones * powers[:bits]).sum(-1, dtype=torch.uint8)


class Codebook(nn.Module):
    """A weight (rows, columns) whose entries are among 2**bits values, which `group` consecutive rows share.

    | buffer | shape |
    | --- | --- |
    | indices | (ceil(rows * columns * bits / 8),), packed |
    | table | (ceil(rows / group), 2**bits) |

    The weight is unpacked at its first use and cached; with `keep_packed` it is unpacked at every use, which is slower
    and needs less memory.
    Source: Han et al. 2016, "Deep Compression", section 3 (weight sharing).
    """

    indices: torch.Tensor
    table: torch.Tensor

    def __init__(self, rows: int, columns: int, bits: int, group: int, keep_packed: bool = False) -> None:
        super().__init__()
        self.rows, self.columns, self.bits, self.group, self.keep_packed = rows, columns, bits, group, keep_packed
        self.register_buffer("indices", torch.zeros(-(-rows * columns * bits // 8), dtype=torch.uint8))
        self.register_buffer("table", torch.zeros(-(-rows // group), 1 << bits))
        self._cached_weight: torch.Tensor | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The weight, (rows, columns)."""
        # Not cached here: transformers writes into the weight that it gets where it initialises a module.
        return self._unpack_weight() if self._cached_weight is None else self._cached_weight

    def _weight_for_forward(self) -> torch.Tensor:
        if self.keep_packed or self._cached_weight is not None:
            return self.weight
        with torch.inference_mode(False):  # an inference tensor cannot be used in training
            self._cached_weight = self._unpack_weight()
        return self._cached_weight

    def _unpack_weight(self) -> torch.Tensor:
        # transformers casts the indices too where it keeps a module in float32.
        indices = unpack(self.indices.to(torch.uint8), self.bits, self.rows * self.columns).view(
            self.rows, self.columns
        )
        starts = torch.arange(self.rows, device=indices.device) // self.group << self.bits
        return self.table.flatten()[indices.long() + starts[:, None]]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        self._cached_weight = None  # device or data type may change
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._cached_weight = None
        super()._load_from_state_dict(*args, **kwargs)


class CodebookLinear(Codebook):
    """A Linear whose weight is a codebook."""

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool, **settings: Any) -> None:
        super().__init__(out_features, in_features, **settings)
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return the outputs (..., out_features) for `states` (..., in_features)."""
        return F.linear(states, self._weight_for_forward(), self.bias)


class CodebookEmbedding(Codebook):
    """An Embedding whose weight is a codebook."""

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None, **settings: Any) -> None:
        super().__init__(num_embeddings, embedding_dim, **settings)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (..., embedding_dim) of `ids` (...)."""
        return F.embedding(ids, self._weight_for_forward())


def codebook_for(module: nn.Module, **settings: Any) -> Codebook:
    """Return an empty codebook that replaces a Linear, with its bias, or an Embedding.

    `settings` are bits, group and keep_packed of `Codebook`. Raises TypeError if `module` is neither.
    """
    codebook: Codebook
    if isinstance(module, nn.Linear):
        linear = CodebookLinear(module.in_features, module.out_features, module.bias is not None, **settings)
        linear.bias = module.bias
        codebook = linear
    elif isinstance(module, nn.Embedding):
        codebook = CodebookEmbedding(module.num_embeddings, module.embedding_dim, module.padding_idx, **settings)
    else:
        raise TypeError(f"a {type(module).__name__} has no codebook: only Linear and Embedding have one")
    return codebook.to(device=module.weight.device)


def install_codebooks(model: nn.Module, codebooks: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace modules of the base model `model` by empty codebooks, in place.

    `codebooks` maps the name of a module in the base model to its settings, such as {"bits": 4, "group": 16}.
    """
    for name, settings in codebooks.items():
        model.set_submodule(name, codebook_for(model.get_submodule(name), **settings))
