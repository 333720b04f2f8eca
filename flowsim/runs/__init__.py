"""Runs: settings, a method that is started, a recorder that asks when to stop, a Record, and what is derived from it.

record (what every run leaves: statuses, steps, checkpoints), derived (each number that a record shows, once),
trajectory (a record that can be asked for weights at any time), simulation (simulate, resume), recorder, stopping,
remarks; together, walking, descending, side_by_side, ensembles (many at once, the same records); dataset, encoding,
contents, loading (files).
"""
