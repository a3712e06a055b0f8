"""Quantization: int8 with native kernels or by torchao, k-means codebooks, fake quantization while training.

Owns: which weights are quantized, and how.
Takes: a model and a `QuantizationConfig`. Gives: a quantized copy that `save_pretrained` writes.
"""
