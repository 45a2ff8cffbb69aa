"""The outer step: one round's site weights and the round's starting weights make the next weights.

The outer optimiser is DiLoCo's (arXiv:2311.08105, section 3): the pseudo-gradient of a site is what it moved,
`parent - site`; their token-weighted mean `g` goes through SGD with Nesterov momentum as `torch.optim.SGD` defines it,

    buffer <- momentum * buffer + g
    weights <- parent - lr * (g + momentum * buffer)

With one training site (mode `local`) the site's weights are taken as they are and the buffer is kept for the next
federated segment. Files are streamed piece by piece, so memory does not grow with the model or the number of sites.
"""

import os
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.orders import AcceptedUpdate, MergeReport, WrittenFile
from curtail_pipeline.federation.tensor_stream import Floats, TensorFile, TensorWriter, from_float32, pieces
from curtail_pipeline.storage.atomic import replacing
from curtail_pipeline.storage.store import file_sha256

NORM_WINDOW = 20
"""Accepted norms that the norm bound looks back on."""
NORM_MINIMUM = 5
"""Accepted norms there must be before the bound is taken from them."""
PARENT_NORMS = 20.0
"""Norms of the parent's weights that an update may have all the same. Adam moves an element by about its learning rate
per step, so that a long round can move embeddings by several times what they began with, and a round with 17 times the
steps of those before has been seen to move weights 17 times as far."""


@dataclass(frozen=True)
class Update:
    """What a site delivered for a round.

    `tokens` weigh the update; `sha256` is the site's own claim about the file, `parent_sha256` and `round` say what it
    was trained from.
    """

    site: str
    path: Path
    tokens: int
    sha256: str
    parent_sha256: str
    round: int


def norm_limit(norm_bound: float, norm_history: Sequence[float]) -> float:
    """What the run's past lets pass: `norm_bound` x the median of the last 20 accepted norms; 0 before there are 5."""
    recent = norm_history[-NORM_WINDOW:]
    return norm_bound * statistics.median(recent) if len(recent) >= NORM_MINIMUM else 0.0


def beside_the_others(norms: Mapping[str, float], tokens: Mapping[str, int], norm_bound: float) -> dict[str, str]:
    """Sites whose norm stands out in their round, with the reason: above `norm_bound` x the median of the others'.

    A norm grows with the number of steps, linearly at most; the others' count as if they had trained as long.
    """
    found = {}
    for site, norm in norms.items():
        others = [
            other * max(1.0, tokens[site] / tokens[name]) for name, other in norms.items() if name != site and other > 0
        ]
        if others and norm > norm_bound * (limit := statistics.median(others)):
            found[site] = f"norm {norm:.4g} is above {norm_bound:g} times the other sites' {limit:.4g}"
    return found


