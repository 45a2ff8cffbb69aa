"""What a disturbed run left, told without the product's ledger: sequences one by one, processes, ports."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from curtail_pipeline.errors import CurtailError
from curtail_pipeline.stages.evaluate import evaluation_key
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.commits import manifest_key
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.storage.records import Json
from curtail_pipeline.training.heldout_loss import Evaluation

GRACE_S = 20.0
"""Within which processes end."""


def miscounted(manifests: Sequence[dict[str, Json]], sequence: int) -> str | None:
    """What the manifests of a lineage count wrong, told by listing every sequence; None where all of it is right.

    Args:
        sequence: tokens of one.
    """
    seen: Counter[tuple[str, int, int]] = Counter()
    for manifest in manifests:
        sites, tokens = manifest["sites"], manifest["tokens"]
        assert isinstance(sites, dict) and isinstance(tokens, dict)
        for site, done in sites.items():
            assert isinstance(done, dict) and isinstance(done["consumed"], list)
            for item in done["consumed"]:
                assert isinstance(item, list)
                owner = str(item[3]) if len(item) > 3 else site
                epoch, start, end = (int(str(number)) for number in item[:3])
                seen.update((owner, epoch, at) for at in range(start, end))
        if tokens["total"] != len(seen) * sequence:
            return f"{manifest['key']} counts {tokens['total']} tokens, its lineage trained on {len(seen) * sequence}"
    twice = [place for place, count in seen.items() if count > 1]
    return f"{len(twice)} sequences were trained on twice, e.g. {twice[0]}" if twice else None


@dataclass(frozen=True)
class Lineage:
    """What a store holds after a run."""

    keys: Sequence[str]
    damage: str | None
    """What the product's own check of the chain says, where it does not hold."""
    miscounted: str | None
    last: Manifest | None
    heldout_loss: float | None
    """Of the last one."""


def lineage_of(checkpoints: Checkpoints, sequence: int) -> Lineage:
    """Every checkpoint looked at.

    Args:
        sequence: tokens of one.
    """
    store, damage = checkpoints.store, None
    try:
        keys = checkpoints.verify_chain()
    except CurtailError as error:
        keys, damage = checkpoints.keys(), str(error)
    if not keys:
        return Lineage((), damage, None, None, None)
    found = [store.read_json(manifest_key(key)) for key in keys]
    wrong = miscounted([manifest for manifest in found if isinstance(manifest, dict)], sequence)
    of_last = evaluation_key(keys[-1])
    loss = store.read_record(of_last, Evaluation).loss if store.exists(of_last) else None
    return Lineage(keys, damage, wrong, checkpoints.manifest(keys[-1]), loss)


def listening_below(roots: Collection[int]) -> set[int]:
    """Ports that processes and all below them listen on."""
    found: set[int] = set()
    for root in roots:
        with contextlib.suppress(psutil.Error):
            for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    connections = process.net_connections("tcp")
                    found |= {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
    return found


def orphans(folder: Path) -> list[str]:
    """Command lines of processes that still work in a folder, once they had the time to end."""
    deadline = time.monotonic() + GRACE_S
    while (found := _working_in(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _working_in(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if process.pid != os.getpid() and str(folder) in words:
                found.append(f"{process.pid} {words}")
    return found


def listening_for(homes: Path) -> set[int]:
    """Ports that processes of these homes listen on, whoever their parents are now: others may use the same numbers."""
    found: set[int] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("CURTAIL_HOME") == str(homes):
                connections = process.net_connections("tcp")
                found |= {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
    return found
