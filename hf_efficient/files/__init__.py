"""Writing of files and folders that an interruption leaves complete or as they were.

Owns: the names of what is written beside its place, and the moves into place.
Takes: a path. Gives: another path to write to, which takes the place of the first when the writing has ended.
"""