def merge(
    parent_path: Path,
    outer_path: Path | None,
    updates: Sequence[Update],
    mode: Literal["local", "federated"],
    lr: float,
    momentum: float,
    out_weights: Path,
    out_outer: Path,
    norm_bound: float,
    norm_history: Sequence[float],
    *,
    parent_sha256: str,
    round_index: int,
) -> MergeReport:
    """Merge one round. The order of the updates does not change the result: sites are summed by name.

    An update is refused, by name and with a reason, unless it was trained from this parent and round, its file has the
    sha256 it claims, its tensors have the parent's names, shapes and types, every difference from the parent is finite,
    and its norm is within the bound, the larger one of `norm_limit` and `PARENT_NORMS`, and does not stand out as
    `beside_the_others` has it. An update without tokens is neither accepted nor refused. With no accepted update
    the parent's weights and the momentum go on unchanged.

    Args:
        parent_path: the weights the round started from.
        outer_path: the momentum buffer (float32, the parent's tensor names); zero when not given or without tensors.
        out_weights: new weights, with the parent's types; written atomically, as is `out_outer`.
        norm_history: accepted norms so far in the run, oldest first.

    Raises:
        FederationError: the parent or the momentum is unreadable, two updates carry one site's name, or mode `local`
            got several updates.
    """
    begun = time.perf_counter()
    names = [update.site for update in updates]
    if len(set(names)) != len(names):
        raise FederationError(f"round {round_index} has two updates of one site ({sorted(names)}); send one per site")
    if mode == "local" and len(updates) > 1:
        raise FederationError(f"mode local takes one update, not those of {', '.join(sorted(names))}; use federated")
    empty = sorted(update.site for update in updates if update.tokens == 0)
    offered = sorted((update for update in updates if update.tokens), key=lambda update: update.site)
    with TensorFile(parent_path) as parent, ThreadPoolExecutor(os.cpu_count()) as threads:
        limit = max(PARENT_NORMS * _norm(parent), norm_limit(norm_bound, norm_history))
        checks = [threads.submit(_validate, parent, u, parent_sha256, round_index, limit) for u in offered]
        norms, refused = _judged(offered, checks)
        refused |= beside_the_others(norms, {update.site: update.tokens for update in offered}, norm_bound)
        accepted = [update for update in offered if update.site not in refused]
        total = sum(update.tokens for update in accepted)
        shares = {update.site: update.tokens / total for update in accepted}
        if mode == "federated" and accepted:
            step_norm, weights, outer = _nesterov(
                parent, outer_path, accepted, shares, lr, momentum, out_weights, out_outer
            )
        else:
            step_norm = norms[accepted[0].site] if accepted else 0.0
            source, sha256 = (accepted[0].path, accepted[0].sha256) if accepted else (parent_path, parent_sha256)
            weights, outer = _assign(source, sha256, outer_path, out_weights, out_outer)
    history = [*norm_history, *(norms[update.site] for update in accepted)][-NORM_WINDOW:]
    return MergeReport(
        mode=mode,
        accepted={u.site: AcceptedUpdate(norm=norms[u.site], share=shares[u.site]) for u in accepted},
        refused=refused,
        empty=tuple(empty),
        weights=weights,
        outer=outer,
        step_norm=step_norm,
        norm_history=tuple(history),
        seconds=time.perf_counter() - begun,
    )


def _judged(offered: Sequence[Update], checks: Sequence["Future[float]"]) -> tuple[dict[str, float], dict[str, str]]:
    """Norms of the updates that passed their check, and the reasons for refusing the others."""
    norms: dict[str, float] = {}
    refused: dict[str, str] = {}
    for update, check in zip(offered, checks, strict=True):
        try:
            norms[update.site] = check.result()
        except FederationError as error:
            refused[update.site] = str(error)
    return norms, refused


def _norm(weights: TensorFile) -> float:
    """The L2 norm of all floating tensors; infinite for weights of norm 0, which bound nothing."""
    parts = (
        _square(weights.floats(tensor, first, count), tensor.name)
        for tensor in weights.tensors.values()
        if tensor.floating
        for first, count in pieces(tensor)
    )
    return float(np.sqrt(sum(parts))) or float("inf")


def _assign(
    source: Path, sha256: str, outer_path: Path | None, out_weights: Path, out_outer: Path
) -> tuple[WrittenFile, WrittenFile]:
    """Take weights as they are and keep the momentum."""
    _copy(source, out_weights)
    if outer_path is None:
        with replacing(out_outer) as scratch, TensorWriter(scratch, []):
            pass
    else:
        _copy(outer_path, out_outer)
    return _file(out_weights, sha256), _file(out_outer, file_sha256(out_outer))


def _validate(parent: TensorFile, update: Update, parent_sha256: str, round_index: int, limit: float) -> float:
    """The L2 norm of `parent - site`; raises FederationError with the reason for refusing the update."""
    if update.parent_sha256 != parent_sha256:
        raise FederationError(f"trained from {update.parent_sha256[:12]}, not from this round's {parent_sha256[:12]}")
    if update.round != round_index:
        raise FederationError(f"belongs to round {update.round}, not to round {round_index}")
    if update.tokens < 0:
        raise FederationError(f"claims {update.tokens} tokens")
    if not update.path.is_file():
        raise FederationError(f"its weights {update.path.name} are missing")
    if file_sha256(update.path) != update.sha256:
        raise FederationError(f"its weights do not have the sha256 {update.sha256[:12]} it claims")
    with TensorFile(update.path) as site, np.errstate(over="ignore", invalid="ignore"):
        if site.tensors.keys() != parent.tensors.keys():
            odd = sorted(site.tensors.keys() ^ parent.tensors.keys())
            raise FederationError(f"its tensors differ from the parent's: {', '.join(odd[:3])}")
        squares = 0.0
        for name, ours in parent.tensors.items():
            theirs = site.tensors[name]
            if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
                raise FederationError(
                    f"tensor {name} is {theirs.dtype} {list(theirs.shape)}, not {ours.dtype} {list(ours.shape)}"
                )
            for first, count in pieces(ours):
                if ours.floating:
                    delta = site.floats(theirs, first, count)
                    np.subtract(parent.floats(ours, first, count), delta, out=delta)
                    squares += _square(delta, name)
                elif parent.raw(ours, first, count) != site.raw(theirs, first, count):
                    raise FederationError(f"tensor {name} ({ours.dtype}) changed; only floating tensors are trained")
    norm = float(np.sqrt(squares))
    if norm > limit:
        raise FederationError(f"norm {norm:.4g} is above the bound {limit:.4g}")
    return norm


