"""What an error says of a webhook, whose address is a secret."""

import traceback

import httpx
import pytest
import tenacity

from curtail_pipeline.errors import SettingsError
from curtail_pipeline.orchestration import alerts

SECRET = "T0AA/B0BB/secret"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            f"https://hooks.example/services/{SECRET}",
            r"the webhook at hooks\.example answered 404; correct",
        ),
        (f"https://away.example/services/{SECRET}", r"the webhook at away\.example was not reached \(ConnectError\)"),
        (f"https://hooks.example:x/{SECRET}", r"the webhook at hooks\.example was not reached \(InvalidURL\)"),
    ],
)
def test_a_webhook_that_does_not_take_it_is_named_by_its_host(
    address: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def post(url: str, **_: object) -> httpx.Response:
        request = httpx.Request("POST", url)
        if request.url.host == "away.example":
            raise httpx.ConnectError(f"no way to {url}", request=request)
        return httpx.Response(404, request=request)

    monkeypatch.setattr(httpx, "post", post)
    monkeypatch.setattr(alerts, "wait_exponential", lambda max: tenacity.wait_none())
    with pytest.raises(SettingsError, match=said) as caught:
        alerts.post(address, "local_training failed", 1.0)
    assert "secret" not in "".join(traceback.format_exception(caught.value))
