"""Publishing a model on the Hub, so that it loads there without this package.

Owns: model cards, the files that may be pushed, pushes and their errors, the ONNX companion repository, the Space.
Takes: an output directory and its report. Gives: commits.
"""
