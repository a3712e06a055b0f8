"""Datasets, from files or from the Hub.

Owns: the one reader of files, the names of columns, the normalisation of labels.
Takes: a `DataConfig`. Gives: a `DatasetDict` with "train" and "evaluation".
"""
