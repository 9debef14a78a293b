"""Scheduler: what the cluster decides, as plain values and pure functions.

`state` is what the cluster holds, `changes` what decisions see and change of it. Nothing here waits, reads a clock, a
database or a network: `pupitre.cluster` is the shell that asks, and `pupitre.store.cluster` loads and saves.
"""
