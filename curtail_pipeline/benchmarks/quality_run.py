"""Segments in a row by the product's own parts in one process: trainers, rounds, merge, ledger. For `bench quality`."""

import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from curtail_pipeline.benchmarks.quality_arms import Curve, Stretch, Task
from curtail_pipeline.corpus.batches import ShardReader
from curtail_pipeline.corpus.dealing import TOKENIZER, freeze_dealing
from curtail_pipeline.corpus.shard_set import build_heldout, build_site_shards, build_tokenizer
from curtail_pipeline.federation.exchange import exchange_of
from curtail_pipeline.federation.orders import (
    OuterSettings,
    ParentCheckpoint,
    Plan,
    PlannedRound,
    Segment,
    SharedState,
    StoredWeights,
)
from curtail_pipeline.federation.plan import scratch_of
from curtail_pipeline.federation.rounds import run_segment
from curtail_pipeline.settings.experiment import Experiment, load_experiment, parse_experiment
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.manifest import FRESH
from curtail_pipeline.storage.store import Store, file_sha256
from curtail_pipeline.tokens.balance import balance, fresh_first
from curtail_pipeline.tokens.ledger import Ledger, Report
from curtail_pipeline.tokens.ranges import drop_prefix, take_prefix
from curtail_pipeline.training.plan_runner import TrainersHere

if TYPE_CHECKING:
    from curtail_pipeline.training.heldout_gate import HeldoutGate


@dataclass(frozen=True)
class Trained:
    """Held-out loss (nats per token) after so many steps; and where it was trained."""

    store: Store
    steps: list[int]
    losses: list[float]
    members: list[int]
    """How many sites trained up to there."""


