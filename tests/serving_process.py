"""A server of a tiny model in a process of its own: descriptors, memory and signals are a process's."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2

PATIENCE = 3  # seconds, with answers in the making when the server is stopped
_PROGRAM = """
import resource, sys
sys.path.insert(0, sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
from dataclasses import replace
from tiny_words import tiny_word_system
from unspoken.serving import Limits, Served, server
served = Served(system=replace(tiny_word_system(), name="tiny", max_tokens=8))
server.open_served = lambda *_, **__: served
limits = Limits(head_seconds=60, body_seconds=60)
server.serve("tiny", port=int(sys.argv[3]), limits=limits, drain_seconds=int(sys.argv[4]))
"""


@dataclass(frozen=True)
class ServingProcess:
    """Where it is."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def serving_process(log: Path, descriptors: int = 1024) -> Iterator[ServingProcess]:
    """A server that is up; what it prints goes to a file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("wb") as lines:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(Path(__file__).parent), str(descriptors), str(port), str(PATIENCE)],
            stdout=lines,
            stderr=lines,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"http://127.0.0.1:{port}/health", timeout=1).status_code == 200:
                    break
            time.sleep(0.1)
        yield ServingProcess(process, port)
    finally:
        process.kill()
        process.wait()
