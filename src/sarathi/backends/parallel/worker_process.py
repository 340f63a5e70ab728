"""A process that computes one place of a layout. Started by an engine, never by hand."""

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
from sarathi.backends.parallel.stage_links import new_socket
from sarathi.backends.parallel.stage_worker import StageWorker
from sarathi.backends.parallel.worker_messages import (
    Allocate,
    Check,
    Connect,
    Done,
    FromWorker,
    Loaded,
    Loading,
    Passed,
    RunStep,
    Spec,
    Stop,
    WarmUp,
    WorkerFailed,
    decode_to_worker,
    encode,
)
from sarathi.errors import ExecutorError, ModelError
from sarathi.models.model import open_model
from sarathi.system.processes import leave_signals_to_parent, parent_lives
from sarathi.system.sockets import own_address

_FIRST = RankId(0, 0)
_LOOK = 0.5  # seconds between looks at whether the parent lives
_LAST_WORDS = 1000  # milliseconds for them to be sent

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """
    Args:
        arguments: the engine's endpoint, and a `Spec` as JSON.
    """
    endpoint, text = arguments
    spec = msgspec.json.decode(text, type=Spec)
    leave_signals_to_parent()
    if spec.parent is not None:
        folder = None if spec.remote else _folder(endpoint)
        threading.Thread(target=_watch, args=(spec.parent, folder), daemon=True).start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = new_socket(context, zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, b"%d" % spec.layout.places.index(spec.place))
    socket.connect(endpoint)
    try:
        _Worker(spec, endpoint, context, socket).serve()
        return 0
    except (ModelError, ExecutorError) as error:
        socket.send(encode(WorkerFailed(str(error))))
        return 2
    except Exception as error:  # the engine must learn of it, whatever it is
        logger.exception("%s died", spec.place)
        socket.send(encode(WorkerFailed(f"it died: {type(error).__name__}: {error}")))
        return 1
    finally:
        context.destroy(linger=_LAST_WORDS)


def _watch(parent: int, folder: Path | None) -> None:
    """End when the parent has gone, even in the midst of a call that never returns.

    Args:
        folder: of the engine's sockets, which it would have removed.
    """
    while parent_lives(parent):
        time.sleep(_LOOK)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _folder(endpoint: str) -> Path:
    """Where the files of the engine's sockets are."""
    return Path(urlsplit(endpoint).path).parent


class _Worker:
    def __init__(
        self,
        spec: Spec,
        endpoint: str,
        context: zmq.Context[zmq.Socket[bytes]],
        socket: zmq.Socket[bytes],
    ) -> None:
        self._socket = socket
        self._member = StageWorker(
            open_model(Path(spec.model), spec.options.load_format),
            spec.options,
            spec.layout,
            spec.place,
            host=own_address(urlsplit(endpoint).hostname or "") if spec.remote else None,
            folder=_folder(endpoint),
            context=context,
        )

    def serve(self) -> None:
        """Do what the engine says until it says to stop."""
        member = self._member
        self._send(member.hello)
        while True:
            message, step = decode_to_worker(self._socket.recv_multipart())
            if isinstance(message, RunStep):
                assert step is not None
                member.run(message.id, step, lambda: True)  # `_watch` ends a vain wait
                if member.place == _FIRST:
                    self._send(Passed(message.id))
                continue
            if isinstance(message, Stop):
                return
            if isinstance(message, Connect):
                # Nobody else uses the socket while it loads.
                part = member.load(message, lambda share: self._send(Loading(share)))
                self._send(Loaded(part))
                continue
            if isinstance(message, Allocate):
                member.executor.allocate(message.num_blocks)
            elif isinstance(message, Check):
                member.executor.check()
            elif isinstance(message, WarmUp):
                member.warm_up(message.begins)
            self._send(Done())

    def _send(self, message: FromWorker) -> None:
        self._socket.send(encode(message))
