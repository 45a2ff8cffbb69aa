"""The answers to one round's orders: waited for until every site has answered, is lost, or is too late."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from curtail_pipeline.federation.grace import Quorum
from curtail_pipeline.federation.liveness import Liveness
from curtail_pipeline.federation.orders import Result
from curtail_pipeline.federation.transport import Failure, Malformed, Reply, Transport

POLL_S = 0.2
LONGEST_POLL_S = 1.0


@dataclass
class Answers:
    """What became of a round's orders, by site."""

    results: dict[str, Result] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    malformed: dict[str, str] = field(default_factory=dict)
    """Whose answer is no result, and what it is."""
    late: dict[str, str] = field(default_factory=dict)
    """Who was waited for no longer, and how long it was."""
    overdue: dict[str, str] = field(default_factory=dict)
    """Whose answer to an earlier round came in this one."""

    def take(self, site: str, answer: Reply, index: int) -> None:
        if isinstance(answer, Failure):
            self.lost[site] = answer.reason
        elif isinstance(answer, Malformed):
            self.malformed[site] = answer.reason
        elif answer.round == index:
            self.results[site] = answer
        else:
            self.malformed[site] = f"its result is of round {answer.round}, not of round {index}"


@dataclass
class Collector:
    """Collects the answers of one round after the other.

    Args:
        clock: monotonic seconds.
        beat: told that whoever collects is at work.
        wait: sleeps so many seconds.
    """

    transport: Transport
    liveness: Liveness
    quorum: Quorum
    clock: Callable[[], float]
    beat: Callable[[Literal["collecting"]], None]
    wait: Callable[[float], None]
    owing: set[tuple[str, int]] = field(default_factory=set)
    """Sites that were late, and the round that they have not answered yet."""

    def collect(self, index: int, asked: set[str], meanwhile: Callable[[], None]) -> Answers:
        """Wait for what became of the orders of round `index`, which these sites were just sent.

        Args:
            meanwhile: called after every look.
        """
        found, pending, begun = Answers(), set(asked), self.clock()
        times: list[float] = []
        pause = POLL_S
        while True:
            for site, answer in self._poll(found, index):
                if site in pending:
                    found.take(site, answer, index)
                    pending.discard(site)
                    times += [self.clock() - begun] if site in found.results else []
            for site in sorted(pending):
                reason = self.liveness.lost(site)
                if reason:
                    found.lost[site] = reason
                    pending.discard(site)
            until = self.quorum.waits_until(len(asked), times)
            if pending and until is not None and self.clock() - begun >= until:
                found.late = dict.fromkeys(sorted(pending), self._why(len(times), self.clock() - begun))
                self.owing |= {(site, index) for site in pending}
                pending = set()
            if not pending:
                return found
            meanwhile()
            self.wait(pause)
            pause = min(pause * 1.05, LONGEST_POLL_S)  # polls are not free: seldom in a long round, soon in a short one

    def await_late(self, limit_s: float) -> None:
        """Wait for sites that are late, but not longer: whoever orders next finds them free."""
        begun = self.clock()
        while self.owing and self.clock() - begun < limit_s:
            for _ in self._poll(Answers(), -1):
                pass
            if self.owing:
                self.wait(POLL_S)

    def _poll(self, found: Answers, index: int) -> list[tuple[str, Reply]]:
        """What has arrived of this round; answers to an earlier one are noted."""
        self.beat("collecting")
        arrived = []
        for site, answer in self.transport.poll():
            number = index if answer.round is None else answer.round
            if (site, number) in self.owing:
                self.owing.remove((site, number))
                found.overdue[site] = f"its answer to round {number} came after that was merged, and is not used"
            else:
                arrived.append((site, answer))
        return arrived

    def _why(self, answered: int, after: float) -> str:
        return f"no answer after {after:.1f} s: {answered} others had answered, and grace is {self.quorum.grace:g}"
