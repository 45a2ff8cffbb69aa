"""A StatefulSet scaled by the real client, over HTTP, against a small API server that checks what it is sent."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from curtail_pipeline.provisioning.provisioner import ProvisionError
from curtail_pipeline.provisioning.stateful_set import StatefulSetSite
from curtail_pipeline.settings.provisioner_settings import KubernetesProvisioner

SET = "/apis/apps/v1/namespaces/sites/statefulsets/fresno"


class ApiServer:
    """One StatefulSet of one namespace, for whoever has the token."""

    def __init__(self) -> None:
        self.replicas, self.ready, self.status = 0, 0, 200
        self.patches: list[tuple[str, object]] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer("GET")

            def do_PATCH(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == f"{SET}/scale" and api.status == 200:
                    assert self.headers["Content-Type"] in (
                        "application/strategic-merge-patch+json",
                        "application/merge-patch+json",
                        "application/json-patch+json",
                    )
                    api.patches.append((self.headers["Content-Type"], body))
                    api.replicas = body["spec"]["replicas"]
                self._answer("PATCH")

            def _answer(self, method: str) -> None:
                status = api.status
                if self.headers.get("Authorization") != "Bearer secret":
                    status = 401
                elif self.path != (SET if method == "GET" else f"{SET}/scale"):
                    status = 404
                meta = {"name": "fresno", "namespace": "sites"}
                kind = {"apiVersion": "apps/v1", "kind": "StatefulSet"}
                spec = {
                    "replicas": api.replicas,
                    "serviceName": "fresno",
                    "selector": {},
                    "template": {},
                }
                found = {**kind, "metadata": meta, "spec": spec, "status": {"replicas": 1, "readyReplicas": api.ready}}
                if method == "PATCH":
                    scale = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": meta}
                    found = {**scale, "spec": {"replicas": api.replicas}}
                body = json.dumps(found if status == 200 else {"kind": "Status", "code": status}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture
def api() -> Iterator[ApiServer]:
    found = ApiServer()
    yield found
    found.server.shutdown()
    found.server.server_close()


def site(api: ApiServer, folder: Path, token: str = "secret", name: str = "fresno") -> StatefulSetSite:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": api.url}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "trial", "context": {"cluster": "c", "user": "u"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    settings = KubernetesProvisioner(
        kind="kubernetes", stateful_set=name, namespace="sites", kubeconfig=str(path), context="trial"
    )
    return StatefulSetSite(settings)


def test_it_is_scaled_to_one_and_back(api: ApiServer, tmp_path: Path) -> None:
    fresno = site(api, tmp_path)
    assert fresno.state("fresno").phase == "off"
    fresno.start("fresno")
    assert api.replicas == 1 and fresno.state("fresno").phase == "starting"
    api.ready = 1
    assert fresno.state("fresno").phase == "on"
    fresno.stop("fresno")
    assert api.replicas == 0 and fresno.state("fresno").phase == "off"
    assert [body for _, body in api.patches] == [{"spec": {"replicas": 1}}, {"spec": {"replicas": 0}}]


@pytest.mark.parametrize(
    ("token", "name", "status", "said"),
    [
        ("secret", "fresno", 403, "403 Forbidden; allow get on statefulsets and patch on statefulsets/scale there"),
        ("other", "fresno", 200, "401 Unauthorized; renew the credentials"),
        ("secret", "merced", 200, "StatefulSet sites/merced: 404 Not Found; make it, with replicas: 0"),
        ("secret", "fresno", 500, "500 Internal Server Error"),
    ],
)
def test_what_the_cluster_refuses_is_one_line(
    api: ApiServer, tmp_path: Path, token: str, name: str, status: int, said: str
) -> None:
    api.status = status
    with pytest.raises(ProvisionError, match=said) as refused:
        site(api, tmp_path, token, name).start("fresno")
    assert str(refused.value).startswith("site fresno: ") and "\n" not in str(refused.value)


def test_a_cluster_that_is_not_there_is_one_line(api: ApiServer, tmp_path: Path) -> None:
    fresno = site(api, tmp_path)
    api.server.shutdown()
    api.server.server_close()
    with pytest.raises(ProvisionError, match=f"no Kubernetes API answers at {api.url}"):
        fresno.start("fresno")
    settings = KubernetesProvisioner(kind="kubernetes", stateful_set="a", kubeconfig=str(tmp_path / "none"))
    with pytest.raises(ProvisionError, match="no Kubernetes cluster is configured: "):
        StatefulSetSite(settings)
