"""A headless run outlives a site that never comes: sensor, timing and absences are real, the training is not."""

from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoint_cases import fields
from micro import CURTAILED, START, write_experiment

from curtail_pipeline.errors import FederationError
from curtail_pipeline.orchestration import headless
from curtail_pipeline.orchestration.headless import Headless
from curtail_pipeline.scheduling import absence
from curtail_pipeline.scheduling.absence import ABSENCES_KEY
from curtail_pipeline.scheduling.reconcile import SegmentRequest
from curtail_pipeline.stages.derive_windows import derive_day, save_derived
from curtail_pipeline.stages.ingest import ingest_day, save_ingested
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.run_events import AttemptFailed, Committed, Event
from curtail_pipeline.stages.tick import absences, tick
from curtail_pipeline.storage.manifest import InnerStates, SiteResult
from curtail_pipeline.times import utc_now


class WithoutTraining(Headless):
    """Segments last 20 minutes and every site but the dead ones makes four steps."""

    def __init__(self, project: Project, folder: Path, dead: set[str]) -> None:
        self.project, self.dead, self.observe = project, dead, self.see
        self.events: list[Event] = []
        self._failed = 0
        self.weights = folder / "model.safetensors"
        self.weights.write_bytes(b"weights")
        self.instance: Any = None
        self.request: SegmentRequest | None = None

    def see(self, event: Event) -> None:
        self.events.append(event)

    def prepare(self) -> None:
        pass

    def tick(self) -> Any:
        self.request = tick(self.project, active=None, setback=None, wall=utc_now()).request
        key = self.request.key if self.request else None
        return SimpleNamespace(partition_key=key, job_name="federated_rounds", tags={})

    def execute(self, job: str, partition: str | None = None, *, tags: dict[str, str] | None = None) -> None:
        request, project = self.request, self.project
        assert request is not None
        lost = dict.fromkeys(self.dead & {*request.members}, "no heartbeat for 10 s")
        present = [site for site in request.members if site not in lost]
        project.store.write_record(ABSENCES_KEY, absences(project).after(lost, present, utc_now()))
        if not present:
            raise FederationError(f"{request.key}: no site delivered")
        parent, per_step = project.parent, project.experiment.sequences_per_step
        length = project.experiment.training.sequence_length
        state = InnerStates(begin="fresh", end="sha256:" + "a" * 64)
        sites = {}
        for site in present:
            ((_, start, stop),) = parent.token_ledger().lease(site, 4 * per_step, 10_000)
            tokens = (stop - start) * length
            sites[site] = SiteResult(steps=4, tokens=tokens, consumed=[(1, start, stop)], inner_state=state)
        steps = {"begin": parent.steps.end, "end": parent.steps.end + 4 * len(sites)}
        content = fields(parent.key) | {
            "sites": sites, "steps": steps, "tokens": {"segment": sum(done.tokens for done in sites.values())},
            "members": present, "start": request.start, "end": request.start + timedelta(minutes=20),
        }  # fmt: skip
        project.checkpoints.commit(request.key, {self.weights.name: self.weights}, content, request.generation)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setattr(headless, "connect", lambda *_: nullcontext())
    monkeypatch.setattr(headless, "end_abandoned", lambda _: [])
    monkeypatch.setattr(absence, "BACKOFF_S", (0.0, 0.02, 0.02, 1000.0))
    opened = Project.open(write_experiment(tmp_path / "input"), "headless", tmp_path / "home")
    for region in CURTAILED:
        save_ingested(opened, ingest_day(opened, region, START.date()))
    save_derived(opened, derive_day(opened, START.date()))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    opened.checkpoints.commit("ckpt-000000", {weights.name: weights}, fields(start=START, end=START), 0)
    return opened


def test_the_job_goes_on_without_a_site_that_stays_down(project: Project, tmp_path: Path) -> None:
    run = WithoutTraining(project, tmp_path, {"NORTH"})
    run.run()
    failed = [event for event in run.events if isinstance(event, AttemptFailed)]
    members = {site for event in run.events if isinstance(event, Committed) for site in event.manifest.members}
    # four attempts at the window that is its alone, then the window counts as closed
    assert len(failed) == 4 and members == {"SOUTH", "EAST"}
    assert absences(project).sites.keys() == {"NORTH"}


def test_a_site_that_comes_back_is_taken_again(project: Project, tmp_path: Path) -> None:
    run = WithoutTraining(project, tmp_path, {"NORTH"})
    seen = run.see

    def revive(event: Event) -> None:
        seen(event)
        if sum(isinstance(known, AttemptFailed) for known in run.events) == 2:
            run.dead.clear()

    run.observe = revive
    run.run()
    members = {site for event in run.events if isinstance(event, Committed) for site in event.manifest.members}
    assert members == {"NORTH", "SOUTH", "EAST"} and not absences(project).sites


def test_where_no_site_is_left_the_run_says_so(project: Project, tmp_path: Path) -> None:
    run = WithoutTraining(project, tmp_path, {*CURTAILED})
    project.store.write_record(
        ABSENCES_KEY, absences(project).after(dict.fromkeys(("SOUTH", "EAST"), "gone"), (), utc_now())
    )
    with pytest.raises(FederationError, match="ckpt-000001: no site delivered"):
        run.run()
    assert sum(isinstance(event, AttemptFailed) for event in run.events) == 3
