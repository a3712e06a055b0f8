"""A folder that loads on its own, on the Hub.

Owns: model cards, the files that may be pushed, pushes and their errors, the ONNX companion repository, the Space.
Takes: an output directory and its report. Gives: commits.
"""
