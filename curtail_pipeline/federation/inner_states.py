"""Inner optimiser states of a round's members, averaged: what whoever trains next begins with.

A site's own state is stale where others have trained since, and fresh where it never has; both cost loss. The average
is weighted as the weights' is, by tokens. It is streamed like the merge of weights, so that memory does not grow with
the model or the number of sites, and does not depend on the order of the sites: they are summed by name.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.merge_report import MergeReport, WrittenFile
from curtail_pipeline.federation.orders import Order, Result
from curtail_pipeline.federation.tensor_stream import Floats, TensorFile, TensorInfo, TensorWriter, from_float32, pieces
from curtail_pipeline.storage.atomic import replacing
from curtail_pipeline.storage.store import CorruptObject, NotStored, Store, file_sha256

Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape of each tensor."""
SQUARES = "/exp_avg_sq"


@dataclass(frozen=True)
class SiteInner:
    """The inner state that a site delivered; `sha256` is its own claim about the file."""

    site: str
    path: Path
    sha256: str


def unusable(states: Sequence[SiteInner], weights_path: Path) -> dict[str, str]:
    """Sites whose state cannot be merged, with the reason.

    A state holds for every floating tensor of the weights at least one tensor `OPTIMISER/WEIGHT/FIELD`, of the weight's
    shape or a single number, all of them finite and means of squares not negative; and the same ones as most of the
    sites have: one that lies does not speak for the others.

    Raises:
        FederationError: the weights are unreadable.
    """
    refused: dict[str, str] = {}
    layouts: dict[str, Layout] = {}
    with TensorFile(weights_path) as weights:
        for state in sorted(states, key=lambda state: state.site):
            try:
                layouts[state.site] = _checked(state, weights.tensors)
            except FederationError as error:
                refused[state.site] = str(error)
    most = max(layouts.values(), key=list(layouts.values()).count, default={})
    for site, layout in layouts.items():
        if layout != most:
            odd = min(name for name in {*layout, *most} if layout.get(name) != most.get(name))
            refused[site] = f"tensor {odd} of its inner state is not as the other sites have it"
    return refused


def _checked(state: SiteInner, weights: Mapping[str, TensorInfo]) -> Layout:
    if file_sha256(state.path) != state.sha256:
        raise FederationError(f"its inner state does not have the sha256 {state.sha256[:12]} it claims")
    missing = {name for name, tensor in weights.items() if tensor.floating}
    with TensorFile(state.path) as file:
        for name, tensor in file.tensors.items():
            weight = name.partition("/")[2].rpartition("/")[0]
            missing.discard(weight)
            if weight not in weights or tensor.shape not in ((), weights[weight].shape) or not tensor.floating:
                raise FederationError(f"tensor {name} of its inner state fits no weight of the model")
            for first, count in pieces(tensor):
                values = file.floats(tensor, first, count)
                if not np.isfinite(values).all():
                    raise FederationError(f"tensor {name} of its inner state is not finite")
                if name.endswith(SQUARES) and (values < 0).any():  # AdamW takes their root
                    raise FederationError(f"tensor {name} of its inner state, a mean of squares, is negative")
        if missing:
            raise FederationError(f"its inner state has nothing of {sorted(missing)[0]}")
        return {name: (tensor.dtype, tensor.shape) for name, tensor in file.tensors.items()}


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
        files = [(stack.enter_context(TensorFile(s.path)), np.float32(shares[s.site])) for s in ordered]
        tensors = list(files[0][0].tensors.values())
        scratch = stack.enter_context(replacing(out))
        writer = stack.enter_context(TensorWriter(scratch, [(t.name, t.dtype, t.shape) for t in tensors]))
        for tensor in tensors:
            for first, count in pieces(tensor):
                mean: Floats = np.zeros(count, np.float32)
                for file, share in files:
                    mean += share * file.floats(file.tensors[tensor.name], first, count)
                writer.write(from_float32(mean, tensor.dtype))
    return WrittenFile(sha256=writer.sha256, bytes=writer.bytes)


def fetch_states(
    store: Store, orders: Mapping[str, Order], results: Mapping[str, Result], weights_path: Path, held: ExitStack
) -> tuple[dict[str, SiteInner], dict[str, str]]:
    """The inner states that are to be merged, as files there as long as `held` is open; and why a site's cannot be.

    Sites that took no step, and those that keep their state to themselves, have none here.
    """
    states: dict[str, SiteInner] = {}
    refused: dict[str, str] = {}
    for site, result in results.items():
        if not orders[site].inner_out or not result.steps:
            continue
        try:
            path = held.enter_context(store.local(orders[site].inner_out))
        except (NotStored, CorruptObject) as error:
            refused[site] = f"its inner state cannot be had: {error}"
            continue
        states[site] = SiteInner(site, path, result.inner_state.end.removeprefix("sha256:"))
    refused |= unusable(list(states.values()), weights_path)
    return {site: state for site, state in states.items() if site not in refused}, refused


def store_merged(
    store: Store, orders: Mapping[str, Order], states: Mapping[str, SiteInner], report: MergeReport, key: str
) -> WrittenFile | None:
    """Store under `key` what the accepted sites' states come to; None where there is none."""
    accepted = [states[site] for site in sorted(report.accepted) if site in states]
    if not accepted:
        return None
    if len(accepted) == 1:  # one site's state goes on as it is
        (only,) = accepted
        store.copy(orders[only.site].inner_out, key)
        return WrittenFile(sha256=only.sha256, bytes=only.path.stat().st_size)
    with store.new_file(key) as out:
        return merge_states(accepted, {site: update.share for site, update in report.accepted.items()}, out)
