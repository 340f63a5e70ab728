"""One model on several processes: pipeline stages, and ranks that share each stage.

The engine opens a `pipeline.Pipeline` (as `SingleProcess`), which runs steps. `worker_group` starts
the other processes and exchanges `worker_messages` with them. Every process computes through
`stage_worker`, which is what the others run. `rank_layout` defines which process computes what.
"""
