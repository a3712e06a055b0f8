"""Knowledge distillation: training a student towards the outputs and intermediate outputs of a teacher.

Owns: losses, maps of layers, the teacher, its cached outputs and generated targets, students made from a teacher.
Takes: a `DistillationConfig`, models, datasets and batches.
Gives: loss terms as sums and counts, datasets with the teacher's outputs, students.
"""
