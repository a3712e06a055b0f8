"""Shapes of a tiny pruned T5 with three layers a stack, four heads a block and 64 neurons."""

import torch

from hf_efficient.models import LayerStructure, Structure
from hf_efficient.pruning.selection import Selection

ALL_HEADS = (0, 1, 2, 3)
# For each kept layer: heads, heads of cross attention (None in the encoder), neurons.
SHAPES = {
    "different heads": {
        "encoder": {0: ((1, 3), None, 20), 1: ((0,), None, 7), 2: ((0, 2, 3), None, 64)},
        "decoder": {0: ((2,), (0, 1), 9), 1: ((0, 3), (1, 2, 3), 64), 2: ((1, 2), (3,), 5)},
    },
    "first layers without heads": {
        "encoder": {0: ((), None, 64), 1: ((3,), None, 64), 2: (ALL_HEADS, None, 64)},
        "decoder": {0: ((), ALL_HEADS, 64), 1: ((1, 2), ALL_HEADS, 64), 2: ((), (0,), 64)},
    },
    "layers without cross attention": {
        "encoder": {0: (ALL_HEADS, None, 64), 1: (ALL_HEADS, None, 64), 2: (ALL_HEADS, None, 64)},
        "decoder": {0: (ALL_HEADS, (), 64), 1: (ALL_HEADS, (2,), 64), 2: (ALL_HEADS, (), 64)},
    },
    "layers without neurons": {
        "encoder": {0: (ALL_HEADS, None, 0), 1: (ALL_HEADS, None, 64), 2: (ALL_HEADS, None, 0)},
        "decoder": {0: (ALL_HEADS, ALL_HEADS, 64), 1: (ALL_HEADS, ALL_HEADS, 0), 2: (ALL_HEADS, ALL_HEADS, 0)},
    },
    "without the first layers": {
        "encoder": {1: ((1, 3), None, 64), 2: ((0, 2), None, 64)},
        "decoder": {1: ((2,), ALL_HEADS, 64), 2: ((0, 1, 3), ALL_HEADS, 64)},
    },
    "one decoder layer": {
        "encoder": {0: (ALL_HEADS, None, 64), 1: ((0,), None, 64), 2: (ALL_HEADS, None, 64)},
        "decoder": {2: ((1, 3), (0, 2), 30)},
    },
    "one encoder layer": {
        "encoder": {1: ((), None, 10)},
        "decoder": {0: ((), (0, 2), 30), 1: ((3,), ALL_HEADS, 30), 2: ((1, 3), (0, 2), 30)},
    },
    "all of these": {
        "encoder": {1: ((), None, 0), 2: ((3,), None, 12)},
        "decoder": {1: ((), (), 0), 2: ((1, 2), (0,), 33)},
    },
}
STOCK_SHAPES = {
    "fewer layers": {
        "encoder": {1: (ALL_HEADS, None, 64), 2: (ALL_HEADS, None, 64)},
        "decoder": {0: (ALL_HEADS, ALL_HEADS, 64)},
    },
    "one width": {
        "encoder": dict.fromkeys(range(3), (ALL_HEADS, None, 24)),
        "decoder": dict.fromkeys(range(3), (ALL_HEADS, ALL_HEADS, 24)),
    },
    "the same heads": {
        "encoder": {0: ((1, 3), None, 64), 2: ((1, 3), None, 64)},
        "decoder": {1: ((1, 3), (1, 3), 64), 2: ((1, 3), (1, 3), 64)},
    },
    "as many heads, the same in each stack": {
        "encoder": {1: ((0, 3), None, 64)},
        "decoder": {0: ((1, 2), (0, 1), 64), 2: ((1, 2), (2, 3), 64)},
    },
    "a decoder without layers": {"encoder": {0: (ALL_HEADS, None, 64)}, "decoder": {}},
}


def selection_of(shape, seed=0):
    """Return the selection that gives a tiny model this shape, with neurons drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    layers, units = [], {}
    for stack in ("encoder", "decoder"):
        for index in range(3):
            name = f"{stack}.{index}"
            heads, cross_heads, neurons = shape[stack].get(index, ((), (), 0))
            layers += [name] if index in shape[stack] else []
            units[f"{name}.attention"] = tuple(heads)
            if stack == "decoder":
                units[f"{name}.cross_attention"] = tuple(cross_heads)
            units[f"{name}.feed_forward"] = tuple(sorted(torch.randperm(64, generator=generator)[:neurons].tolist()))
    return Selection(tuple(layers), units)


def structure_of(shape):
    """Return the structure of a model with this shape."""
    return Structure(
        {
            stack: tuple(
                LayerStructure(
                    index,
                    {"attention": heads} | ({} if cross_heads is None else {"cross_attention": cross_heads}),
                    {"feed_forward": neurons},
                )
                for index, (heads, cross_heads, neurons) in shape[stack].items()
            )
            for stack in ("encoder", "decoder")
        }
    )
