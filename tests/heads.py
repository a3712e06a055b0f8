"""All pruned model classes of all families, by name, and pairs of them with other choices."""

from collections.abc import Sequence
from typing import TypeVar

from hf_efficient.models import FAMILIES
from hf_efficient.models.inputs import task_head_of

T = TypeVar("T")

HEADS = {cls.__name__: (family, cls) for family in FAMILIES.values() for cls in family.pruned_classes}
BERT_HEADS = tuple(cls.__name__ for cls in FAMILIES["bert"].pruned_classes)
PRUNED_CLASSES = {
    cls.__name__: pruned for family in FAMILIES.values() for cls, pruned in family.pruned_classes.items()
}
CLASSIFIERS = [head for head in HEADS if head.endswith("ForSequenceClassification")]
# Classes that generate text.
GENERATORS = [head for head in HEADS if task_head_of(head) == "ConditionalGeneration"]
# One class of each family, of another task in each of the first six.
ONE_HEAD_PER_FAMILY = [
    [cls.__name__ for cls in family.pruned_classes][index % len(family.pruned_classes)]
    for index, family in enumerate(FAMILIES.values())
]


def pairs_of_heads_and(choices: Sequence[T]) -> list[tuple[str, T]]:
    """Return pairs in which every class occurs, and in every family every one of `choices`."""
    pairs = []
    for offset, family in enumerate(FAMILIES.values()):
        heads = [cls.__name__ for cls in family.pruned_classes]
        for index in range(max(len(heads), len(choices))):
            pairs.append((heads[index % len(heads)], choices[(index + offset) % len(choices)]))
    return pairs


# Every task head once (of BERT and T5), and the other families by their first class with a head.
REPRESENTATIVE_HEADS = (
    *BERT_HEADS,
    *(cls.__name__ for cls in FAMILIES["t5"].pruned_classes),
    *(
        next(cls.__name__ for cls in family.pruned_classes if task_head_of(cls.__name__))
        for name, family in FAMILIES.items()
        if name not in ("bert", "t5")
    ),
)


def enable_checkpointing(model):
    """Enable activation checkpointing, by the name that the installed version of Transformers has for it."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def is_checkpointing(model):
    """Whether activation checkpointing is enabled, by the name of either version."""
    name = (
        "is_activation_checkpointing" if hasattr(model, "is_activation_checkpointing") else "is_gradient_checkpointing"
    )
    return getattr(model, name)
