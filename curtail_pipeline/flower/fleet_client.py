"""A SuperLink's Fleet API as a SuperNode uses it: to try what a site's key is good for."""

import ssl
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from curtail_pipeline.flower.control_api import quiet
from curtail_pipeline.flower.keys import public_key_of

INTERVAL_S = 30.0


class Fleet:
    """Requests signed with a site's key, as `flower-supernode` signs them.

    Args:
        front: host:port that sites know.
        authority: PEM file of who vouches for it.
        key: the site's private key, its public half beside it.
    """

    def __init__(self, front: str, authority: Path, key: Path) -> None:
        with quiet():
            from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
            from flwr.supernode.fleet_http_client import FleetHttpClient
            from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
        self._public = public_key_of(key)
        private = serialization.load_ssh_private_key(key.read_bytes(), None)
        public = serialization.load_pem_public_key(self._public)
        assert isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(public, ec.EllipticCurvePublicKey)
        self._client = FleetHttpClient(
            f"https://{front}",
            interceptors=[
                NodeAuthHttpInterceptor(private, public),
                RuntimeVersionHttpInterceptor(component_name="flwr-supernode"),
            ],
            verify=ssl.create_default_context(cafile=str(authority)),
        )

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_: object) -> None:
        self._client._client.close()

    def activate(self) -> None:
        """Have the key's node count as online."""
        with quiet():
            from flwr.proto.fleet_pb2 import ActivateNodeRequest
        self._client.ActivateNode(ActivateNodeRequest(public_key=self._public, heartbeat_interval=INTERVAL_S))

    def beat(self, node: int) -> int:
        """The HTTP status of a sign of life of that node."""
        import httpx

        with quiet():
            from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
            from flwr.proto.node_pb2 import Node
        try:
            request = SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=INTERVAL_S)
            self._client.SendNodeHeartbeat(request)
        except httpx.HTTPStatusError as error:
            return error.response.status_code
        return 200