def experiment_of(task: Task) -> Experiment:
    """The laptop experiment with the arm's sites and settings."""
    arm, own = task.arm, load_experiment("laptop")
    content = own.model_dump(mode="json", exclude_unset=True)
    site = content["sites"][0] | {"device": task.device}
    training = content["training"] | {"preset": task.preset}
    rates = {name: getattr(own.training, name) * factor for name, factor in arm.training.items()}
    batch = {"total_batch_tokens": (arm.step_tokens or own.training.total_batch_tokens) * arm.batch}
    batch |= {"warmup_steps": max(1, own.training.warmup_steps // arm.batch)}
    corpus = ({} if arm.fresh_first is None else {"fresh_first": arm.fresh_first}) | (
        {} if task.source is None else {"source": task.source}
    )
    changes = {
        "seed": task.seed,
        "sites": [site | {"name": name, "region": name} for name in task.shares],
        "job": {"steps": task.steps // arm.batch},
        "rounds": content.get("rounds", {}) | dict(arm.rounds),
        "training": training | rates | batch,
        "corpus": content["corpus"] | corpus,
    }
    return parse_experiment(content | changes, "benchmark")


def prepare(experiment: Experiment, shares: Mapping[str, float], store: Store) -> None:
    """Tokenizer and shards, as far as they are not there."""
    build_tokenizer(experiment.corpus, store)
    freeze_dealing(experiment.corpus, store, shares)
    for site in shares:
        build_site_shards(experiment.corpus, store, site)
    build_heldout(experiment.corpus, store)


def train(
    experiment: Experiment,
    shares: Mapping[str, float],
    stretches: Sequence[Stretch],
    folder: Path,
    *,
    at_the_end: bool = False,
) -> Trained:
    """Train segments in a row in a store of their own, which is in the folder.

    Args:
        shares: how the text is dealt.
        at_the_end: evaluate then only; otherwise before the first step, and after each segment.
    """
    from curtail_pipeline.training.heldout_gate import HeldoutGate
    from curtail_pipeline.training.presets import init_checkpoint
    from curtail_pipeline.training.trainer import SiteTrainer

    store = FolderStore(folder)
    store.write_record("experiment.json", experiment)
    prepare(experiment, shares, store)
    init_checkpoint(experiment.training, store.mirror(TOKENIZER), store.path("init"), experiment.seed)
    lineage = Lineage(store, experiment, shares)
    trainers = {site: SiteTrainer(store, site, experiment) for site in shares}
    transport = TrainersHere(trainers.__getitem__, threading.Event())
    judge: HeldoutGate | None = None
    steps, losses, members = list[int](), list[float](), list[int]()
    for stretch in stretches:
        plan = lineage.plan(stretch)
        judge = judge or HeldoutGate(store, plan, experiment.sites[0].device)
        if not steps and not at_the_end:
            steps.append(0)
            members.append(0)
            losses.append(_loss(judge, StoredWeights(key=plan.parent.weights, sha256=plan.parent.sha256)))
        segment = run_segment(transport, plan, store, log=lambda _: None)
        lineage.commit(plan, segment)
        if at_the_end and stretch is not stretches[-1]:
            continue
        steps.append(lineage.step)
        members.append(len(stretch.members))
        losses.append(_loss(judge, segment.weights))
        print(f"{', '.join(stretch.members)}: {losses[-1]:.3f} at {lineage.step}", file=sys.stderr, flush=True)
    return Trained(store, steps, losses, members)


def train_arm(task: Task, folder: Path, at_the_end: bool = False) -> Curve:
    """One arm with one seed; see `train`."""
    from curtail_pipeline.training.presets import parameter_count, read_config

    experiment = experiment_of(task)
    done = train(experiment, task.shares, task.stretches, folder, at_the_end=at_the_end)
    config = read_config(done.store.read_bytes("init/config.json"), "init/config.json")
    return Curve(
        arm=task.arm.name,
        seed=task.seed,
        steps=tuple(step * task.arm.batch for step in done.steps),
        losses=tuple(done.losses),
        members=tuple(done.members),
        parameters=parameter_count(config),
    )


def _loss(judge: "HeldoutGate", weights: StoredWeights) -> float:
    loss = judge(weights)
    assert loss is not None
    return loss


class Lineage:
    """Segments in a row, without checkpoints: what each begins with is what the one before left in its scratch folder.

    Text is leased and moved as `stages` does it.
    """

    def __init__(self, store: Store, experiment: Experiment, shares: Mapping[str, float]) -> None:
        self.store, self.experiment, self.shares = store, experiment, dict(shares)
        self.step, self.number, self.ledger = 0, 0, Ledger()
        length = experiment.training.sequence_length
        self.totals = {site: ShardReader(store, site, length).n_sequences for site in shares}
        with store.local("init/model.safetensors") as path:
            self.parent = ParentCheckpoint(
                key="init", weights="init/model.safetensors", sha256=file_sha256(path), config="init/config.json"
            )
        self.own = dict.fromkeys(shares, FRESH)
        self.left: dict[str, str] = {}
        self.shared = SharedState(name=FRESH) if experiment.rounds.inner_state == "merged" else None
        self.norms: tuple[float, ...] = ()

    def plan(self, stretch: Stretch) -> Plan:
        """The next segment's."""
        per_step, rounds = self.experiment.sequences_per_step, self.experiment.rounds
        if self.experiment.corpus.rebalance:
            self.ledger = balance(self.ledger, self.totals, self.shares, per_step)
        wanted = {site: per_step * sum(steps.get(site, 0) for steps in stretch.rounds) for site in stretch.members}
        if self.experiment.corpus.fresh_first:
            self.ledger = fresh_first(self.ledger, self.totals, wanted)
        rest = {site: self.ledger.lease(site, count, self.totals[site]) for site, count in wanted.items()}
        planned = []
        for index, steps in enumerate(stretch.rounds):
            lease = {site: tuple(take_prefix(rest[site], count * per_step)) for site, count in steps.items()}
            rest |= {site: drop_prefix(rest[site], count * per_step) for site, count in steps.items()}
            planned.append(PlannedRound(index=index, steps=steps, lease=lease))
        self.number += 1
        return Plan(
            key=f"ckpt-{self.number:06d}",
            parent=self.parent,
            members=stretch.members,
            mode="local" if len(stretch.members) == 1 else "federated",
            first_step=self.step,
            total_steps=self.experiment.job.steps,
            seed=self.experiment.seed,
            rounds=tuple(planned),
            inner_state={site: self.own[site] for site in stretch.members},
            shared=self.shared,
            residual={site: left for site, left in self.left.items() if site in stretch.members},
            outer=OuterSettings(lr=rounds.outer_lr, momentum=rounds.outer_momentum),
            exchange=exchange_of(rounds, linked=False),
            norm_bound=rounds.norm_bound,
            norm_history=self.norms,
        )

    def commit(self, plan: Plan, segment: Segment) -> None:
        """Go on behind a segment."""
        leases = {
            site: [item for planned in plan.rounds or () for item in planned.lease.get(site, ())]
            for site in plan.members
        }
        reports: dict[str, Report] = {
            site: {"lease": leases[site], "consumed": done.consumed} for site, done in segment.sites.items()
        }
        self.ledger = self.ledger.commit(reports)
        self.step += segment.steps
        self.own |= {site: done.inner_state.end for site, done in segment.sites.items()}
        self.left |= {site: done.residual.end for site, done in segment.sites.items() if done.residual}
        self.shared, self.norms = segment.shared, segment.norm_history
        outer = segment.outer.key if segment.outer else None
        before = self.parent
        self.parent = before.model_copy(
            update={"key": plan.key, "weights": segment.weights.key, "sha256": segment.weights.sha256, "outer": outer}
        )
        if before.key != "init":
            self.store.delete(scratch_of(before.key, plan.attempt))


def main(text: str) -> Curve:
    """Do a task in a scratch folder."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="curtail-quality-") as folder:
        return train_arm(Task.read(text, "the task of a child"), Path(folder))


if __name__ == "__main__":
    print(main(sys.argv[1]).model_dump_json())
