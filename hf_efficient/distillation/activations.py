"""What a network computes inside, watched while it runs: hidden states, embeddings, queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.errors import UserError
from hf_efficient.models import family_of
from hf_efficient.models.blocks import AttentionBlock

HIDDEN, EMBEDDINGS, QUERIES, KEYS, VALUES = "hidden states", "embeddings", "queries", "keys", "values"
ActivationKey = tuple[str, str]  # what, and of which layer ("encoder.3"); embeddings: of which stack ("encoder")
Activations = dict[ActivationKey, torch.Tensor]


def self_attention_blocks(model: PreTrainedModel) -> dict[str, AttentionBlock]:
    """Return, by layer, the self attention of every layer that has a head left."""
    return {
        block.layer: block
        for block in family_of(model).blocks(model).values()
        if isinstance(block, AttentionBlock) and block.units and not block.name.endswith("cross_attention")
    }


@contextmanager
def capture_activations(model: PreTrainedModel, wanted: Collection[ActivationKey]) -> Iterator[Activations]:
    """Give a dict that fills with the wanted signals as `model` runs; read it after the context.

    | signal | shape |
    | --- | --- |
    | hidden states after a layer, embeddings before the first | (batch, tokens, size) |
    | queries, keys, values of a layer | (batch, tokens, heads * head size) |

    They are taken as modules hand them on, so the kind of attention does not matter. What gradient checkpointing
    computes again in the backward pass is outside the context and not seen twice.

    Raises ValueError: the model ran and did not compute one of them.
    """
    seen: Activations = {}
    handles = []
    layers, blocks = family_of(model).layers(model), self_attention_blocks(model) if wanted else {}

    def keep(signal: ActivationKey) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen[signal] = output[0] if isinstance(output, tuple) else output

        return hook

    def keep_input(signal: ActivationKey) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            seen[signal] = args[0] if args else kwargs["hidden_states"]

        return hook

    for signal in wanted:
        what, where = signal
        if what == HIDDEN:
            handles.append(layers[where].register_forward_hook(keep(signal)))
        elif what == EMBEDDINGS:
            handles.append(layers[f"{where}.0"].register_forward_pre_hook(keep_input(signal), with_kwargs=True))
        elif where in blocks:
            # Every family names the Linears of its attention in this order.
            linears = dict(zip((QUERIES, KEYS, VALUES), blocks[where].input_linears, strict=True))
            handles.append(linears[what].register_forward_hook(keep(signal)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
    missing = [f"{what} of {where}" for what, where in wanted if (what, where) not in seen]
    if missing:
        raise UserError(
            f"{type(model).__name__} computed no {', '.join(missing)}: name other layers by layer_map, or leave out "
            "the weight that asks for them"
        )


def token_masks(inputs: Mapping[str, torch.Tensor], stacks: Collection[str]) -> dict[str, torch.Tensor]:
    """Return, by stack of layers, which tokens are no padding, (rows, tokens).

    The decoder's are those with a label where labels are tokens, as the loss counts them.

    Raises ValueError: a stack's tokens are not among the inputs.
    """
    found = {}
    for stack in stacks:
        mask = None
        if stack == "decoder":
            mask = inputs.get("decoder_attention_mask")
            labels = inputs.get("labels")
            if mask is None and labels is not None and labels.dim() > 1 and not labels.is_floating_point():
                mask = labels.ne(-100)
            if mask is None and "decoder_input_ids" in inputs:
                mask = torch.ones_like(inputs["decoder_input_ids"])
        if mask is None:
            mask = inputs.get("attention_mask")
        if mask is None:
            ids = next((inputs[name] for name in ("input_ids", "inputs_embeds") if name in inputs), None)
            if ids is None:
                raise UserError(f"there are no input_ids among {', '.join(inputs)}: the {stack}'s tokens are unknown")
            mask = torch.ones(ids.shape[: 2 if ids.is_floating_point() else None], device=ids.device)
        found[stack] = mask.bool().flatten(0, -2)  # multiple choice: a row for every choice
    return found
