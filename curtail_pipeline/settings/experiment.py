"""One experiment: a YAML file, validated, with an identity and a home folder.

`load_experiment("laptop")` reads the experiment of that name from `experiments/`; any other text is a path.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from curtail_pipeline.errors import SettingsError
from curtail_pipeline.settings.alert_settings import AlertSettings
from curtail_pipeline.settings.card_settings import CardSettings
from curtail_pipeline.settings.check_settings import CheckLimits
from curtail_pipeline.settings.corpus_settings import CorpusSettings
from curtail_pipeline.settings.exchange_size import Moved, moved
from curtail_pipeline.settings.explained import explain
from curtail_pipeline.settings.federation_settings import FederationSettings, RoundSettings
from curtail_pipeline.settings.job import JobSettings, PolicySettings
from curtail_pipeline.settings.metrics_settings import MetricsSettings
from curtail_pipeline.settings.model_size import parameters_of, parts_of
from curtail_pipeline.settings.overheads import PAPER, Overheads, OverheadsName, product
from curtail_pipeline.settings.rule_settings import RuleSettings
from curtail_pipeline.settings.section import Name, Section, UtcTime
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.settings.trace_settings import FileTraces, TracesSettings, on_file
from curtail_pipeline.settings.training_settings import TrainingSettings
from curtail_pipeline.settings.yaml_text import parse_yaml

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"


YEAR_S: Final = 365.25 * 86_400
MOST_YEARS: Final = 5000.0
"""That a job may take one site: a calendar ends in the year 9999, and more is a wrong speed or number of steps."""


class ClockSettings(Section):
    """Where virtual time starts and ends; the trace's own ends when not given."""

    start: UtcTime | None = None
    end: UtcTime | None = None
    """The headless run pauses here and can be resumed with a later end."""

    @model_validator(mode="after")
    def _in_order(self) -> "ClockSettings":
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ValueError(
                f"the clock's end {self.end.isoformat()} is not after its start {self.start.isoformat()}; swap them?"
            )
        return self


class ReplayClock(Section):
    """How fast `make ui` replays the recorded trace."""

    speed: float = Field(default=120.0, gt=0)


class AccountingSettings(Section):
    """How sure the report's figures are."""

    power_error: float = Field(default=0.10, ge=0, lt=1)
    """Relative error of power that is modelled by the sites' settings, for the band around CO2."""


class Experiment(Section):
    """All that determines a result, apart from the content of trace and text files."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    seed: int = Field(default=0, ge=0, lt=2**63)
    clock: ClockSettings = ClockSettings()
    replay: ReplayClock = ReplayClock()
    traces: TracesSettings
    checks: CheckLimits = CheckLimits()
    sites: list[Site] = Field(min_length=1)
    baseline_regions: list[Name] = Field(default_factory=list)
    """Regions without a site whose always-on baseline is reported too."""
    overheads: Overheads = Overheads()
    policy: PolicySettings = PolicySettings()
    rules: dict[Name, RuleSettings] = Field(default_factory=dict)
    """Window rules by region, in place of the policy's own."""
    rounds: RoundSettings = RoundSettings()
    job: JobSettings
    corpus: CorpusSettings = CorpusSettings()
    training: TrainingSettings = TrainingSettings()
    federation: FederationSettings = FederationSettings()
    alerts: AlertSettings = AlertSettings()
    accounting: AccountingSettings = AccountingSettings()
    card: CardSettings = CardSettings()
    metrics: MetricsSettings = MetricsSettings()

    @model_validator(mode="after")
    def _consistent(self) -> "Experiment":
        names = [site.name for site in self.sites]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"site {twice[0]!r} is declared twice; site names are unique")
        unknown = sorted(set(self.federation.linked) - set(names))
        if unknown:
            raise ValueError(f"federation.linked names {unknown[0]!r}, which is no site; there are {', '.join(names)}")
        for site in self.sites:
            if site.idle_kw > site.training_kw:
                raise ValueError(
                    f"site {site.name!r} has idle_kw {site.idle_kw} above training_kw {site.training_kw}; swap them?"
                )
            years = self.job.steps / site.steps_per_s / YEAR_S
            if years > MOST_YEARS:
                raise ValueError(
                    f"job.steps {self.job.steps} would take site {site.name!r} {years:.2g} years at steps_per_s "
                    f"{site.steps_per_s:g}; give fewer, or its true speed"
                )
        strange = sorted(set(self.rules) - set(self.regions))
        if strange:
            raise ValueError(
                f"rules names the region {strange[0]!r}, where there is no site; there are {', '.join(self.regions)}"
            )
        if self.training.warmup_steps >= self.job.steps:
            raise ValueError(
                f"training.warmup_steps {self.training.warmup_steps} is not below the job's {self.job.steps} steps: "
                "the learning rate would never be reached; lower it"
            )
        if self.rounds.fragments > (parts := parts_of(self.training)):
            raise ValueError(
                f"rounds.fragments {self.rounds.fragments} would leave rounds that exchange nothing: the model has "
                f"{parts} parts, its {parts - 2} layers, embedding and head; set it to {parts} or less"
            )
        return self

    @property
    def regions(self) -> list[str]:
        """Every region whose trace is needed, in order of first mention."""
        return list(dict.fromkeys([*(site.region for site in self.sites), *self.baseline_regions]))

    @property
    def sequences_per_step(self) -> int:
        return self.training.total_batch_tokens // self.training.sequence_length

    @property
    def start_timeout_s(self) -> float:
        """How long the processes of the federation may take to be ready: trainers compile before they are."""
        return self.federation.start_timeout_s + (self.federation.compile_s if self.training.compile else 0.0)

    def site(self, name: str) -> Site:
        """The site of that name.

        Raises:
            SettingsError: there is none; the message lists those there are.
        """
        for site in self.sites:
            if site.name == name:
                return site
        raise SettingsError(f"unknown site {name!r}; the experiment has {', '.join(s.name for s in self.sites)}")

    def overheads_of(self, site: Site) -> Overheads:
        """What the site loses, the transfers over its link included: with `overlap`, what of them takes longer than the
        round that they travel in."""
        own, link = site.overheads or self.overheads, site.link
        if link is None or self.rounds.update_mb == 0:
            return own
        size = self.moved
        receive, send = link.receive_s(size.received), link.send_s(size.sent)
        if self.rounds.overlap:
            receive, send = 0.0, max(0.0, receive + send - self.rounds.length_s)
        return own.model_copy(
            update={
                "first_load_s": own.first_load_s + link.receive_s(size.first),
                "round_load_s": own.round_load_s + receive,
                "round_tail_s": own.round_tail_s + send,
                "round_tail_single_s": own.round_tail_single_s + send,
            }
        )

    @property
    def moved(self) -> Moved:
        """What a site receives and sends in a round."""
        return moved(self.rounds, self.training, self.corpus.vocab_size, linked=bool(self.federation.linked))

    def started_really(self) -> "Experiment":
        """Without modelled start-ups where a provisioner starts a site: it takes no part until it is up."""
        sites = [
            site
            if site.provisioner.kind == "none"
            else site.model_copy(
                update={
                    "overheads": (site.overheads or self.overheads).model_copy(
                        update={"provisioning_s": 0.0, "connect_s": 0.0}
                    )
                }
            )
            for site in self.sites
        ]
        return self.model_copy(update={"sites": sites})

    def identity(self) -> dict[str, Any]:
        """What a result depends on: all but the replay speed, the clock's end, checks, liveness, alerts, metrics,
        provisioners, how energy is measured and reported, and what a site computes with, which may change at any time
        (bits of a replay depend on it)."""
        beside = {"replay", "checks", "federation", "alerts", "metrics", "accounting", "card"}
        content = self.model_dump(mode="json", exclude=beside)
        content["clock"].pop("end")
        for site in content["sites"]:
            for name in ("device", "threads", "parallel", "provisioner", "meter", "footprint"):
                site.pop(name)
        return content

    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


