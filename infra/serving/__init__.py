"""The endpoint: HTTP API, replicas, roll-out, autoscaling, page."""
