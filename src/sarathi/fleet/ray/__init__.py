"""Engines on the machines of a Ray cluster. Only this package imports Ray, and only when used.

`ray_launch.on_ray` is the entry point; `cluster` connects and computes what each process needs,
`spawners` starts engines and their workers as actors.
"""