def _square(delta: Floats, name: str) -> float:
    """Sum of squares; raises when an element is not finite. The sum is itself the test, so data is read once."""
    total = float(np.dot(delta, delta))
    if not np.isfinite(total):
        if not np.isfinite(delta).all():
            raise FederationError(f"tensor {name} is not finite")
        wide = delta.astype(np.float64)
        total = float(np.dot(wide, wide))
    return total


def _nesterov(
    parent: TensorFile,
    outer_path: Path | None,
    updates: list[Update],
    shares: dict[str, float],
    lr: float,
    momentum: float,
    out_weights: Path,
    out_outer: Path,
) -> tuple[float, WrittenFile, WrittenFile]:
    """Write new weights and buffer; the L2 norm of the mean pseudo-gradient, sha256 and size of the two files."""
    squares = 0.0
    with ExitStack() as stack:
        buffers = stack.enter_context(TensorFile(outer_path)) if outer_path else None
        if buffers and buffers.tensors:
            _check_buffers(parent, buffers)
        sites = [(stack.enter_context(TensorFile(u.path)), np.float32(shares[u.site])) for u in updates]
        trained = [t for t in parent.tensors.values() if t.floating]
        scratch_weights = stack.enter_context(replacing(out_weights))
        scratch_outer = stack.enter_context(replacing(out_outer))
        weights = stack.enter_context(
            TensorWriter(scratch_weights, [(t.name, t.dtype, t.shape) for t in parent.tensors.values()])
        )
        outer = stack.enter_context(TensorWriter(scratch_outer, [(t.name, "F32", t.shape) for t in trained]))
        rate, beta = np.float32(lr), np.float32(momentum)
        for tensor in parent.tensors.values():
            for first, count in pieces(tensor):
                if not tensor.floating:
                    weights.write(parent.raw(tensor, first, count))
                    continue
                origin = parent.floats(tensor, first, count)
                mean: Floats = np.zeros(count, np.float32)
                for file, share in sites:
                    delta = file.floats(file.tensors[tensor.name], first, count)
                    np.subtract(origin, delta, out=delta)
                    delta *= share
                    mean += delta
                squares += float(np.dot(mean, mean))
                if buffers and buffers.tensors:
                    buffer = buffers.floats(buffers.tensors[tensor.name], first, count)
                    buffer *= beta
                    buffer += mean
                else:
                    buffer = mean.copy()
                outer.write(from_float32(buffer, "F32"))
                mean += beta * buffer
                mean *= rate
                origin -= mean
                weights.write(from_float32(origin, tensor.dtype))
    return (
        float(np.sqrt(squares)),
        WrittenFile(sha256=weights.sha256, bytes=weights.bytes),
        WrittenFile(sha256=outer.sha256, bytes=outer.bytes),
    )


def _file(path: Path, sha256: str) -> WrittenFile:
    return WrittenFile(sha256=sha256, bytes=path.stat().st_size)


def _check_buffers(parent: TensorFile, buffers: TensorFile) -> None:
    for tensor in parent.tensors.values():
        held = buffers.tensors.get(tensor.name)
        if tensor.floating and (held is None or held.shape != tensor.shape or held.dtype != "F32"):
            raise FederationError(
                f"outer momentum {buffers.path} has no float32 tensor {tensor.name} of shape {list(tensor.shape)}; "
                "it belongs to another model: start from a checkpoint whose files belong together"
            )


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as scratch:
        try:
            os.link(source, scratch)
        except OSError:
            shutil.copyfile(source, scratch)
