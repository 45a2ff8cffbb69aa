"""What the command line shows: progress of a headless run, and its summary."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import polars as pl
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from curtail_pipeline.emissions.baselines import by_name
from curtail_pipeline.federation.progress import RoundMerged, StepDone
from curtail_pipeline.simulation.policy_table import by_rank
from curtail_pipeline.stages.run_events import (
    AttemptFailed,
    Committed,
    Event,
    Incomplete,
    Paused,
    Preparing,
    SegmentStarted,
)
from curtail_pipeline.times import parse_utc

if TYPE_CHECKING:
    from curtail_pipeline.cli.signals_listed import Answer, Source
    from curtail_pipeline.cli.windows_of_file import CheckSaid, FileWindows
    from curtail_pipeline.simulation.paper_claims import Reproduction
    from curtail_pipeline.simulation.summary import Summary
    from curtail_pipeline.simulation.sweep import RoundLength
    from curtail_pipeline.stages.checkpoint_rows import CheckpointRow
    from curtail_pipeline.stages.project import Project
    from curtail_pipeline.stages.run_report import RunSummary

ERR = Console(stderr=True, emoji=False)
OUT = Console(width=None if sys.stdout.isatty() else 150, emoji=False)
"""Tables in a file or a pipe are wide; on a terminal they take its width."""


class RunConsole:
    """Takes the events of a headless run; a live panel on a terminal, a line per event elsewhere."""

    def __init__(self, project: "Project") -> None:
        self.project = project
        self._head = ""
        self._sites: dict[str, StepDone] = {}
        self._loss: float | None = None
        self._live = Live(console=ERR, refresh_per_second=4, transient=True) if ERR.is_terminal else None
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)

    def __call__(self, event: Event) -> None:
        match event:
            case Preparing():
                self._say(f"preparing {event.what}")
            case Incomplete():
                self._say(event.error)
            case Paused():
                self._head = f"{event.end:%Y-%m-%d %H:%M}  pause"
                self._say(f"{event.start:%m-%d %H:%M} -> {event.end:%m-%d %H:%M}  pause       {event.reason}")
            case SegmentStarted():
                self._head = f"{event.start:%Y-%m-%d %H:%M}  {event.mode}  {event.key}  {', '.join(event.members)}"
                self._sites, self._loss = {}, None
            case RoundMerged():
                self._loss = self._loss if event.loss is None else event.loss
            case StepDone():
                self._sites[event.site] = event
            case AttemptFailed():
                self._say(f"{event.key} attempt {event.attempt} failed: {event.error}")
            case Committed():
                manifest = event.manifest
                rates = sum(done.tokens_per_s or 0 for done in self._sites.values())
                self._say(
                    f"{manifest.start:%m-%d %H:%M} -> {manifest.end:%m-%d %H:%M}  {manifest.mode:<10}  {manifest.key}  "
                    f"{', '.join(manifest.members)}: {manifest.rounds} rounds, {manifest.tokens.segment:,} tokens"
                    + (f", loss {self._loss:.3f}" if self._loss is not None else "")
                    + (f", {rates:,.0f} tokens/s" if rates else "")
                )
        if self._live:
            self._live.update(self._panel())

    def _say(self, line: str) -> None:
        stamped = f"[{time.monotonic() - self._began:6.1f} s] {line}"
        if self._live:
            self._live.console.print(Text(stamped))
        else:
            print(stamped, file=sys.stderr, flush=True)

    def _panel(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for site, done in self._sites.items():
            table.add_row(
                site,
                f"round {'' if done.round is None else done.round}",
                f"step {'' if done.step is None else done.step}",
                f"loss {done.loss:.3f}" if done.loss is not None else "",
                f"{done.tokens_per_s:,.0f} tokens/s" if done.tokens_per_s else "",
            )
        return Group(Text(self._head, style="bold"), table)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


COLUMNS: tuple[tuple[str, Literal["left", "right"]], ...] = (
    ("key", "left"),
    ("mode", "left"),
    ("members", "left"),
    ("rounds", "right"),
    ("tokens", "right"),
    ("held-out loss", "right"),
    ("kWh", "right"),
    ("gCO2", "right"),
    ("stop reason", "left"),
)
"""Of the list of checkpoints, each with the side its values are aligned to."""
LONG = 500
"""Rows from which a list is plain aligned lines: drawing a box around ten thousand takes seconds."""


def _cells(row: "CheckpointRow") -> tuple[str, ...]:
    return (
        row.key,
        row.mode,
        ", ".join(row.members),
        str(row.rounds),
        f"{row.tokens:,}",
        _number(row.heldout_loss, 3),
        _number(row.kwh, 2),
        _number(row.co2_g, 0),
        row.stop_reason,
    )


def checkpoints_table(rows: "Sequence[CheckpointRow]") -> Table:
    table = Table(title=f"Checkpoints{_resting(row.basis for row in rows)}", title_justify="left")
    for name, side in COLUMNS:
        table.add_column(name, justify=side, overflow="fold", no_wrap=name != "stop reason")
    for row in rows:
        table.add_row(*map(escape, _cells(row)))
    return table


def aligned_lines(rows: "Sequence[CheckpointRow]") -> list[str]:
    """A line per checkpoint below one of names."""
    lines = [tuple(name for name, _ in COLUMNS), *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = ["<" if side == "left" else ">" for _, side in COLUMNS]
    form = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    return [form.format(*cells).rstrip() for cells in lines]


def _resting(labels: Iterable[str | None]) -> str:
    """What energy and CO2 rest on, once each."""
    known = sorted({label for label in labels if label is not None})
    return f"; kWh and gCO2: {' and '.join(known)}" if known else ""


def print_checkpoints(rows: "Sequence[CheckpointRow]") -> None:
    """The list, newest last."""
    if len(rows) < LONG:
        OUT.print(checkpoints_table(rows))
    else:
        print("\n".join(["Checkpoints" + _resting(row.basis for row in rows), *aligned_lines(rows)]))


def print_summary(summary: "RunSummary", reason: str) -> None:
    """The closing table, totals against each always-on baseline, and where the results are."""
    OUT.print(checkpoints_table(summary.checkpoints))
    if summary.baselines:
        title = "Totals against always-on training of the same steps"
        table = Table(title=f"{title}{_resting([summary.basis])}", title_justify="left")
        for name in ("", "hours", "kWh", "gCO2", "ours / baseline"):
            table.add_column(name, justify="left" if not name else "right")
        hours = (parse_utc(summary.end) - parse_utc(summary.start)).total_seconds() / 3600
        table.add_row("this run", _number(hours, 1), _number(summary.kwh, 2), _number(summary.co2_g, 0), "")
        for name, base in by_name(summary.baselines).items():
            share = base.ours_of_baseline
            table.add_row(
                escape(f"always on in {name}"),
                _number(base.hours, 1),
                _number(base.kwh, 2),
                _number(base.co2_g, 0),
                "-" if share is None else f"{100 * share:.1f} %",
            )
        OUT.print(table)
        for missing in dict.fromkeys(base.reason for base in summary.baselines if base.reason):
            OUT.print(f"no gCO2 of a baseline: {missing}")
    if summary.unaccounted_kwh:
        lost = f"{_number(summary.unaccounted_kwh, 2)} kWh have no accounting signal"
        low, high = _number(summary.co2_g_low, 0), _number(summary.co2_g_high, 0)
        bounded = summary.co2_g_low is not None
        OUT.print(f"{lost}: between {low} and {high} gCO2 with them" if bounded else f"{lost}, and nothing bounds them")
    share = summary.curtailed_share
    traces = "synthetic traces (a model, not a grid)" if summary.synthetic else "recorded traces"
    OUT.print(
        f"{summary.experiment}: {reason}; {summary.steps:,} steps, {summary.tokens:,} tokens on {traces}"
        + (f"; {100 * share:.1f} % of the energy inside curtailment windows" if share is not None else "")
        + (f"; energy and CO2: {summary.basis}" if summary.basis is not None else "")
    )
    OUT.print(_against_centralised(summary))
    OUT.print(f"report:     {summary.report}")
    OUT.print(f"checkpoint: {summary.checkpoint}")


def _against_centralised(summary: "RunSummary") -> str:
    """The last checkpoint's held-out loss beside that of centralised training, or why there is none."""
    ours = next((row.heldout_loss for row in reversed(summary.checkpoints) if row.heldout_loss is not None), None)
    reference = summary.centralised
    if ours is None or reference.loss is None:
        return f"held-out loss {_number(ours, 3)}; no centralised reference: {reference.reason}"
    gap, where = ours - reference.loss, "above" if ours >= reference.loss else "below"
    return (
        f"held-out loss {ours:.3f}, centralised with as many tokens {reference.loss:.3f}: {abs(gap):.3f} {where} "
        f"({reference.reason})"
    )


