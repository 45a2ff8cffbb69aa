"""What a resident trainer says beside results: where it listens, what it does, and why it refuses.

| request | answer |
|---|---|
| `POST /train` (an `Order`) | the `Result` when the round is done; `Waiting` (202) for a replay's that is not yet |
| `GET /status` | `TrainerStatus` |
| `POST /stop` (a `StopOrder`) | `Stopped`; ends that order, and no other one, after its step |
| `POST /shutdown` | `Stopped`; ends the process as well |

Whatever is refused is a `Refusal` with an HTTP status of 400 or more.
"""

from curtail_pipeline.federation.orders import Phase, Result
from curtail_pipeline.storage.records import Message, Record


class Endpoint(Message):
    """The file that a trainer writes when it can take orders, readable by its owner only."""

    port: int
    """On the loopback address."""
    pid: int
    token: str
    """Every request carries it as `Authorization: Bearer TOKEN`."""


class TrainerStatus(Record):
    site: str
    pid: int
    busy: bool
    key: str | None
    """The segment whose order is worked on."""
    attempt: int | None
    replay: str | None
    """Empty for a live segment."""
    round: int | None
    step: int | None
    """Global number of the last step."""
    steps: int | None
    """Done in this round."""
    loss: float | None
    tokens_per_s: float | None
    phase: Phase | None = None
    """What its training thread is at."""

    def works_on(self, key: str, attempt: int, replay: str) -> bool:
        """Whether the order is one of that segment's."""
        return self.busy and (self.key, self.attempt, self.replay) == (key, attempt, replay)


class StopOrder(Message):
    """Which order to stop. Nothing happens to any other, so that who gives up late ends no one else's work."""

    key: str
    attempt: int
    replay: str = ""
    round: int | None = None
    """Any of the segment's when not given."""


class Stopped(Record):
    stopped: bool
    """Whether there was such an order."""


class Waiting(Record):
    """A replay's order is taken and not done yet; send it again to ask for its result."""

    running: bool
    """False while it waits for the trainer to have spare time."""


class Refusal(Record):
    error: str


class Answer(Message):
    """What a site's agent replies: who it is, and to an order its result or why there is none."""

    name: str
    result: Result | None = None
    error: str | None = None
    waiting: bool = False
    """The order is a replay's and not done yet: send it again later."""
