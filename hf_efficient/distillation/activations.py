"""Intermediate outputs captured while a model runs: hidden states, embeddings, queries, keys and values."""

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
PROJECTIONS = (QUERIES, KEYS, VALUES)  # all families list the Linears of their attention in this order
ActivationKey = tuple[str, str]  # kind, and the layer ("encoder.3") or, of embeddings, the stack ("encoder")
Activations = dict[ActivationKey, torch.Tensor]


def self_attention_blocks(model: PreTrainedModel) -> dict[str, AttentionBlock]:
    """Return, by layer, the self attention of every layer that has heads."""
    return {
        block.layer: block
        for block in family_of(model).blocks(model).values()
        if isinstance(block, AttentionBlock) and block.units and not block.name.endswith("cross_attention")
    }


@contextmanager
def capture_activations(model: PreTrainedModel, keys: Collection[ActivationKey]) -> Iterator[Activations]:
    """Yield a dict that fills with the requested activations while `model` runs; read it after the context.

    | activation | shape |
    | --- | --- |
    | hidden states after a layer, embeddings before the first | (batch, tokens, size) |
    | queries, keys, values of a layer | (batch, tokens, heads * head size) |

    Hooks on modules capture them, so any attention implementation works. Only the forward pass in the context is
    captured, not what gradient checkpointing computes again in the backward pass.

    Raises UserError if the model ran without computing a requested activation.
    """
    activations: Activations = {}
    handles = []
    layers, blocks = family_of(model).layers(model), self_attention_blocks(model) if keys else {}

    def capture_output(key: ActivationKey, part: int = 0, parts: int = 1) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            # In DeBERTa the same Linears project positions after the tokens. In ALBERT a layer is repeated: its
            # hidden states are those after the last time, the others those of the first.
            if key[0] == HIDDEN or key not in activations:
                activations[key] = states.chunk(parts, -1)[part]

        return hook

    def capture_input(key: ActivationKey) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            activations.setdefault(key, args[0] if args else kwargs["hidden_states"])

        return hook

    for key in keys:
        kind, name = key
        if kind == HIDDEN:
            handles.append(layers[name].register_forward_hook(capture_output(key)))
        elif kind == EMBEDDINGS:
            handles.append(layers[f"{name}.0"].register_forward_pre_hook(capture_input(key), with_kwargs=True))
        elif name in blocks:
            linears, parts, number = blocks[name].input_linears, blocks[name].fused, PROJECTIONS.index(kind)
            handles.append(linears[number // parts].register_forward_hook(capture_output(key, number % parts, parts)))
    try:
        yield activations
    finally:
        for handle in handles:
            handle.remove()
    missing = [f"{kind} of {name}" for kind, name in keys if (kind, name) not in activations]
    if missing:
        raise UserError(
            f"{type(model).__name__} computed no {', '.join(missing)}: choose other layers with layer_map, or remove "
            "the weight that needs them"
        )


def token_masks(inputs: Mapping[str, torch.Tensor], stacks: Collection[str]) -> dict[str, torch.Tensor]:
    """Return, by stack of layers, which tokens are not padding, (rows, tokens).

    In a decoder whose labels are tokens, these are the tokens with a label, which the loss counts.

    Raises UserError if the tokens of a stack are not among the inputs.
    """
    masks = {}
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
                raise UserError(
                    f"the batch has no input_ids, only {', '.join(inputs)}: the tokens of the {stack} are unknown"
                )
            mask = torch.ones(ids.shape[: 2 if ids.is_floating_point() else None], device=ids.device)
        masks[stack] = mask.bool().flatten(0, -2)  # multiple choice has a row for every choice
    return masks
