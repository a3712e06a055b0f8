"""Datasets, from files or from the Hub.

Owns: reading files and Hub datasets, finding the columns of texts and labels, mapping labels to a model's ids.
Takes: a `DataConfig`.
Gives: a `DatasetDict` with the splits "train" and "evaluation", `Columns`, and label ids.
"""
