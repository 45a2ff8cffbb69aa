"""Small scripts under the names of Flower's programs that ask the supervisor to fork the program for them."""

import shlex
import sys
from pathlib import Path

from curtail_pipeline.flower import control_api as control

PATIENCE_S = control.START_S - 5.0
"""How long a fork is waited for while who makes it lives."""

_SPAWN = """\
import json, os, socket, sys
os.chdir(os.path.dirname(os.path.abspath(__file__)) + "/..")
try:
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout({patience_s})  # a start of its own would cost what there is too little of
        line.connect({socket!r})
        socket.send_fds(line, [json.dumps(sys.argv[1:]).encode()], [1, 2])
        if line.recv(2) == b"ok":
            os._exit(0)
except OSError as error:
    print("spawning", sys.argv[1], "without the supervisor:", error, file=sys.stderr)
code = "import sys; sys.argv = sys.argv[1:]; import {control} as control; control.entry_point(sys.argv[0])()"
os.execv({python!r}, [{python!r}, "-c", code, *sys.argv[1:]])
"""


def write_shims(folder: Path, socket: str) -> None:
    """Write the scripts.

    Args:
        folder: where they go; it is to come first on PATH.
        socket: name of the supervisor's socket, in the folder above.
    """
    folder.mkdir(exist_ok=True)
    script = folder / "spawn.py"
    script.write_text(
        _SPAWN.format(socket=socket, python=sys.executable, control=control.__name__, patience_s=PATIENCE_S),
        encoding="utf-8",
    )
    for name in control.SPAWNED:
        shim = folder / name
        command = f"{shlex.quote(sys.executable)} -I -S {shlex.quote(str(script))} {name}"
        shim.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        shim.chmod(0o700)
