"""Pruning: scores of units and connections, selection of what to keep, removal of the rest.

Owns: criteria, selections, the search for a target, gates and schedules, reconstruction, vocabularies.
Takes: a model, a `PruningConfig` and batches; costs and losses as callables. Gives: a smaller model.
"""
