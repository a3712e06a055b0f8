"""The trainers, where all techniques meet around training runs of `transformers.Trainer`.

Owns: the order of a run, the exact loss, checkpoints and resuming, the evaluation for the report.
Takes: what `Trainer` takes, a teacher and a config for each technique. Gives: the small model and its report.
"""
