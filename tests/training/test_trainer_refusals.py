"""What a site's trainer refuses or does without, on record."""

import numpy as np
import pytest
import torch
from training_case import (
    SEQUENCE,
    SITE,
    WEIGHTS,
    CountingReader,
    changed,
    comparable,
    everything_stored,
    fill_store,
    make_experiment,
    make_order,
    next_order,
    run_rounds,
)

from curtail_pipeline.errors import CorpusError, MessageError, SettingsError, StoreError, TrainingError
from curtail_pipeline.federation.orders import (
    Order,
    SiteTerms,
)
from curtail_pipeline.training.retention import snapshot_key
from curtail_pipeline.training.trainer import SiteTrainer

EXPERIMENT = make_experiment()


def test_corrupt_or_missing_weights_are_refused_and_nothing_is_stored(store):
    trainer = SiteTrainer(store, SITE, EXPERIMENT)
    order = make_order(store)
    path = store.path(WEIGHTS)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    before = everything_stored(store)
    with pytest.raises(TrainingError, match=rf"{WEIGHTS} is corrupt: its sha256 is [0-9a-f]{{64}}, expected"):
        trainer.train(order)
    path.unlink()
    with pytest.raises(TrainingError, match=f"{WEIGHTS} is not in the store"):
        trainer.train(order)
    path.write_bytes(data)
    assert everything_stored(store) == before
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert trainer.train(order).steps == 3


def test_a_pruned_inner_state_is_named_with_the_fix(store):
    _, (second, result) = run_rounds(store, SiteTrainer(store, SITE, EXPERIMENT), 2)
    store.delete(snapshot_key(SITE, second.inner_state))
    for strict in (changed(second, terms=SiteTerms(lost_state="refuse")), changed(second, replay="again")):
        with pytest.raises(TrainingError, match=f"{second.inner_state} of site {SITE} .* 'fresh'"):
            SiteTrainer(store, SITE, EXPERIMENT).train(strict)
    assert result.steps == 3


@pytest.mark.parametrize("damage", ["gone", "flipped"])
def test_a_site_that_lost_its_inner_state_starts_fresh_and_says_so(store, caplog, damage):
    _, (second, result) = run_rounds(store, SiteTrainer(store, SITE, EXPERIMENT), 2)
    path = store.path(snapshot_key(SITE, second.inner_state))
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    anew = SiteTrainer(store, SITE, EXPERIMENT).train(second)
    assert anew.inner_state.begin == "fresh" and anew.steps == 3 and f"{SITE} starts fresh" in caplog.text
    told = SiteTrainer(store, SITE, EXPERIMENT).train(changed(second, inner_state="fresh"))
    assert anew.weights == told.weights != result.weights


def test_a_site_says_what_it_works_with_and_others_text_is_refused_before_work(store):
    trainer, order = SiteTrainer(store, SITE, EXPERIMENT), make_order(store)
    made_with = trainer.train(order).made_with
    assert made_with["torch"] == torch.__version__.split("+")[0] or made_with["torch"] == torch.__version__
    assert len(made_with["corpus"]) == len(made_with["tokenizer"]) == 64
    other = SiteTerms(made_with={**made_with, "tokenizer": "f" * 64}, differing="refuse")
    with pytest.raises(TrainingError, match=rf"works with tokenizer {made_with['tokenizer'][:12]} instead of ffffffff"):
        trainer.train(changed(order, round=1, terms=other))
    recorded = changed(order, round=1, terms=other.model_copy(update={"differing": "record"}))
    assert trainer.train(recorded).steps == 3


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"site": "SPP_TX"}, TrainingError, "for site 'SPP_TX', this trainer is 'NEM_SA'"),
        ({"config": "checkpoints/none/config.json"}, StoreError, "checkpoints/none/config.json"),
        ({"config": "experiment.json"}, TrainingError, "experiment.json describes a None model"),
        ({"out": "../outside.safetensors"}, StoreError, "leaves the store"),
    ],
)
def test_orders_that_cannot_be(store, change, error, text):
    with pytest.raises(error, match=text):
        SiteTrainer(store, SITE, EXPERIMENT).train(make_order(store, **change))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"max_steps": -1}, "max_steps: Input should be greater than or equal to 0"),
        ({"inner_state": "stale"}, "inner_state"),
        ({"parent": {"key": WEIGHTS}}, "parent.sha256: Field required"),
        ({"haste": True}, "haste: Extra inputs are not permitted"),
        ({"schema": 2}, "has schema 2"),
    ],
)
def test_what_is_no_order(store, change, text):
    content = make_order(store).model_dump(mode="json") | change
    with pytest.raises(MessageError, match=text):
        Order.read(content, "the order")


