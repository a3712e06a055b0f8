"""One model in several variants: float32, bfloat16, float16, int8, compiled, exported.

Owns: the table of variants and how each is built.
Takes: a model, sample inputs and, for static int8, calibration batches. Gives: a module to evaluate and to time.
"""
