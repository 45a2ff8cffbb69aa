"""What rounds over long lines cost, from what the run told and what was seen of the sites' trainers."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ConfigDict

from curtail_pipeline.storage.records import Json, Record


class Line(Record):
    """A line that a program in a space printed: an event of the run, or a change of what a trainer does."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    at: float
    """Wall seconds since the epoch."""
    event: str = ""
    key: str | None = None
    """Of the segment."""
    round: int | None = None
    members: tuple[str, ...] | Mapping[str, str] = ()
    """Of a planned segment."""
    training_s: float = 0.0
    moving_s: float | None = None
    merging_s: float = 0.0
    reason: str = ""
    site: str = ""
    pid: int | None = None
    phase: str | None = None
    steps: int | Mapping[str, int] | None = None
    """Of a trainer in its round; of a merged round by site."""


class Stay(Record):
    """A site's part in a round, as its trainer was seen at it. Wall seconds since the epoch."""

    begins: float
    trains: float
    """The first step begins."""
    stepped: float
    """The first step is done."""
    stores: float
    ends: float


def stays(seen: Sequence[Line]) -> dict[tuple[str, int], Stay]:
    """Per segment and round, for one site; rounds of which not every part was seen are left out."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    last: tuple[str, int] | None = None
    for line in seen:
        place = (line.key, line.round) if line.key is not None and line.round is not None else None  # between orders
        if last is not None and place != last:
            found[last].setdefault("ends", line.at)
        last = place
        if place is None:
            continue
        mine = found.setdefault(place, {"begins": line.at})
        if line.phase in ("compile", "train"):
            mine.setdefault("trains", line.at)
        if isinstance(line.steps, int) and line.steps:
            mine.setdefault("stepped", line.at)
        if line.phase == "store":
            mine.setdefault("stores", line.at)
    return {place: Stay(**parts) for place, parts in found.items() if parts.keys() >= set(Stay.model_fields)}


def figures(events: Sequence[Line], sites: Mapping[str, Sequence[Line]], joins: str) -> dict[str, Json]:
    """Seconds of a round by part (medians over federated rounds), and from a site's joining to its first step.

    `fetch`, `train` and `store` are those of the slowest site; `messages` is what is left of the round: an order's way
    to the site, the result's way back, and the polls between.

    Args:
        joins: the site that was not in the first segment.
    """
    known = {site: stays(seen) for site, seen in sites.items()}
    parts: dict[str, list[float]] = {name: [] for name in ("round", "fetch", "train", "store", "merge", "messages")}
    members: Sequence[str] = ()
    key, site_rounds, training = "", 0, 0.0
    for event in events:
        if event.event == "SegmentPlanned":
            key, members = event.key or "", [*event.members]
        if event.event != "RoundMerged" or event.round is None:
            continue
        site_rounds += len(members)
        there = [stay for site in members if (stay := known[site].get((key, event.round)))]
        if len(there) < len(members) or len(members) < 2 or event.moving_s is None:
            continue
        slowest = max(there, key=lambda stay: stay.ends)
        wall = event.training_s + event.moving_s + event.merging_s
        training += event.training_s
        for name, value in {
            "round": wall, "fetch": slowest.trains - slowest.begins, "train": slowest.stores - slowest.trains,
            "store": slowest.ends - slowest.stores, "merge": event.merging_s,
            "messages": wall - event.merging_s - (slowest.ends - slowest.begins),
        }.items():  # fmt: skip
            parts[name].append(value)
    medians = {name: round(statistics.median(values), 2) for name, values in parts.items() if values}
    return {
        "rounds": sum(event.event == "RoundMerged" for event in events),
        "site_rounds": site_rounds,
        "lost": [f"{event.site}: {event.reason}" for event in events if event.event == "SiteLost"],
        "round_s": medians.pop("round", None),
        "round_parts_s": dict(medians),
        "nontraining_share": round(1 - training / sum(parts["round"]), 3) if parts["round"] else None,
        **_joining(events, known[joins], joins),
    }


def _joining(events: Sequence[Line], stays_: Mapping[tuple[str, int], Stay], site: str) -> dict[str, Any]:
    """From the decision that the site trains (its segment is planned) to its first step, without the download in that.

    Parts: `submit`, until Flower has the run; `deliver`, from there until the site is at its order; `download`; and
    `first_step`.
    """
    planned: Line | None = None
    for event in events:
        if event.event == "SegmentPlanned" and site in event.members:
            planned = event
        if planned is not None and event.event == "Submitted":
            mine = [stay for (key, _), stay in stays_.items() if key == planned.key]
            if not mine:
                break
            first = min(mine, key=lambda stay: stay.begins)
            parts = {
                "submit": event.at - planned.at, "deliver": first.begins - event.at,
                "download": first.trains - first.begins, "first_step": first.stepped - first.trains,
            }  # fmt: skip
            join_s = first.stepped - planned.at - parts["download"]
            return {"join_s": round(join_s, 2), "join_parts_s": {name: round(s, 2) for name, s in parts.items()}}
    return {"join_s": None, "join_parts_s": {}}


def arm_of(found: Mapping[str, Json]) -> dict[str, Json]:
    """The main figures of a run."""
    names = ("round_s", "round_parts_s", "nontraining_share", "join_s", "load")
    return {"bytes": found["bytes_per_site_round"], **{name: found[name] for name in names}}
