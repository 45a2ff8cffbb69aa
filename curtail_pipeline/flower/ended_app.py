"""Speaks for a ServerApp or ClientApp that ended without a word.

Flower itself notices only that it is silent, after 60 s; a node takes no other order meanwhile, and a run goes on that
nobody works on. Who forked it knows at once that it was killed, and knows the token it had. With that its SuperLink or
SuperNode is told what an app itself says when it fails.
"""

import argparse
import logging
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SERVER_APP, CLIENT_APP = "flwr-serverapp", "flwr-clientapp"
SPEAKER = "flwr-app-ended"
"""In the place of a command, in lists of processes."""
KNOWN = (401, 403)
"""Answers about a token that ended with its task: the app said so itself, or its run is over."""


def speaks_for(argv: Sequence[str], code: int) -> bool:
    """Whether a process that was forked is an app that cannot have said how it ended.

    Args:
        argv: its command line.
        code: its exit code; a negative one is a signal.
    """
    return argv[0] in (SERVER_APP, CLIENT_APP) and code != 0


def speak(argv: Sequence[str], code: int) -> None:
    """Say that an app has ended; in a process of its own, for who is told may be slow to answer.

    Who has ended too, or knows already, is not told again.
    """
    import httpx

    arguments: Any = import_module("flwr.common.args")
    runtime: Any = import_module("flwr.supernode.runtime.run_clientapp")
    tls: Any = import_module("flwr.supercore.tls")
    parser = argparse.ArgumentParser()
    parser.add_argument("--runtime-api-address", required=True)
    arguments.add_args_flwr_app_common(parser)
    had = parser.parse_args(list(argv[1:]))
    client = runtime.RuntimeHttpClient.from_server_address(
        server_address=had.runtime_api_address,
        insecure=had.insecure,
        root_certificates=tls.validate_and_resolve_root_certificates(had.root_certificates, had.insecure),
        interceptors=[
            runtime.RuntimeVersionHttpInterceptor(component_name=argv[0]),
            runtime.RuntimeTokenHttpInterceptor(had.token),
        ],
    )  # without Flower's tries again, which interrupt the process when the token is not known
    ended = f"it was ended by signal {-code}" if code < 0 else f"it ended with {code}"
    try:
        client.PushTaskOutput(runtime.PushTaskOutputRequest(sub_status=runtime.SubStatus.FAILED, details=ended))
    except httpx.HTTPError as error:  # the other side then finds out by its silence
        if not (isinstance(error, httpx.HTTPStatusError) and error.response.status_code in KNOWN):
            log.warning("%s could not be spoken for: %s", argv[0], str(error).partition("\n")[0])
    finally:
        client.close()


def speak_for_all(database: Path) -> None:
    """Have a SuperLink that starts again know that all apps of the one before it have ended: they were its children.

    Their time is up; what that means for each Flower says itself when it looks.

    Args:
        database: of the SuperLink, which does not run; nothing where it is not there or has no apps yet.
    """
    if not database.exists():
        return
    with closing(sqlite3.connect(database, timeout=30)) as opened, opened:
        if opened.execute("SELECT 1 FROM sqlite_master WHERE name = 'task'").fetchone():
            opened.execute("UPDATE task SET active_until = pending_at WHERE token IS NOT NULL AND finished_at IS NULL")
