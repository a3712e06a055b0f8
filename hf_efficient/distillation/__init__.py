"""Knowledge distillation: training a student towards the outputs and activations of a teacher.

Owns: losses, layer maps, the teacher and its cached outputs, students made from a teacher.
Takes: a `DistillationConfig`, models and batches. Gives: loss terms as sums and counts.
"""
