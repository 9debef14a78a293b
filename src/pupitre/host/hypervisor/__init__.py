"""Hypervisor: the port, libvirt behind it, and what a guest's process is made of."""
