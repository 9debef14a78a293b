"""Typed messages between endpoint, cluster and hosts, over NATS."""