def test_another_experiment_is_refused(store):
    trainer = SiteTrainer(store, SITE, EXPERIMENT)
    trainer.train(make_order(store))
    later = EXPERIMENT.model_copy(update={"clock": EXPERIMENT.clock.model_copy(update={"end": None})})
    store.write_json("experiment.json", {**later.model_dump(mode="json"), "replay": {"speed": 9.0}})
    trainer.train(make_order(store, attempt=1))
    store.write_json("experiment.json", make_experiment(matrix_lr=0.5).model_dump(mode="json"))
    with pytest.raises(TrainingError, match="restart the trainer"):
        trainer.train(make_order(store, attempt=2))


def test_token_ids_beyond_the_vocabulary(store, vocabulary):
    class Foreign(CountingReader):
        def batches(self, ranges, sequences_per_batch, seed):
            yield np.full((sequences_per_batch, SEQUENCE + 1), vocabulary)

    with pytest.raises(TrainingError, match=f"hold token id {vocabulary}, .* vocabulary ends at {vocabulary - 1}"):
        SiteTrainer(store, SITE, EXPERIMENT, Foreign()).train(make_order(store))


def test_a_loss_that_is_not_finite_is_refused_and_forgotten(store):
    trainer = SiteTrainer(store, SITE, EXPERIMENT)
    good = trainer.train(make_order(store))
    broken = {n: t.clone() for n, t in trainer._learner.model.state_dict().items()}
    broken["model.embed_tokens.weight"][:] = float("nan")
    from curtail_pipeline.training.weights import store_tensors

    digest, _ = store_tensors(store, "scratch/nan.safetensors", broken)
    order = make_order(store, attempt=1, parent={"key": "scratch/nan.safetensors", "sha256": digest})
    before = everything_stored(store)
    with pytest.raises(TrainingError, match=r"diverged: loss nan .*; lower training\.matrix_lr"):
        trainer.train(order)
    assert everything_stored(store) == before
    assert comparable(trainer.train(make_order(store))) == comparable(good)


def test_a_round_that_diverges_is_ended_and_nothing_of_it_is_kept(tmp_path):
    """Learning rates of 1e9: finite all along, since the logits are capped."""
    experiment = make_experiment(matrix_lr=1e9, embedding_lr=1e9, unembedding_lr=1e9)
    store = fill_store(tmp_path, experiment)
    before = everything_stored(store)
    with pytest.raises(TrainingError, match=r"diverged: loss \d.* \(limit 7\.\d+\) .* at global step \d+ of site"):
        SiteTrainer(store, SITE, experiment).train(make_order(store, max_steps=30))
    assert everything_stored(store) == before


def test_a_round_that_failed_half_way_leaves_no_trace(store):
    class Failing(CountingReader):
        fails = False

        def batches(self, ranges, sequences_per_batch, seed):
            for count, batch in enumerate(super().batches(ranges, sequences_per_batch, seed)):
                if self.fails and count == 2:
                    raise CorpusError("the disk went away")
                yield batch

    reader = Failing()
    trainer = SiteTrainer(store, SITE, EXPERIMENT, reader)
    order = make_order(store)
    first = trainer.train(order)
    second = trainer.train(next_order(order, first))
    for again, was in ((next_order(order, first), second), (order, first)):
        trainer.train(changed(again, attempt=1))  # weights and inner state of the order's start are in memory
        reader.fails = True
        with pytest.raises(CorpusError, match="the disk went away"):
            trainer.train(changed(again, attempt=2))
        reader.fails = False
        assert comparable(trainer.train(changed(again, attempt=3))) == comparable(was)


def test_weights_of_another_shape(store):
    from curtail_pipeline.training.weights import store_tensors

    digest, _ = store_tensors(store, "scratch/other.safetensors", {"lm_head.weight": torch.zeros(3, 3)})
    order = make_order(store, parent={"key": "scratch/other.safetensors", "sha256": digest})
    with pytest.raises(TrainingError, match="does not fit the model's config"):
        SiteTrainer(store, SITE, EXPERIMENT).train(order)


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "mps"])
def test_a_device_that_is_not_there(store, device):
    site = EXPERIMENT.site(SITE).model_copy(update={"device": device})
    with pytest.raises(TrainingError, match=f"device '{device}' of {SITE}"):
        SiteTrainer(store, site, EXPERIMENT)


def test_an_unknown_site(store):
    with pytest.raises(SettingsError, match="unknown site 'MARS'"):
        SiteTrainer(store, "MARS", EXPERIMENT)
