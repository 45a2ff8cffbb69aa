"""What a site without credentials of the store fetches by addresses, and what it has already."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_signed_front import SignedFront, signed_front
from test_remote_store import EXPERIMENT, SECRET, bucket_of, linked
from training_case import SITE, changed, make_order, next_order

from curtail_pipeline.benchmarks.s3_server import S3Server
from curtail_pipeline.federation.fragments import Fragment
from curtail_pipeline.federation.orders import SharedState, StoredDelta, StoredWeights
from curtail_pipeline.federation.update_file import write_weights
from curtail_pipeline.settings.federation_settings import CodecName
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.links import BROUGHT
from curtail_pipeline.training.trainer import SiteTrainer


@pytest.fixture
def front(s3: S3Server) -> Iterator[SignedFront]:
    with signed_front(s3.url, SECRET) as found:
        yield found


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_its_own_work_does_not_come_back_to_a_site_alone(
    s3: S3Server, front: SignedFront, store: FolderStore, tmp_path: Path, codec: CodecName
) -> None:
    coordinator = bucket_of(s3, store, tmp_path / "coordinator", front.url)
    trainer = SiteTrainer(FolderStore(tmp_path / "site"), SITE, EXPERIMENT)
    first = make_order(store, codec=codec, shared=SharedState(name="fresh"), inner_out="scratch/r0/inner/NEM_SA")
    done = trainer.train(linked(coordinator, first))

    # as a merge of one update leaves them
    weights, delta, inner = (f"scratch/r0/{name}.safetensors" for name in ("model", "delta", "inner"))
    coordinator.copy(first.inner_out, inner)
    parent, moved = StoredWeights(key=weights, sha256=done.weights.sha256), None
    if codec == "fp32":
        coordinator.copy(first.out, weights)
    else:
        coordinator.copy(first.out, delta)
        with coordinator.local(first.parent.key) as base, coordinator.local(delta) as update:
            made = tmp_path / "made"
            parent = StoredWeights(key=weights, sha256=write_weights(base, update, codec, made).sha256)
        coordinator.put_file(made, weights)
        moved = StoredDelta(key=delta, sha256=done.weights.sha256, codec=codec, base=first.parent)
    shared = SharedState(name=done.inner_state.end, key=inner)
    second = next_order(first, done, parent=parent, delta=moved, shared=shared, inner_out="scratch/r1/inner/NEM_SA",
                        residual=done.residual.end if done.residual else "fresh")  # fmt: skip

    front.accepted.clear()
    again = trainer.train(linked(coordinator, second))
    assert again.parent_sha256 == parent.sha256 and again.inner_state.begin == done.inner_state.end
    fetched = {path.rpartition("/scratch/")[2] for method, path in front.accepted if method == "GET"}
    assert not {"r0/model.safetensors", "r0/delta.safetensors", "r0/inner.safetensors"} & fetched


def test_fragments_are_exchanged_as_by_any_site(
    s3: S3Server, front: SignedFront, store: FolderStore, tmp_path: Path
) -> None:
    """By trainers that are started for each order: what is not sent, states among it, is on the site's own disk."""
    coordinator, own = bucket_of(s3, store, tmp_path / "coordinator", front.url), FolderStore(tmp_path / "site")
    order = make_order(
        store, codec="int8", goes_on=True, fragment=Fragment(index=0, of=2), shared=SharedState(name="fresh")
    )
    for number in (1, 2, 3):
        result = SiteTrainer(store, SITE, EXPERIMENT).train(order)
        found = SiteTrainer(own, SITE, EXPERIMENT).train(linked(coordinator, order))
        timed = {"seconds", "tokens_per_s"}
        assert found.model_dump(exclude=timed) == result.model_dump(exclude=timed)
        assert coordinator.read_bytes(order.out) == store.read_bytes(order.out)
        more = {"inner_state": result.inner_state.end, "residual": result.residual and result.residual.end}
        order = changed(order, round=number, shared=None, out=f"scratch/r{number}/NEM_SA.safetensors", **more)
        order = changed(order, fragment=Fragment(index=1, of=2) if number == 1 else None)
        if number == 2:  # what is left
            order = changed(order, max_steps=0, inner_out="scratch/r2/inner/NEM_SA.safetensors")
    assert result.steps == 0 and coordinator.read_bytes("scratch/r2/inner/NEM_SA.safetensors")
    assert not [*coordinator.list("inner_state")]


def test_what_a_killed_process_has_fetched_in_part_goes(
    s3: S3Server, front: SignedFront, store: FolderStore, tmp_path: Path
) -> None:
    coordinator, own = bucket_of(s3, store, tmp_path / "coordinator", front.url), FolderStore(tmp_path / "site")
    order = linked(coordinator, make_order(store))
    part = own.here(BROUGHT) / f"{order.parent.key.rpartition('/')[0]}/.model.safetensors.{'0' * 32}.tmp"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half of it")
    trainer = SiteTrainer(own, SITE, EXPERIMENT)
    assert part.exists(), "until an order is worked on: another process may be at one"
    trainer.train(order)
    assert not [path for path in own.root.rglob("*") if path.name.endswith(".tmp")]