def parse_experiment(content: Any, source: str) -> Experiment:
    """Validate a mapping; `source` names it in errors.

    Raises:
        SettingsError: every unknown key, missing key and wrong type, by its path.
    """
    if content is None:
        raise SettingsError(f"{source}: is empty; an experiment has at least the keys name, traces, sites and job")
    if not isinstance(content, dict):
        raise SettingsError(f"{source}: an experiment is a mapping of keys, not {type(content).__name__}")
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        raise SettingsError(explain(error, source, Experiment)) from error


def experiment_file(name_or_path: str | Path) -> Path:
    """Where the experiment of that name, or path, is."""
    path = Path(name_or_path)
    return path if path.suffix in {".yaml", ".yml", ".json"} else EXPERIMENTS / f"{name_or_path}.yaml"


def load_experiment(name_or_path: str | Path) -> Experiment:
    """Read an experiment by name (from `experiments/`) or path.

    Raises:
        SettingsError: no such file, not YAML, or invalid.
    """
    path = experiment_file(name_or_path)
    try:
        content = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        known = ", ".join(sorted(p.stem for p in EXPERIMENTS.glob("*.yaml")))
        raise SettingsError(
            f"no experiment {str(name_or_path)!r}: give one of {known}, or the path of a .yaml file"
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{path}: is no UTF-8 text, by its byte 0x{error.object[error.start]:02x} at {error.start}; save it as "
            "UTF-8"
        ) from error
    except yaml.YAMLError as error:
        text = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        fix = "; write spaces in place of tabs" if "\\t" in text else ""
        raise SettingsError(f"{path}: not valid YAML: {text}{fix}") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_experiment(content, str(path))


def with_traces(experiment: Experiment, path: str | Path, reading: Mapping[str, object] | None = None) -> Experiment:
    """The experiment on a trace file in place of its own traces, over the file's whole time.

    The file is read as the experiment's own traces are where those are a file, else as g/kWh in UTC. The experiment's
    name gets the file's, so that its home is another one.

    Args:
        reading: keys of `traces` that are set for this file.

    Raises:
        SettingsError: a value that cannot be.
    """
    path = Path(path).resolve()
    source = f"{experiment.name} with traces {path}"
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", path.name.split(".")[0])
    try:
        traces = on_file(experiment.traces, path, reading)
    except ValidationError as error:
        raise SettingsError(explain(error, source, FileTraces)) from error
    content = experiment.model_dump(mode="json") | {
        "name": f"{experiment.name}-{stem}"[:64],
        "traces": traces.model_dump(mode="json", exclude_unset=True) | {"provider": "file"},
        "clock": {},
    }
    return parse_experiment(content, source)


ClockMode = Literal["headless", "replay", "live"]


def with_overheads(experiment: Experiment, name: OverheadsName | None) -> Experiment:
    """The experiment with one of the sets in place of its own and its sites' overheads; unchanged without a name.

    The prototype's local rounds are open-ended; the product's are timed like all others.
    """
    if name is None:
        return experiment
    paper = name == "paper"
    rounds = experiment.rounds.model_copy(update={"open_local": paper})
    sites = [site.model_copy(update={"overheads": None}) for site in experiment.sites]
    parameters = parameters_of(experiment.training, experiment.corpus.vocab_size)
    overheads = PAPER if paper else product(rounds.length_s, parameters)
    return experiment.model_copy(update={"overheads": overheads, "rounds": rounds, "sites": sites})
