"""Measurements of any torch module: cost, latency, memory, energy, metrics; and the report that holds them.

Owns: `CompressionReport`, its table and its picture.
Takes: models and inputs. Gives: numbers with units; what was not measured is None.
"""
