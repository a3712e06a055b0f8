"""ONNX and OpenVINO: writing a model for another runtime, loading it again and running it like a torch module.

Owns: the exported folder and the models loaded from it.
Takes: a model and, for static int8, calibration batches. Gives: a folder, and modules with `forward` and `generate`.
"""
