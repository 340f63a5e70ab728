"""KV cache: the block pool, the hashes of its prefix cache, and the memory of each request."""
