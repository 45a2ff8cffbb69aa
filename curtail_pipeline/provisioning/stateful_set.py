"""A site as a Kubernetes StatefulSet of one pod, scaled to 1 and to 0 with the official client."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from curtail_pipeline.provisioning.provisioner import ProvisionError, Standing
from curtail_pipeline.settings.provisioner_settings import KubernetesProvisioner

if TYPE_CHECKING:
    from kubernetes import client

T = TypeVar("T")

REQUEST_S = 15.0
"""For one request; the cluster answers from its memory."""


class StatefulSetSite:
    """See the module. Raises ProvisionError where the client is not installed or finds no cluster."""

    def __init__(self, settings: KubernetesProvisioner) -> None:
        self._settings = settings
        self._name = f"StatefulSet {settings.namespace}/{settings.stateful_set}"
        self._api = _connect(settings)

    def start(self, site: str) -> None:
        self._scale(site, 1)

    def stop(self, site: str) -> None:
        self._scale(site, 0)

    def state(self, site: str) -> Standing:
        settings = self._settings
        found = self._asked(
            site,
            lambda: self._api.read_namespaced_stateful_set(
                settings.stateful_set, settings.namespace, _request_timeout=REQUEST_S
            ),
        )
        if not found.spec.replicas:
            return Standing("off", f"{self._name} is scaled to 0")
        return Standing("on" if (found.status.ready_replicas or 0) > 0 else "starting")

    def _scale(self, site: str, replicas: int) -> None:
        settings, body = self._settings, {"spec": {"replicas": replicas}}
        self._asked(
            site,
            lambda: self._api.patch_namespaced_stateful_set_scale(
                settings.stateful_set, settings.namespace, body, _request_timeout=REQUEST_S
            ),
        )

    def _asked(self, site: str, request: Callable[[], T]) -> T:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return request()
        except ApiException as error:
            hints = {
                401: "; renew the credentials of its kubeconfig",
                403: "; allow get on statefulsets and patch on statefulsets/scale there",
                404: "; make it, with replicas: 0, or correct provisioner.stateful_set and namespace",
            }
            hint = hints.get(error.status or 0, "")
            raise ProvisionError(f"site {site}: {self._name}: {error.status} {error.reason}{hint}") from error
        except HTTPError as error:
            raise ProvisionError(
                f"site {site}: {self._name}: no Kubernetes API answers at {self._api.api_client.configuration.host} "
                f"({type(error).__name__})"
            ) from error


def _connect(settings: KubernetesProvisioner) -> "client.AppsV1Api":
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise ProvisionError(
            "the kubernetes provisioner needs the package kubernetes; install curtail_pipeline[kubernetes]"
        ) from error
    configuration = client.Configuration()
    try:
        if settings.kubeconfig is None and settings.context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=configuration)
        else:
            config.load_kube_config(settings.kubeconfig, settings.context, client_configuration=configuration)
    except config.ConfigException as error:
        raise ProvisionError(f"no Kubernetes cluster is configured: {' '.join(str(error).split())}") from error
    configuration.retries = 1  # a failed start is tried again with a growing wait
    return client.AppsV1Api(client.ApiClient(configuration))
