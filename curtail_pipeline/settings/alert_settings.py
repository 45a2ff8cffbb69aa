"""Who is told when a run fails."""

import os

from pydantic import Field

from curtail_pipeline.settings.section import Section

WEBHOOK_ENV = "CURTAIL_WEBHOOK"
"""The address in place of the experiment's: that of a chat is a secret, and a home keeps a copy of its experiment."""


class AlertSettings(Section):
    webhook: str | None = Field(default=None, pattern=r"^https?://\S+$")
    """Where a failed run is posted as JSON `{"text": ...}`, which Slack, Mattermost and Rocket.Chat understand."""
    timeout_s: float = Field(default=10.0, gt=0)

    @property
    def address(self) -> str | None:
        """`CURTAIL_WEBHOOK`, or else the experiment's; None where nobody is told."""
        return os.environ.get(WEBHOOK_ENV) or self.webhook
