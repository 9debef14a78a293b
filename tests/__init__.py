"""Tests, by floor: unit, system, faults, threats, chaos; their equipment in rigs."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The project's folder."""
