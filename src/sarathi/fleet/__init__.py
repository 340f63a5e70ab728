"""The HTTP process's side of the engines: replicas, restarts, routing and resumption.

`fleet.Fleet` is what the server uses: it keeps engines running and returns a `Generation` for each
request. `router` gives requests to engines, `engine_client` talks to the process of one. `ray/`
places the processes on a cluster. The simulator imports from `router`, the server from the others.
"""
