"""What a resident trainer says beside results: where it listens, what it does, and why it refuses.

| request | answer |
|---|---|
| `POST /train` (an `Order`) | the `Result`, when the round is done |
| `GET /status` | `TrainerStatus` |
| `POST /stop` | `Stopped`; ends the running round after its step |
| `POST /shutdown` | `Stopped`; ends the process as well |

Whatever is refused is a `Refusal` with an HTTP status of 400 or more.
"""

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
    round: int | None
    step: int | None
    """Global number of the last step."""
    steps: int | None
    """Done in this round."""
    loss: float | None
    tokens_per_s: float | None


class Stopped(Record):
    stopped: bool
    """Whether there was a round to stop."""


class Refusal(Record):
    error: str
