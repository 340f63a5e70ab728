"""The HTTP process's side of the engines: replicas, restarts, routing and resumption.

`fleet.Fleet` is what the server uses: it returns a `Generation` for each request. `router` gives
requests to engines, `replica` keeps an engine running, `engine_client` talks to its process. `ray/`
places the processes on a cluster. The simulator imports from `router`, the server from the others.
"""
