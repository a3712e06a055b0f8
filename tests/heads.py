"""All pruned model classes of all families, by name."""

from hf_efficient.models import FAMILIES

HEADS = {cls.__name__: (family, cls) for family in FAMILIES.values() for cls in family.pruned_classes}
BERT_HEADS = tuple(cls.__name__ for cls in FAMILIES["bert"].pruned_classes)
