"""How long everything between the matrix products takes: norms, positions, activations, sums.

Each of these kernels streams its tokens through memory some number of times (`passes`). Two numbers
of a device describe them all: the bandwidth they reach, and the time of a kernel that does nothing.
"""

from __future__ import annotations

from sarathi.simulator.deployment import Deployment
from sarathi.simulator.devices import Device

ELEMENT = 2  # bytes of an activation
NORM = 3  # read twice, for the sum and for the result, and written
ROTATE = 2
STORE = 2  # keys and values into the cache
ADD = 3
EMBED = 6  # a table in parts: rows gathered, then those masked that another worker has


def stream_seconds(device: Device, tokens: int, width: float, kernels: int = 1) -> float:
    """Kernels that move `width` elements a token between them."""
    achieved = device.achieved
    moved = tokens * width * ELEMENT
    return kernels * achieved.elementwise_launch + moved / (
        device.bandwidth * achieved.elementwise_bandwidth
    )


def layer_seconds(deployment: Deployment, tokens: int, stores: bool = True) -> float:
    """One layer on one worker. Norms and sums are of whole rows, on every worker.

    Args:
        stores: whether keys and values go to the cache, which profiles of kernels leave out.
    """
    device = deployment.device
    width, kernels = streaming(deployment, stores)
    sums, passes = adding(deployment)
    moved = tokens * passes * ELEMENT
    return (
        stream_seconds(device, tokens, width, kernels)
        + sums * device.achieved.elementwise_launch
        + moved / (device.bandwidth * device.achieved.gemm_bandwidth)
    )


def norm_seconds(device: Device, hidden: int, tokens: int) -> float:
    return stream_seconds(device, tokens, NORM * hidden)


def embedding_seconds(deployment: Deployment, tokens: int) -> float:
    return stream_seconds(deployment.device, tokens, EMBED * deployment.model.hidden)


def streaming(deployment: Deployment, stores: bool = True) -> tuple[float, int]:
    """Elements moved for each token, and kernels, of all in a layer but the sums."""
    model = deployment.model
    queries = deployment.heads * model.head_dim
    keys = deployment.kv_heads * model.head_dim
    width: float = model.norms * NORM * model.hidden + ROTATE * (queries + keys)
    # What goes into an activation is read, and what comes out written.
    width += (3 if model.gated else 2) * (model.intermediate // deployment.tp)
    kernels = model.norms + 2
    if stores:
        width += STORE * 2 * keys
        kernels += 1
    if model.head_norms:
        width += NORM * (queries + keys)
        kernels += 2
    return width, kernels


def adding(deployment: Deployment) -> tuple[int, float]:
    """Kernels and elements moved for each token by sums with what was before the block.

    They are simple enough to run as fast as memory does. A parallel block adds three rows at once.
    """
    model = deployment.model
    return (1, (ADD + 1) * model.hidden) if model.parallel else (2, 2 * ADD * model.hidden)
