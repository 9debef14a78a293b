"""Simulated hypervisor, for machines without one and for tests."""
