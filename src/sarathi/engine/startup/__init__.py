"""From a model's path to an engine that is ready.

`load` runs all steps; `kv_cache_size` divides the memory, `profile` measures iteration times and
derives the time between tokens from them. `dry_run` plans without loading.
"""