def warn_checks(checks: "Sequence[CheckSaid]") -> None:
    """A line on standard error for each check that did not pass."""
    for check in checks:
        if not check.passed:
            print(f"curtail: warning: {check.name}: {check.description}", file=sys.stderr, flush=True)


def print_windows(found: "FileWindows") -> None:
    table = Table(title=f"Windows, policy {found.policy}", title_justify="left")
    for name in ("site", "region", "start", "end", "hours", "opened by", "closed by"):
        table.add_column(name)
    for window in found.windows:
        table.add_row(
            escape(window.site),
            escape(window.region),
            window.start,
            window.end or "open",
            f"{window.hours:.2f}",
            escape(window.opened_by),
            escape(window.closed_by or ""),
        )
    OUT.print(table)
    for site, hours in found.hours.items():
        OUT.print(f"{escape(site)}: {hours:.2f} h")
    OUT.print(f"{found.nulls} missing values, {found.duplicates} duplicates")


def print_sources(sources: "Sequence[Source]") -> None:
    table = Table(title="Sources of signals (traces.provider)", title_justify="left")
    for name in ("provider", "kinds", "needs", "windows"):
        table.add_column(name, overflow="fold")
    for source in sources:
        windows = "yes" if source.defines_windows else "no, accounting only"
        table.add_row(source.provider, ", ".join(source.kinds), source.needs, windows)
    OUT.print(table)


