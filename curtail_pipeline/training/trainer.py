"""The trainer of one site: turns orders into results and keeps model and optimisers in memory between them.

What a round computes is a function of its order alone (weights, inner state, lease, seed, first step, members, stop):
whether model and inner state were still in memory or came from the store makes no difference to a bit of the result, on
the same hardware with the same number of threads.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt

# Read when CUDA starts: cuda:1 is then what NVML calls 1; and deterministic algorithms are not refused on a GPU.
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

from curtail_pipeline.emissions.meter import Meter
from curtail_pipeline.errors import TrainingError
from curtail_pipeline.federation.orders import Order, Phase, Result, StopReason, WrittenWeights
from curtail_pipeline.federation.terms import unlike
from curtail_pipeline.settings.experiment import Experiment, parse_experiment
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.storage.checkpoints import FIRST_KEY
from curtail_pipeline.storage.manifest import FRESH, InnerStates
from curtail_pipeline.storage.store import Store
from curtail_pipeline.tokens.ranges import Ranges, after_prefix, take_prefix
from curtail_pipeline.training.devices import devices_of, set_computing
from curtail_pipeline.training.leading_ranks import RankLost
from curtail_pipeline.training.learner import Diverged, Learner
from curtail_pipeline.training.pending_upload import Files
from curtail_pipeline.training.retention import RecentStates
from curtail_pipeline.training.same_experiment import require_same
from curtail_pipeline.training.schedule import global_step, multiplier, muon_momentum
from curtail_pipeline.training.site_learner import build_learner
from curtail_pipeline.training.snapshots import StateLost, load_begin, save_snapshot, snapshots_of
from curtail_pipeline.training.software import made_with
from curtail_pipeline.training.step_progress import Progress, StepProgress
from curtail_pipeline.training.unfinished import Unfinished, UnfinishedRounds, work_name
from curtail_pipeline.training.updates import Residual, Start, make_start, receive, store_inner
from curtail_pipeline.training.weights import read_tensors
from curtail_pipeline.training.workplace import Workplace

log = logging.getLogger(__name__)


class Reader(Protocol):
    """Where a site's token sequences come from (`corpus.batches.ShardReader`)."""

    def batches(self, ranges: Ranges, sequences_per_batch: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
        """Arrays of token ids, (sequences, sequence_length + 1), in the order of the ranges."""


class SiteTrainer:
    """Trains rounds for one site.

    Args:
        store: where weights, inner states and shards are.
        site: the site's name or its settings.
        experiment: its training section, seed and batch size count.
        reader: token sequences; the site's shards in the store when not given.
        clock: seconds that deadlines and rates are measured with.
        meter: of the energy of its steps; they are not measured without.

    Raises:
        SettingsError: the experiment has no such site.
        TrainingError: the site's device is not there.
    """

    def __init__(
        self,
        store: Store,
        site: Site | str,
        experiment: Experiment,
        reader: Reader | None = None,
        clock: Callable[[], float] = time.perf_counter,
        meter: Meter | None = None,
    ) -> None:
        self.store = store
        self.site = experiment.site(site) if isinstance(site, str) else site
        self.experiment, self.settings = experiment, experiment.training
        self._devices = devices_of(self.site, experiment.sequences_per_step)
        self._reader = self._given_reader = reader
        self._workplace = Workplace(store)
        self._clock = clock
        self._meter = meter or Meter("none")
        self._learner: Learner | None = None
        self._warm = False
        """Whether the model has done a step: the first one compiles."""
        self._config: str | None = None
        self._weights: str | None = None
        self._inner: str | None = None
        self._residual = Residual()
        minutes = experiment.federation.snapshot_minutes
        self._unfinished = UnfinishedRounds(
            store.here(f"unfinished/{self.site.name}"), None if minutes is None else 60 * minutes
        )
        self._recent = RecentStates()
        self._experiment_bytes: str | None = None
        self._made_with: dict[str, str] | None = None

    @property
    def name(self) -> str:
        """Of the site."""
        return self.site.name

    def prepare(self) -> None:
        """Build and compile the store's model, so that the first round begins with its first step.

        Without `ckpt-000000` in the store, or at a site that has no credentials of it, the first order does that.

        Raises:
            TrainingError: the model does not fit the device (`memory.require_fit`).
        """
        set_computing(self.site.threads, self.settings)
        begin, config = time.monotonic(), f"checkpoints/{FIRST_KEY}/config.json"
        if self.store.exists(config):
            self._build(self.store.read_bytes(config), config)
            if not self._warm:
                self._built().warm_up()
                self._warm = True
        made = "built" if self._warm else "nothing to build yet"
        log.info("%s in %.1f s on %s, torch %s", made, time.monotonic() - begin, self._devices[0], torch.__version__)

    def train(
        self,
        order: Order,
        progress: Progress | None = None,
        should_stop: Callable[[], bool] | None = None,
        on_phase: Callable[[Phase], None] = lambda phase: None,
    ) -> Result:
        """Train one round and store the new weights and inner state.

        Args:
            order: see `orders.Order`.
            progress: called after every step.
            should_stop: asked before every step; true ends the round with `stop: membership`.
            on_phase: called when the work begins to be of another kind.

        Returns:
            See `orders.Result`. A step is counted once the optimisers have stepped; sequences that do not fill a step
            are never consumed.

        Raises:
            TrainingError: an order that is malformed or meant for another site or experiment, weights or inner state
                that are missing or corrupt, token ids beyond the vocabulary, or a loss that is not finite or far above
                guessing (`learner.DIVERGED_NATS`). Nothing is stored then.
        """
        if order.site != self.site.name:
            raise TrainingError(
                f"the order is for site {order.site!r}, this trainer is {self.site.name!r}'s; send it there"
            )
        on_phase("fetch")
        try:
            with self._workplace.working(order) as files:
                self._move_to(self._workplace.store)
                result = self._train(order, files, progress, should_stop or (lambda: False), on_phase)
        except RankLost:  # the next order goes on from a snapshot
            raise
        except BaseException:
            self._unfinished.end()
            raise
        self._unfinished.end()
        return result

    def has(self, key: str) -> bool:
        """Whether what it has made of an order under this key is in the store, or on its way there."""
        return self._workplace.has(key)

    def _move_to(self, store: Store) -> None:
        """Where the order's keys are: in the store, or brought to a folder by its links."""
        if store is not self.store:
            self.store, self._reader, self._made_with = store, self._given_reader, None

    def _train(
        self,
        order: Order,
        files: Files,
        progress: Progress | None,
        should_stop: Callable[[], bool],
        on_phase: Callable[[Phase], None],
    ) -> Result:
        self._check_experiment(order.experiment_uri)
        set_computing(self.site.threads, self.settings)
        software = self._checked_software(order)
        begin, start = self._load(order, files)
        self._workplace.look_ahead(order)
        began, self._weights, self._inner = (begin, self._residual.name), None, None  # unknown until it is stored
        work = work_name(order, began, self.site, self.experiment.sha256(), str(self._config), software)
        done = self._unfinished.begin(work, order, self._built())
        losses, seconds, stop = self._steps(order, done, progress, should_stop, on_phase)
        drawn = self._meter.end()
        on_phase("store")
        steps, tokens = len(losses), len(losses) * self.settings.total_batch_tokens
        snapshots, moved = snapshots_of(order), steps > 0 or (order.goes_on and order.inner_out != "")
        weights, state = self._built().weights(), self._built().state() if moved else {}
        written, residual = self._residual.store_update(files, order, weights, snapshots, moved, start and start.path)
        inner = begin
        if moved:
            own = not order.inner_out
            inner = save_snapshot(files, self.site.name, state, snapshots) if own else store_inner(files, order, state)
        self._weights = written.sha256 if order.codec == "fp32" else None  # else it goes on from what arrives
        self._inner = inner if not order.inner_out or order.inner_codec == "fp32" else None
        if not order.replay and (residual or not order.inner_out):
            ended = {inner, *((residual.begin, residual.end) if residual else ())}
            self._recent.prune(self.store, order, ended, self.settings.keep_inner_states)
        self._workplace.send(order, written.sha256, inner)
        return Result(
            site=self.site.name,
            round=order.round,
            parent_sha256=order.parent.sha256,
            begun_sha256=start and start.sha256,
            steps=steps,
            tokens=tokens,
            consumed=tuple(take_prefix(order.lease, steps * self.experiment.sequences_per_step)),
            loss_first=losses[0] if losses else None,
            loss_last=losses[-1] if losses else None,
            loss_mean=sum(losses) / steps if losses else None,
            seconds=round(seconds, 6),
            tokens_per_s=round(tokens / seconds, 3) if seconds > 0 else 0.0,
            weights=WrittenWeights(key=order.out, sha256=written.sha256, bytes=written.bytes),
            codec=order.codec,
            inner_state=InnerStates(begin=begin, end=inner),
            residual=residual,
            made_with=software,
            stop=stop,
            drawn=drawn if losses and done is None else None,  # what drew power before went unmeasured
        )

    def _check_experiment(self, key: str) -> None:
        content = self.store.read_bytes(key)
        digest = hashlib.sha256(content).hexdigest()
        if digest == self._experiment_bytes:
            return
        require_same(parse_experiment(self.store.read_json(key), key), key, self.experiment, self.site.name)
        self._experiment_bytes = digest

    def _checked_software(self, order: Order) -> dict[str, str]:
        """What this site works with; an order that asks for something else is refused before any work."""
        if self._made_with is None:
            self._made_with = made_with(self.store, self.site.name)
        if other := unlike(order, self._made_with):
            raise TrainingError(f"site {self.site.name}: {other}")
        return self._made_with

    def _load(self, order: Order, files: Files) -> tuple[str, Start | None]:
        """Bring model and optimisers to what the order begins with; the inner state's name, and weights made for it.

        The state is the order's, or `fresh` where it is lost and the order's terms allow it.
        """
        config = self.store.read_bytes(order.config)
        if self._learner is None or self._learner.ranks.lost or self._config != hashlib.sha256(config).hexdigest():
            self._build(config, order.config)
        begin = order.inner_state
        self._residual.load(files, order, snapshots_of(order))
        # Both are gigabytes, of which every byte is hashed: 5.2 with a d20.
        with ThreadPoolExecutor(1) as beside:
            reading = beside.submit(load_begin, files, order) if begin not in (FRESH, self._inner) else None
            start = self._load_weights(order, files)
            if reading is not None:
                begin = self._load_state(order, reading)
        if begin == FRESH:
            self._inner = None
            self._built().reset()
        self._inner = begin
        return begin, start

    def _load_weights(self, order: Order, files: Files) -> Start | None:
        left = self._residual.left_of(order)
        if order.own is None and not left and self._weights == order.parent.sha256:
            return None
        self._weights = None
        receive(self.store, order, order.parent, order.delta)
        start = make_start(files, order, left)
        weights = start.read() if start else read_tensors(self.store, order.parent.key, order.parent.sha256)
        self._built().load_weights(weights, order.parent.key)
        self._weights = None if start else order.parent.sha256
        return start

    def _load_state(self, order: Order, reading: Future[dict[str, torch.Tensor]]) -> str:
        self._inner = None
        try:
            self._built().load_state(reading.result(), order.inner_state)
        except StateLost as error:
            if order.replay or order.terms.lost_state == "refuse":
                raise
            log.warning("%s starts fresh: %s", self.site.name, error)
            return FRESH
        return order.inner_state

    def _build(self, config: bytes, source: str) -> None:
        self._config = self._weights = self._inner = None
        ranks = self._learner.ranks if self._learner else None
        self._learner = None  # its memory counts as free
        self._learner = build_learner(config, source, self.settings, self.site, self._devices, ranks)
        self._config, self._warm = hashlib.sha256(config).hexdigest(), self.site.devices > 1

    def settle(self) -> None:
        """Wait for what is on its way, in either direction."""
        self._workplace.settle()

    def close(self) -> None:
        """`settle`, and end the processes on the site's other devices; the next order starts them again."""
        self.settle()
        if self._learner is not None and self._learner.ranks.size > 1:
            self._learner.ranks.close()
            self._config = self._weights = self._inner = self._learner = None

    def _built(self) -> Learner:
        if self._learner is None:
            raise RuntimeError("no model was built")
        return self._learner

    def _steps(
        self,
        order: Order,
        done: Unfinished | None,
        progress: Progress | None,
        should_stop: Callable[[], bool],
        on_phase: Callable[[Phase], None],
    ) -> tuple[list[float], float, StopReason]:
        """Train until a reason to stop, what was `done` before included; the loss of every step, wall seconds, and the
        reason."""
        per_step = self.experiment.sequences_per_step
        losses = list(done.losses) if done else []
        batches = self._batches(order, after_prefix(order.lease, done.consumed if done else ()))
        self._meter.begin()
        elapsed, last = done.seconds if done else 0.0, 0.0
        begin = self._clock() - elapsed
        on_phase("train" if self._warm else "compile")
        while True:
            if len(losses) >= order.max_steps:
                stop: StopReason = "steps"
                break
            # The next step is taken to last as long as the one before; none runs over the deadline for all we know.
            if order.deadline_s is not None and (elapsed >= order.deadline_s or elapsed + last > order.deadline_s):
                stop = "deadline"
                break
            if should_stop():
                stop = "membership"
                break
            batch = next(batches, None)
            if batch is None or len(batch) < per_step:
                stop = "exhausted"
                break
            step = global_step(order.first_step, len(losses), order.members)
            losses.append(self._step(batch, step, order))
            now = self._clock() - begin
            elapsed, last = now, now - elapsed
            self._warm = True
            self._meter.sample()
            if progress is not None:
                progress(self._progress(step, losses, elapsed, last))
            self._unfinished.note(self._built(), elapsed, losses, len(losses) * per_step)
        return losses, elapsed, stop

    def _progress(self, step: int, losses: list[float], elapsed: float, last: float) -> StepProgress:
        learner, tokens = self._built(), self.settings.total_batch_tokens
        rate = tokens / last if last > 0 else 0.0
        so_far = len(losses) * tokens / elapsed if elapsed > 0 else 0.0
        return StepProgress(
            step, len(losses), losses[-1], so_far, rate, learner.optimisers.matrix_lr, learner.mfu(rate)
        )

    def _batches(self, order: Order, lease: Ranges) -> Iterator[npt.NDArray[np.int64]]:
        if self._reader is None:
            from curtail_pipeline.corpus.batches import ShardReader

            self._reader = ShardReader(self.store, self.site.name, self.settings.sequence_length)
        return iter(self._reader.batches(lease, self.experiment.sequences_per_step, order.seed))

    def _step(self, batch: npt.NDArray[np.int64], step: int, order: Order) -> float:
        """One optimiser step over (sequences, T + 1) token ids; its mean loss in nats per token."""
        learner, settings = self._built(), self.settings
        highest = int(np.max(batch))
        if highest >= learner.vocabulary:
            raise TrainingError(
                f"the shards of site {self.site.name} hold token id {highest}, the model's vocabulary ends at "
                f"{learner.vocabulary - 1}; materialise `training_shards` again with the checkpoint's tokenizer"
            )
        rate = order.members**self.experiment.rounds.member_lr_power * multiplier(
            step,
            total_steps=order.total_steps,
            warmup_steps=settings.warmup_steps,
            decay_fraction=settings.decay_fraction,
        )
        try:
            return learner.step(batch, rate, muon_momentum(step, settings.momentum_warmup_steps))
        except Diverged as error:
            raise TrainingError(
                f"{error} at global step {step} of site {self.site.name}; lower training.matrix_lr, embedding_lr and "
                "unembedding_lr, or raise warmup_steps"
            ) from None
