"""The answers to one round's orders: waited for until every site has answered or is lost."""

from collections.abc import Callable
from typing import Literal

from curtail_pipeline.federation.liveness import Liveness
from curtail_pipeline.federation.orders import Result
from curtail_pipeline.federation.transport import Failure, Malformed, Transport

POLL_S = 0.2
LONGEST_POLL_S = 1.0


def collect(
    transport: Transport,
    liveness: Liveness,
    index: int,
    pending: set[str],
    *,
    beat: Callable[[Literal["collecting"]], None],
    wait: Callable[[float], None],
) -> tuple[dict[str, Result], dict[str, str], dict[str, str]]:
    """Results, sites that are lost with the reason, and sites whose answer is no result with what it is.

    Args:
        index: of the round.
        pending: sites that were sent an order.
        beat: told that whoever collects is at work.
        wait: sleeps so many seconds.
    """
    results: dict[str, Result] = {}
    lost: dict[str, str] = {}
    malformed: dict[str, str] = {}
    pause = POLL_S
    while True:
        beat("collecting")
        for site, answer in transport.poll():
            if site not in pending:
                continue
            if isinstance(answer, Failure):
                lost[site] = answer.reason
            elif isinstance(answer, Malformed):
                malformed[site] = answer.reason
            elif answer.round == index:
                results[site] = answer
            else:
                malformed[site] = f"its result is of round {answer.round}, not of round {index}"
            pending.discard(site)
        for site in sorted(pending):
            reason = liveness.lost(site)
            if reason:
                lost[site] = reason
                pending.discard(site)
        if not pending:
            return results, lost, malformed
        wait(pause)
        pause = min(pause * 1.05, LONGEST_POLL_S)  # polls are not free: seldom in a long round, soon in a short one
