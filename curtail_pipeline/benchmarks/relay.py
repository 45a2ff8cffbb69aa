"""A TCP relay whose line can be cut: what a partition is for the two ends, without a namespace or a firewall."""

import contextlib
import socket
import threading
import time
from typing import Literal

Line = Literal["whole", "silent", "refused"]
"""`silent`: connections stay and nothing comes through; `refused`: there is nobody."""

PART = 1 << 16


class Relay:
    """Passes on what comes to a port of its own to `target` (host:port)."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._passes = threading.Event()
        self._passes.set()
        self._refuses = False
        self._ends: set[socket.socket] = set()
        self._guard = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="relay", daemon=True).start()

    def set(self, line: Line) -> None:
        """From now on."""
        self._refuses = line == "refused"
        if line == "silent":
            self._passes.clear()
        else:
            self._passes.set()
        if self._refuses:
            self._hang_up()

    def cut(self, seconds: float | None) -> None:
        """Silent for so long; None for ever."""
        self.set("silent")
        if seconds is not None:
            timer = threading.Timer(seconds, self.set, ["whole"])
            timer.daemon = True
            timer.start()

    def close(self) -> None:
        self._passes.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._hang_up()

    def _hang_up(self) -> None:
        with self._guard:
            ends = [*self._ends]
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._refuses:
                near.close()
                continue
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        self._passes.wait()
        host, port = self._target.split(":")
        try:
            far = socket.create_connection((host, int(port)), timeout=5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        with self._guard:
            self._ends |= {near, far}
        back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
        back.start()
        self._pump(near, far)
        back.join()
        with self._guard:
            self._ends -= {near, far}
        near.close()
        far.close()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PART):
                self._passes.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def wait_until_listens(address: str, seconds: float) -> None:
    """
    Raises:
        TimeoutError: nothing does.
    """
    host, port = address.split(":")
    deadline = time.monotonic() + seconds
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing listens at {address} after {seconds:.0f} s")
        time.sleep(0.1)
