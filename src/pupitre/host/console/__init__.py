"""Consoles: tickets, sessions, native viewers."""
