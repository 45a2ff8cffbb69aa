"""What is said of a failed run, and where it is posted."""

from typing import Final
from urllib.parse import urlsplit

import dagster as dg
import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from curtail_pipeline.errors import SettingsError
from curtail_pipeline.settings.alert_settings import WEBHOOK_ENV

ATTEMPTS: Final = 3
UNEXPLAINED: Final = "This run has been marked as failed from outside"
"""What Dagster says where the event before tells the reason."""
LONGEST: Final = 600
"""Characters of the reason: a chat shows no more without a click."""


def told(context: dg.RunFailureSensorContext) -> str:
    """One line on the run, one on what its first failed step said, one on where to look."""
    run = context.dagster_run
    tags = run.tags
    where = tags.get("dagster/partition") or tags.get("dagster/asset_partition_range_start", "")
    until = tags.get("dagster/asset_partition_range_end", where)
    days = f" of {where}" if where == until and where else f" of {where} to {until}" if where else ""
    return f"{run.job_name}{days} failed: {_reason(context)}\nrun {run.run_id}"


def _reason(context: dg.RunFailureSensorContext) -> str:
    for event in context.get_step_failure_events():
        error = event.step_failure_data.error
        while error is not None and error.cause is not None:
            error = error.cause
        if error is not None:
            return error.message.strip().splitlines()[0].split(": ", 1)[-1][:LONGEST]
    message = context.failure_event.message or ""
    if message and not message.startswith(UNEXPLAINED):
        return message
    events = context.instance.get_records_for_run(
        context.dagster_run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT
    ).records
    said = [record.event_log_entry.dagster_event for record in events]
    return next((event.message for event in reversed(said) if event and event.message), "no reason was given")


def post(address: str, text: str, timeout_s: float) -> None:
    """Post to a Slack-compatible webhook. Errors name its host alone: whoever knows the address may post there.

    Raises:
        SettingsError: it was not accepted, three times.
    """
    retrying = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(max=5),
        retry=retry_if_exception_type(httpx.HTTPError),
        reraise=True,
    )
    try:
        retrying(lambda: httpx.post(address, json={"text": text}, timeout=timeout_s).raise_for_status())
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = f"was not reached ({type(error).__name__})"
        if isinstance(error, httpx.HTTPStatusError):
            why = f"answered {error.response.status_code}"
        raise SettingsError(
            f"nobody was told: the webhook at {urlsplit(address).hostname} {why}; correct {WEBHOOK_ENV} or "
            "alerts.webhook"
        ) from None
