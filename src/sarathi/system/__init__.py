"""What the project uses of the operating system, apart from models and requests.

`machine.py` has cores and memory within the limits of cgroups, `cpu_contention.py` the load of
other programs, `processes.py` child processes, `sockets.py` ZeroMQ sockets between processes,
`cache_folder.py` files that outlive a process. Every package may import from these modules.
"""
