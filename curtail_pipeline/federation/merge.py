"""The outer step: one round's site weights and the round's starting weights make the next weights.

The outer optimiser is DiLoCo's (arXiv:2311.08105, section 3): the pseudo-gradient of a site is what it moved,
`parent - site`; their token-weighted mean `g` goes through SGD with Nesterov momentum as `torch.optim.SGD` defines it,

    buffer <- momentum * buffer + g
    weights <- parent - lr * (g + momentum * buffer)

With one training site (mode `local`) the site's weights are taken as they are and the buffer is kept for the next
federated segment. What a site moved may come coded (`codecs`), and the step may leave coded (`download`): the new
weights are then the parent's minus what the file says, to the last bit, wherever they are made from it.
"""

import os
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.codecs import CODECS
from curtail_pipeline.federation.fragments import Fragment
from curtail_pipeline.federation.merge_pass import MergePass, Offered, Outputs, Passed, Spoilt, Update
from curtail_pipeline.federation.merge_report import AcceptedUpdate, MergeReport, WrittenFile
from curtail_pipeline.federation.tensor_stream import TensorFile, TensorWriter
from curtail_pipeline.federation.update_file import UpdateFile
from curtail_pipeline.settings.federation_settings import CodecName
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
_UNLIKE = "its weights do not have the sha256 {} it claims"


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
    least: int = 1,
    download: CodecName = "fp32",
    out_delta: Path | None = None,
    fragment: Fragment | None = None,
) -> MergeReport:
    """Merge one round. The order of the updates does not change the result: sites are summed by name.

    An update is refused, by name and with a reason, unless it was trained from this parent and round, its file has the
    sha256 it claims, its tensors have the parent's names, shapes and types, every difference from the parent is finite,
    and its norm is within the bound, the larger one of `norm_limit` and `PARENT_NORMS`, and does not stand out as
    `beside_the_others` has it. An update without tokens is neither accepted nor refused. With no accepted update
    the parent's weights and the momentum go on unchanged, and so they do with fewer than `least`, which are refused.

    Args:
        parent_path: the weights the round started from.
        outer_path: the momentum buffer (float32, the parent's tensor names); zero when not given or without tensors.
        out_weights: new weights, with the parent's types; written atomically, as is `out_outer`.
        norm_history: accepted norms so far in the run, oldest first.
        download: codec of what receivers of the parent may get in place of the new weights, written to `out_delta`. In
            mode `local` that is the update itself.
        fragment: what updates have to hold; all other tensors and their momentum go on as they are.

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
    with ExitStack() as stack:
        parent = stack.enter_context(TensorFile(parent_path))
        if mode == "federated":
            buffers = _buffers(parent, outer_path, stack) if outer_path else None
            codec = CODECS[download] if download != "fp32" and out_delta else None
            delta = out_delta if codec else None
            outputs = Outputs(out_weights, out_outer, buffers, lr, momentum, delta, codec, fragment)
        else:
            outputs = Outputs(out_weights if any(u.codec != "fp32" for u in offered) else None, fragment=fragment)
        judge = _Judge(parent, parent_sha256, round_index, norm_bound, norm_history, fragment)
        accepted, passed = judge.merge(offered, outputs)
        if len(accepted) < least:
            why = f"a merge takes {least} updates, and {len(accepted)} could be used"
            judge.refused |= dict.fromkeys((update.site for update in accepted), why)
            accepted, passed = [], Passed(0.0, {})
    norms, total = judge.norms, sum(update.tokens for update in accepted)
    written, step_norm = passed.written, passed.step_norm
    if mode == "local" or not accepted:
        source = accepted[0] if accepted else None
        step_norm = norms[source.site] if source else 0.0
        written = _assigned(source, parent_path, parent_sha256, outer_path, out_weights, out_outer, written, out_delta)
    return MergeReport(
        mode=mode,
        accepted={u.site: AcceptedUpdate(norm=norms[u.site], share=u.tokens / total) for u in accepted},
        refused=judge.refused,
        empty=tuple(empty),
        weights=written["weights"],
        outer=written["outer"],
        delta=written.get("delta"),
        step_norm=step_norm,
        norm_history=(*norm_history, *(norms[update.site] for update in accepted))[-NORM_WINDOW:],
        seconds=time.perf_counter() - begun,
    )


class _Judge:
    """Which updates of a round count. `norms` and `refused`, by site, are known after `merge`."""

    def __init__(
        self,
        parent: TensorFile,
        parent_sha256: str,
        round_index: int,
        norm_bound: float,
        history: Sequence[float],
        fragment: Fragment | None,
    ) -> None:
        self._parent, self._parent_sha256, self._round = parent, parent_sha256, round_index
        self._fragment = fragment
        self._norm_bound, self._history = norm_bound, history
        self.norms: dict[str, float] = {}
        self.refused: dict[str, str] = {}

    def merge(self, offered: Sequence[Update], outputs: Outputs) -> tuple[list[Update], Passed]:
        """The updates that count and what became of them. One that does not costs a second pass over the others."""
        beside = True
        while True:
            with ExitStack() as stack:
                files = [(u, file) for u in offered if u.site not in self.refused and (file := self._open(u, stack))]
                total = sum(update.tokens for update, _ in files)
                opened = [Offered(u, file, np.float32(u.tokens / total)) for u, file in files]
                if not opened:
                    return [], Passed(0.0, {})

                def accept(parent_norm: float, opened: list[Offered] = opened, beside: bool = beside) -> bool:
                    return self._accept(opened, parent_norm, beside)

                try:
                    return [update for update, _ in files], MergePass(self._parent, opened, outputs).run(accept)
                except Spoilt:
                    beside = False

    def _open(self, update: Update, stack: ExitStack) -> UpdateFile | None:
        try:
            if update.parent_sha256 != self._parent_sha256:
                ours = self._parent_sha256[:12]
                raise FederationError(f"trained from {update.parent_sha256[:12]}, not from this round's {ours}")
            if update.round != self._round:
                raise FederationError(f"belongs to round {update.round}, not to round {self._round}")
            if update.tokens < 0:
                raise FederationError(f"claims {update.tokens} tokens")
            if not update.path.is_file():
                raise FederationError(f"its weights {update.path.name} are missing")
            file = stack.enter_context(self._file(update))
            if file.fragment != self._fragment:
                asked, found = (
                    f"fragment {part}" if part else "everything" for part in (self._fragment, file.fragment)
                )
                raise FederationError(f"its update is of {found}, not of {asked}")
            return file
        except FederationError as error:
            self.refused[update.site] = str(error)
            return None

    def _file(self, update: Update) -> UpdateFile:
        try:
            return UpdateFile(update.path, update.codec, self._parent)
        except FederationError:
            if file_sha256(update.path) != update.sha256:  # damaged on the way
                raise FederationError(_UNLIKE.format(update.sha256[:12])) from None
            raise

    def _accept(self, opened: Sequence[Offered], parent_norm: float, beside: bool) -> bool:
        """Whether all that were read count.

        Args:
            beside: compare them with each other; once is enough, as those refused are gone the second time.
        """
        limit = max(PARENT_NORMS * (parent_norm or float("inf")), norm_limit(self._norm_bound, self._history))
        found: dict[str, str] = {}
        norms: dict[str, float] = {}
        for offered in opened:
            if offered.sha256() != offered.update.sha256:
                found[offered.update.site] = _UNLIKE.format(offered.update.sha256[:12])
            elif offered.fault is not None:
                found[offered.update.site] = offered.fault
            elif offered.norm > limit:
                found[offered.update.site] = f"norm {offered.norm:.4g} is above the bound {limit:.4g}"
            else:
                norms[offered.update.site] = offered.norm
        if beside:
            tokens = {offered.update.site: offered.update.tokens for offered in opened}
            found |= beside_the_others(norms, tokens, self._norm_bound)
        self.norms |= norms
        self.refused |= found
        return not found


def _assigned(
    source: Update | None,
    parent_path: Path,
    parent_sha256: str,
    outer_path: Path | None,
    out_weights: Path,
    out_outer: Path,
    written: Mapping[str, WrittenFile],
    out_delta: Path | None,
) -> dict[str, WrittenFile]:
    """Keep the momentum, and take the weights of the only update, or the parent's, unless they are written."""
    files = dict(written)
    if "weights" not in files:
        path, sha256 = (source.path, source.sha256) if source else (parent_path, parent_sha256)
        _copy(path, out_weights)
        files["weights"] = _file(out_weights, sha256)
    elif source and out_delta:
        _copy(source.path, out_delta)
        files["delta"] = _file(out_delta, source.sha256)
    if outer_path is None:
        with replacing(out_outer) as scratch, TensorWriter(scratch, []):
            pass
    else:
        _copy(outer_path, out_outer)
    return files | {"outer": _file(out_outer, file_sha256(out_outer))}


def _file(path: Path, sha256: str) -> WrittenFile:
    return WrittenFile(sha256=sha256, bytes=path.stat().st_size)


def _buffers(parent: TensorFile, path: Path, stack: ExitStack) -> TensorFile | None:
    """The momentum, which has to be the parent's; None for one without tensors."""
    buffers = stack.enter_context(TensorFile(path))
    if not buffers.tensors:
        return None
    for tensor in parent.tensors.values():
        held = buffers.tensors.get(tensor.name)
        if tensor.floating and (held is None or held.shape != tensor.shape or held.dtype != "F32"):
            raise FederationError(
                f"outer momentum {buffers.path} has no float32 tensor {tensor.name} of shape {list(tensor.shape)}; "
                "it belongs to another model: start from a checkpoint whose files belong together"
            )
    return buffers


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as scratch:
        try:
            os.link(source, scratch)
        except OSError:
            shutil.copyfile(source, scratch)
