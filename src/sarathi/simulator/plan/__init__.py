"""Which hardware to rent: the cheapest deployment that serves a load within latency targets."""
