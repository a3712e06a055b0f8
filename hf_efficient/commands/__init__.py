"""The commands of `hf-efficient`: arguments in, files and a report out, progress and tables on the screen.

Owns: the flags, what a command checks and prepares before any work, what it prints.
Takes: the arguments of a command line. Gives: an output directory and an exit status.
"""