def print_answers(answers: "Sequence[Answer]") -> None:
    """What each source gave for a day, and on standard error why one gave nothing."""
    table = Table(title="One day of each source", title_justify="left")
    for name in ("provider", "region", "kind", "values", "missing", "every", "from", "to", "least", "most"):
        table.add_column(name)
    for answer in answers:
        if answer.error:
            print(f"curtail: {answer.provider} {answer.region}: {answer.error}", file=sys.stderr, flush=True)
            continue
        table.add_row(
            answer.provider,
            escape(answer.region),
            answer.kind,
            str(answer.values),
            str(answer.missing),
            f"{answer.cadence_s} s",
            answer.first or "-",
            answer.last or "-",
            _number(answer.low, 1),
            _number(answer.high, 1),
        )
    OUT.print(table)


def print_simulation(result: "Summary") -> None:
    table = Table(title=f"What if: policy {result['policy']}", title_justify="left", show_header=False)
    for key, value in result.items():
        if key == "baselines":
            continue
        if isinstance(value, Mapping):
            shown = ", ".join(f"{name} {_number(part, 3)}" for name, part in value.items())
        elif isinstance(value, float):
            shown = _number(value, 3)
        else:
            shown = str(value)
        table.add_row(key, escape("-" if value is None else shown))
    OUT.print(table)
    for name, base in result["baselines"].items():
        if base["reason"] is not None:
            OUT.print(escape(f"always on in {name}: {base['reason']}"))


