"""Pupitre: a private cloud of class computers, each in a browser tab."""

__version__ = "0.1.0"
