"""Waiting requests: the queue of each tenant, the order within it, and fair shares of tenants."""