def print_claims(found: "Reproduction") -> None:
    """A row per published figure."""
    table = Table(title="arXiv:2602.22760, claim by claim", title_justify="left")
    for name in ("claim", "published", "ours", "difference", "", "how", "holds", "in the paper"):
        table.add_column(name, justify="right" if name in ("published", "ours", "difference") else "left")
    for claim in found.claims:
        table.add_row(
            claim.name,
            f"{claim.published:g}",
            _number(claim.ours, 2),
            "-" if claim.difference is None else f"{claim.difference:+.2f}",
            claim.unit,
            claim.how,
            "-" if claim.holds is None else "yes" if claim.holds else "NO",
            claim.place,
        )
    OUT.print(table)
    counted = [claim for claim in found.claims if claim.holds is not None]
    held = sum(claim.holds is True for claim in counted)
    OUT.print(f"{held} of {len(counted)} hold; {len(found.claims) - len(counted)} are not reproducible here")


def print_sweep(rows: "Sequence[RoundLength]") -> None:
    """Hours, kg and bytes by the length of a round; `auto`'s choice is marked."""
    table = Table(title="Lengths of a round", title_justify="left")
    for name in ("round s", "hours", "kg", "rounds", "GB sent and received", ""):
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        notes = ["auto"] * row["auto"] + [f"unfinished, {row['steps']:,} steps"] * (not row["finished"])
        table.add_row(
            _number(row["round_s"], 0),
            _number(row["runtime_h"], 2),
            _number(row["co2_kg"], 3),
            str(row["rounds"]),
            _number(row["bytes"] / 1e9, 1),
            "; ".join(notes),
        )
    OUT.print(table)


REGRET_COLUMNS = {
    "regret_total_kg": "regret",
    "regret_exit_lag_kg": "exit lag",
    "regret_start_up_and_idle_kg": "start-up, idle",
    "regret_forecast_error_kg": "forecast error",
    "regret_waiting_kg": "waiting",
}
"""Of the printed comparison, kg, or g per 1,000 steps where policies did not do the same steps; `--json` has all."""


def print_comparison(rows: pl.DataFrame, plot: Path | None) -> None:
    """Finished policies by what they emit; below them, without a rank, those that did not finish."""
    alike = rows["steps"].drop_nulls().n_unique() <= 1
    table = Table(
        title="Policies on this trace: kgCO2, least possible, and what lies between"
        + ("" if alike else "; regret in g per 1,000 steps, as not all did the same steps"),
        title_justify="left",
    )
    names = ["", "policy", "finished", "steps", "job", "hours", "kWh", "kg", "oracle kg", *REGRET_COLUMNS.values()]
    for name in names:
        words = name in ("policy", "finished")
        table.add_column(name, overflow="fold", no_wrap=name == "policy", justify="left" if words else "right")
    ordered = by_rank(rows)
    for number, row in enumerate(ordered.iter_rows(named=True)):
        if number and row["finished"] != ordered["finished"][number - 1]:
            table.add_section()
        share, scale = row["job_share"], 1.0 if alike else 1_000_000 / (row["steps"] or 1)
        table.add_row(
            "-" if row["rank"] is None else str(row["rank"]),
            escape(row["policy"]),
            "yes" if row["finished"] else "no",
            _number(row["steps"], 0),
            "-" if share is None else f"{100 * share:.1f} %",
            _number(row["runtime_h"], 3),
            _number(row["energy_kwh"], 2),
            _number(row["co2_kg"], 3),
            _number(row["oracle_co2_kg"], 3),
            *(_number(None if row[key] is None else row[key] * scale, 3) for key in REGRET_COLUMNS),
        )
    OUT.print(table)
    for row in ordered.iter_rows(named=True):
        parameters = "" if row["parameters"] == "{}" else row["parameters"]
        if said := "; ".join(text for text in (row["note"], parameters) if text):
            OUT.print(escape(f"{row['policy']}: {said}"))
    if plot is not None:
        OUT.print(f"plot: {plot}")
