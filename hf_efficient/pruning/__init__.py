"""Pruning: scoring units and connections, choosing which to keep, removing the rest.

Owns: criteria, selections, the search for a target, gates and schedules, vocabularies.
Takes: a model, a `PruningConfig`, batches; costs and losses come as callables. Gives: a smaller model.
"""
