"""The web server endpoint: carries commands to the cluster, and outcomes and status back."""
