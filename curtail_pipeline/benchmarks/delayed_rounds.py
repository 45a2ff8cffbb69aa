"""A segment whose rounds are merged while the next one trains, by the product's trainers and merge, in one process.

Before round `r + 1` a site has the merge of round `r - 1`, and of round `r` what it has trained itself:

    start(r + 1, site) = w(r) - update(r, site)        w(r + 1) = w(r) - step of the merge of update(r, all)

as with eager updates (arXiv:2502.12996); what is pending at the end is merged. Within the segment each site goes on
from its own inner state. Updates are coded: they say what was moved, whatever it was moved from.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from curtail_pipeline.errors import SettingsError
from curtail_pipeline.federation.inner_states import SiteInner, merge_states
from curtail_pipeline.federation.merge import merge
from curtail_pipeline.federation.merge_pass import Update
from curtail_pipeline.federation.orders import (
    Order,
    OuterState,
    Plan,
    PlannedRound,
    Result,
    Segment,
    SharedState,
    StoredWeights,
)
from curtail_pipeline.federation.plan import scratch_of
from curtail_pipeline.federation.segment_state import INNER, OUTER, WEIGHTS, SiteState
from curtail_pipeline.federation.update_file import write_weights
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.manifest import FRESH, InnerStates

if TYPE_CHECKING:
    from curtail_pipeline.training.trainer import SiteTrainer


class _Delayed:
    def __init__(self, trainers: "Mapping[str, SiteTrainer]", plan: Plan, store: FolderStore) -> None:
        self.trainers, self.plan, self.store = trainers, plan, store
        self.folder = scratch_of(plan.key, plan.attempt)
        self.step, self.norms = plan.first_step, plan.norm_history
        self.weights = StoredWeights(key=plan.parent.weights, sha256=plan.parent.sha256)
        self.outer = plan.parent.outer
        assert plan.shared is not None
        self.shared = dict.fromkeys(plan.members, plan.shared)
        self.sites = {site: SiteState(FRESH, FRESH) for site in plan.members}
        for site, left in plan.residual.items():
            self.sites[site].residual = InnerStates(begin=left, end=left)
        self.pending: dict[str, Result] = {}
        """Of the round before, not merged yet."""

    def run(self, rounds: tuple[PlannedRound, ...]) -> None:
        for planned in rounds:
            results = {site: self._train(planned, site) for site in planned.steps}
            self._merge()  # it took as long as these steps
            self.pending = results
            self.step += sum(result.steps for result in results.values())
        last = self.pending
        self._merge()
        self._merge_states(last)

    def _start(self, index: int, site: str) -> StoredWeights:
        if site not in self.pending:
            return self.weights
        own, key = self.pending[site], f"{self.folder}/start/{index}/{site}.safetensors"
        path = self.store.path
        written = write_weights(path(self.weights.key), path(own.weights.key), own.codec, path(key))
        return StoredWeights(key=key, sha256=written.sha256)

    def _train(self, planned: PlannedRound, site: str) -> Result:
        plan, mine, folder = self.plan, self.sites[site], f"{self.folder}/{planned.index}"
        order = Order(
            key=plan.key,
            attempt=plan.attempt,
            round=planned.index,
            site=site,
            experiment_uri=plan.experiment_uri,
            store=self.store.uri,
            parent=self._start(planned.index, site),
            config=plan.parent.config,
            inner_state=self.shared[site].name,
            shared=self.shared[site],
            residual=mine.residual.end if mine.residual else FRESH,
            first_step=self.step,
            members=len(planned.steps),
            total_steps=plan.total_steps,
            max_steps=planned.steps[site],
            deadline_s=None,
            lease=planned.lease[site],
            seed=plan.seed,
            out=f"{folder}/{site}.safetensors",
            codec=plan.exchange.upload,
            inner_out=f"{folder}/inner/{site}.safetensors",
            inner_codec=plan.exchange.state,
        )
        result = self.trainers[site].train(order)
        mine.accept(order.lease, result)
        self.shared[site] = SharedState(name=result.inner_state.end, key=order.inner_out)
        return result

    def _merge(self) -> None:
        if not self.pending:
            return
        path, weights, plan = self.store.path, self.weights, self.plan
        index = next(iter(self.pending.values())).round
        updates = [
            Update(site, path(r.weights.key), r.tokens, r.weights.sha256, weights.sha256, index, r.codec)
            for site, r in self.pending.items()
        ]
        out = f"{self.folder}/merged/{index}"
        report = merge(
            path(weights.key), path(self.outer) if self.outer else None, updates, plan.mode, plan.outer.lr,
            plan.outer.momentum, path(f"{out}/{WEIGHTS}"), path(f"{out}/{OUTER}"), plan.norm_bound, self.norms,
            parent_sha256=weights.sha256, round_index=index,
        )  # fmt: skip
        assert not report.refused, report.refused
        self.weights = StoredWeights(key=f"{out}/{WEIGHTS}", sha256=report.weights.sha256)
        self.outer, self.norms, self.pending = f"{out}/{OUTER}", report.norm_history, {}

    def _merge_states(self, results: Mapping[str, Result]) -> None:
        key, total = f"{self.folder}/{INNER}", sum(result.tokens for result in results.values())
        states = [
            SiteInner(
                site,
                self.store.path(self.shared[site].key),
                self.shared[site].name.removeprefix("sha256:"),
                self.plan.exchange.state,
            )
            for site in results
        ]
        written = merge_states(states, {site: r.tokens / total for site, r in results.items()}, self.store.path(key))
        self.merged = SharedState(name=f"sha256:{written.sha256}", key=key)


def run_delayed(trainers: "Mapping[str, SiteTrainer]", plan: Plan, store: FolderStore) -> Segment:
    """What `run_segment` is for rounds that wait for each other.

    Raises:
        SettingsError: updates are not coded, or inner states not merged.
    """
    if plan.exchange.upload == "fp32" or plan.shared is None or plan.rounds is None:
        raise SettingsError("delayed rounds need rounds.upload_codec other than fp32 and rounds.inner_state merged")
    done = _Delayed(trainers, plan, store)
    done.run(plan.rounds)
    sites = {site: mine.result() for site, mine in done.sites.items()}
    return Segment(
        key=plan.key,
        attempt=plan.attempt,
        rounds=(),
        sites=sites,
        weights=done.weights,
        outer=OuterState(key=done.outer) if done.outer else None,
        shared=done.merged,
        stop_reason=plan.stop_reason,
        steps=sum(mine.steps for mine in sites.values()),
        tokens=sum(mine.tokens for mine in sites.values()),
        norm_history=done.norms,
        lost={},
        refused={},
    )
