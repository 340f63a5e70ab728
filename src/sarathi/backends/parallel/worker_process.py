"""The process of one rank. Started by an engine, never by hand."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import zmq

from sarathi.backends.parallel.rank_layout import RankId
from sarathi.backends.parallel.stage_worker import StageWorker
from sarathi.backends.parallel.worker_messages import (
    Connect,
    Done,
    FirstStageDone,
    FromWorker,
    Loaded,
    Loading,
    RunStep,
    Stop,
    WorkerFailed,
    WorkerSpec,
    decode_to_worker,
    encode,
)
from sarathi.errors import ExecutorError, ModelError
from sarathi.models.model import open_model
from sarathi.system.processes import leave_signals_to_parent, parent_lives
from sarathi.system.sockets import new_socket, own_address

_FIRST = RankId(0, 0)
_POLL = 0.5  # seconds between checks whether the parent lives
_LINGER = 1000  # milliseconds for the last message to be sent

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Connect to the engine and serve it until it ends or this process fails.

    Args:
        arguments: the engine's endpoint, and a `WorkerSpec` as JSON.
    """
    endpoint, text = arguments
    spec = msgspec.json.decode(text, type=WorkerSpec)
    leave_signals_to_parent()
    if spec.parent is not None:
        folder = None if spec.remote else _folder(endpoint)
        threading.Thread(target=_watch, args=(spec.parent, folder), daemon=True).start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = new_socket(context, zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, b"%d" % spec.layout.ranks.index(spec.rank_id))
    socket.connect(endpoint)
    try:
        worker = StageWorker(
            open_model(Path(spec.model), spec.options.load_format),
            spec.options,
            spec.layout,
            spec.rank_id,
            host=own_address(urlsplit(endpoint).hostname or "") if spec.remote else None,
            folder=_folder(endpoint),
            context=context,
        )
        _serve(worker, socket)
        return 0
    except (ModelError, ExecutorError) as error:
        socket.send(encode(WorkerFailed(str(error))))
        return 2
    except Exception as error:  # of any kind: the engine reports it
        logger.exception("%s died", spec.rank_id)
        socket.send(encode(WorkerFailed(f"it died: {type(error).__name__}: {error}")))
        return 1
    finally:
        context.destroy(linger=_LINGER)


def _watch(parent: int, folder: Path | None) -> None:
    """End this process when the parent has ended, even during a call that never returns.

    Args:
        folder: of the engine's sockets, which it would have removed.
    """
    while parent_lives(parent):
        time.sleep(_POLL)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _folder(endpoint: str) -> Path:
    """Return the folder of the engine's socket files."""
    return Path(urlsplit(endpoint).path).parent


def _serve(worker: StageWorker, socket: zmq.Socket[bytes]) -> None:
    """Carry out the engine's messages until `Stop`."""

    def send(message: FromWorker) -> None:
        socket.send(encode(message))

    send(worker.hello)
    while True:
        message, step = decode_to_worker(socket.recv_multipart())
        if isinstance(message, RunStep):
            assert step is not None
            worker.run(message.id, step, lambda: True)  # `_watch` ends a wait without end
            if worker.rank_id == _FIRST:
                send(FirstStageDone(message.id))
            continue
        if isinstance(message, Stop):
            return
        if isinstance(message, Connect):
            # Nothing else uses the socket while the model loads.
            part = worker.load(message, lambda share: send(Loading(share)))
            send(Loaded(part))
            continue
        worker.call(message)
        send(Done())
