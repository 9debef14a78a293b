"""Benchmarks: what Pupitre costs, beside what it is built on."""
