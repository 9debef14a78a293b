"""What travels between endpoint, cluster and hosts: typed messages over NATS."""
