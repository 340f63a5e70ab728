"""The HTTP process's side of the engines: replicas, restarts, routing and resumption.

`fleet.Fleet` is what the server uses: it returns a `generation.Generation` for each request.
`dispatcher` gives requests to engines by `router`, `replica` keeps an engine running,
`engine_client` talks to its process. `ray/` places the processes on a cluster.
The server imports from `fleet`, `generation` and `replica`, the simulator from `router`.
"""
