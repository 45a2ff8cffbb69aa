"""Speaks for a ClientApp that ended without a word: Flower itself notices only that it is silent, after 60 s.

The node takes no other order meanwhile. Who forked the ClientApp knows at once that it was killed, and knows the token
it had; with it the node is told what the ClientApp itself says when it fails.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

CLIENT_APP = "flwr-clientapp"
SPEAKER = "flwr-clientapp-ended"
"""In the place of a command, in lists of processes."""
TRIES = 3


def speaks_for(argv: Sequence[str], code: int) -> bool:
    """Whether a process that was forked is a ClientApp that cannot have said how it ended.

    Args:
        argv: its command line.
        code: its exit code; a negative one is a signal.
    """
    return argv[0] == CLIENT_APP and code != 0


def speak(argv: Sequence[str], code: int) -> None:
    """Tell its SuperNode that a ClientApp has ended; in a process of its own, for a node may be slow to answer.

    A node that has ended too, or knows already, is not told again.
    """
    flower: Any = import_module("flwr.supernode.runtime.run_clientapp")
    tls: Any = import_module("flwr.supercore.tls")
    parser: Any = import_module("flwr.supernode.cli.flwr_clientapp")._parse_args_run_flwr_clientapp()
    had = parser.parse_args(list(argv[1:]))
    retries = flower.make_simple_http_retry_invoker()
    retries.max_tries = TRIES
    client = flower.RuntimeHttpClient.from_server_address(
        server_address=had.runtime_api_address,
        insecure=had.insecure,
        root_certificates=tls.validate_and_resolve_root_certificates(had.root_certificates, had.insecure),
        interceptors=[
            flower.RuntimeVersionHttpInterceptor(component_name=CLIENT_APP),
            flower.RuntimeTokenHttpInterceptor(had.token),
        ],
        retry_invoker=retries,
    )
    ended = f"it was ended by signal {-code}" if code < 0 else f"it ended with {code}"
    # what cannot be said is logged there and nothing more: the node then finds out by itself
    flower.push_task_output(client=client, context=None, sub_status=flower.SubStatus.FAILED, details=ended)
    client.close()
