"""Inner optimiser states of a round's members, averaged: what whoever trains next begins with.

A site's own state is stale where others have trained since, and fresh where it never has; both cost loss. The average
is weighted as the weights' is, by tokens, and goes on as the states came, coded or not (`state_file`). It is streamed
like the merge of weights, so that memory does not grow with the model or the number of sites, and does not depend on
the order of the sites: they are summed by name.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.merge_report import MergeReport, WrittenFile
from curtail_pipeline.federation.orders import Order, Result
from curtail_pipeline.federation.state_file import SQUARES, Layout, StateFile, StateWriter
from curtail_pipeline.federation.tensor_stream import Floats, TensorFile, TensorInfo, in_order, pieces
from curtail_pipeline.federation.update_file import AHEAD, THREADS
from curtail_pipeline.settings.federation_settings import StateCodecName
from curtail_pipeline.storage.atomic import replacing
from curtail_pipeline.storage.store import CorruptObject, NotStored, Store, file_sha256

MEANS, STEPS = "/exp_avg", "/step"

ROOTS = 3.2
"""Roots of a mean of squares that a mean of the same gradients can be: (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)) by
Cauchy and Schwarz, which averaging states keeps; 1.57 with AdamW's betas here (`optimisers.BETAS`), doubled for what
float32 rounds."""
SMALLEST = 1e-15
"""Of a mean that is looked at: squares of smaller gradients are 0 in float32, and AdamW adds 1e-10 to the root."""
CLIPS = 1.5
"""Norms of a clipped gradient that a state may have. All of it are means of gradients from zero on, and averages of
such means, so that 1 is what a healthy one cannot pass, whatever steps and learning rates; the rest is for rounding."""
CODED = 3.0
"""Times these bounds for a coded state: a root and a mean may each be off by half a step, and a root is a half at
least."""


@dataclass(frozen=True)
class SiteInner:
    """The inner state that a site delivered; `sha256` is its own claim about the file, `codec` what was asked for."""

    site: str
    path: Path
    sha256: str
    codec: StateCodecName = "fp32"


def unusable(states: Sequence[SiteInner], weights_path: Path, grad_clip: float | None = None) -> dict[str, str]:
    """Sites whose state cannot be merged, with the reason.

    A state holds for every floating tensor of the weights at least one tensor `OPTIMISER/WEIGHT/FIELD`, of the weight's
    shape or a single number, all of them finite; the same ones as most of the sites have: one that lies does not speak
    for the others; and what gradients can have left there.

    Args:
        grad_clip: the norm that a step's gradient, all tensors together, is clipped to; no bound from it if None.

    Raises:
        FederationError: the weights are unreadable.
    """
    refused: dict[str, str] = {}
    layouts: dict[str, Layout] = {}
    with TensorFile(weights_path) as weights:
        for state in sorted(states, key=lambda state: state.site):
            try:
                layouts[state.site] = _checked(state, weights.tensors, grad_clip)
            except FederationError as error:
                refused[state.site] = str(error)
    most = max(layouts.values(), key=list(layouts.values()).count, default={})
    for site, layout in layouts.items():
        if layout != most:
            odd = min(name for name in {*layout, *most} if layout.get(name) != most.get(name))
            refused[site] = f"tensor {odd} of its inner state is not as the other sites have it"
    return refused


def _checked(state: SiteInner, weights: Mapping[str, TensorInfo], grad_clip: float | None) -> Layout:
    if file_sha256(state.path) != state.sha256:
        raise FederationError(f"its inner state does not have the sha256 {state.sha256[:12]} it claims")
    missing = {name for name, tensor in weights.items() if tensor.floating}
    sizes: defaultdict[tuple[str, bool], float] = defaultdict(float)
    slack = 1.0 if state.codec == "fp32" else CODED
    with StateFile(state.path) as file:
        if file.codec != state.codec:
            raise FederationError(f"its inner state is coded by {file.codec}, not by {state.codec}")
        held = {tensor.name: tensor for tensor in file.tensors}
        for name, tensor in held.items():
            weight = name.partition("/")[2].rpartition("/")[0]
            missing.discard(weight)
            if weight not in weights or tensor.shape not in ((), weights[weight].shape) or not tensor.floating:
                raise FederationError(f"tensor {name} of its inner state fits no weight of the model")
            squares = held.get(f"{name}_sq") if name.endswith(MEANS) else None
            if squares is not None and squares.shape != tensor.shape:
                raise FederationError(f"tensor {name} of its inner state has not the shape of its mean of squares")
            if (found := _size_of(file, tensor, squares, slack)) is not None:
                sizes[name.partition("/")[0], name.endswith(SQUARES)] += found
        if missing:
            raise FederationError(f"its inner state has nothing of {sorted(missing)[0]}")
        for (optimiser, _), size in sizes.items():
            if grad_clip is not None and (norm := math.sqrt(size)) > slack * CLIPS * grad_clip:
                raise FederationError(
                    f"the {optimiser} part of its inner state has norm {norm:.4g}, which gradients clipped to "
                    f"{grad_clip:g} cannot leave"
                )
        return {name: (tensor.dtype, tensor.shape) for name, tensor in held.items()}


def _size_of(file: StateFile, tensor: TensorInfo, squares: TensorInfo | None, slack: float) -> float | None:
    """The squared norm of gradients that a tensor speaks of; None of a number of steps.

    Args:
        squares: the mean of squares beside a mean.

    Raises:
        FederationError: no steps and no gradients leave such values.
    """
    name, size = tensor.name, 0.0
    for first, count in pieces(tensor):
        values = file.floats(name, first, count)
        if not np.isfinite(values).all():
            raise FederationError(f"tensor {name} of its inner state is not finite")
        if name.endswith(STEPS):
            if (values < 1).any():  # AdamW divides by 1 - beta ** step
                raise FederationError(f"tensor {name} of its inner state is not a number of steps")
        elif name.endswith(SQUARES):
            if (values < 0).any():  # AdamW takes their root
                raise FederationError(f"tensor {name} of its inner state, a mean of squares, is negative")
            size += float(values.sum(dtype=np.float64))
        else:
            size += float(np.square(values, dtype=np.float64).sum())
        if squares is not None:
            roots = np.sqrt(np.maximum(file.floats(squares.name, first, count), 0))
            if (np.abs(values) > slack * ROOTS * roots + SMALLEST).any():
                raise FederationError(f"tensor {name} of its inner state is larger than its mean of squares allows")
    return None if name.endswith(STEPS) else size


def merge_states(states: Sequence[SiteInner], shares: Mapping[str, float], out: Path) -> WrittenFile:
    """Write the average of states of which none is `unusable`.

    Args:
        shares: weight of each site, summing to 1.
        out: written atomically, with the types and the order of tensors of the first site by name.

    Raises:
        FederationError: there is no state.
    """
    if not states:
        raise FederationError("no inner state to merge; give those of the accepted sites")
    with ExitStack() as stack:
        ordered = sorted(states, key=lambda state: state.site)
        files = [(stack.enter_context(StateFile(s.path)), np.float32(shares[s.site])) for s in ordered]
        tensors = files[0][0].tensors
        scratch = stack.enter_context(replacing(out))
        layout: Layout = {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}
        writer = stack.enter_context(StateWriter(scratch, ordered[0].codec, layout))

        def averaged(piece: tuple[TensorInfo, int, int]) -> bytearray | memoryview:
            tensor, first, count = piece
            mean: Floats = np.zeros(count, np.float32)
            for file, share in files:
                mean += share * file.floats(tensor.name, first, count)
            return writer.encoded(tensor, mean)

        threads = stack.enter_context(ThreadPoolExecutor(THREADS))
        work = ((tensor, first, count) for tensor in tensors for first, count in pieces(tensor))
        for data in in_order(averaged, work, threads, THREADS * AHEAD):
            writer.write(data)
    return WrittenFile(sha256=writer.sha256, bytes=writer.bytes)


def fetch_states(
    store: Store,
    orders: Mapping[str, Order],
    results: Mapping[str, Result],
    weights_path: Path,
    held: ExitStack,
    grad_clip: float | None,
) -> tuple[dict[str, SiteInner], dict[str, str]]:
    """The inner states that are to be merged, as files there as long as `held` is open; and why a site's cannot be.

    Those that keep their state to themselves have none here.

    Args:
        results: of sites whose updates speak for some text, and that have a state: it may be lost when what is left of
            fragments is sent, without a step.
        grad_clip: as of `unusable`.
    """
    states: dict[str, SiteInner] = {}
    refused: dict[str, str] = {}
    for site, result in results.items():
        if not orders[site].inner_out:
            continue
        try:
            path = held.enter_context(store.local(orders[site].inner_out))
        except (NotStored, CorruptObject) as error:
            refused[site] = f"its inner state cannot be had: {error}"
            continue
        states[site] = SiteInner(site, path, result.inner_state.end.removeprefix("sha256:"), orders[site].inner_codec)
    refused |= unusable(list(states.values()), weights_path, grad_clip)
    return {site: state for site, state in states.items() if site not in refused}, refused


def store_merged(
    store: Store, orders: Mapping[str, Order], states: Mapping[str, SiteInner], report: MergeReport, key: str
) -> WrittenFile | None:
    """Store under `key` what the accepted sites' states come to; None where there is none, as of all whose is lost."""
    accepted = [states[site] for site in sorted(report.accepted) if site in states]
    if not accepted:
        return None
    if len(accepted) == 1:  # one site's state goes on as it is
        (only,) = accepted
        store.copy(orders[only.site].inner_out, key)
        return WrittenFile(sha256=only.sha256, bytes=only.path.stat().st_size)
    shares = {state.site: report.accepted[state.site].share for state in accepted}
    if len(accepted) < len(report.accepted):
        shares = {site: share / sum(shares.values()) for site, share in shares.items()}
    with store.new_file(key) as out:
        return merge_states(accepted, shares, out)
