"""Rounds of one site: what they compute, that a replay computes the same bits, and why they end."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_case import (
    SEQUENCE,
    SEQUENCES_PER_STEP,
    SITE,
    WEIGHTS,
    CountingReader,
    changed,
    comparable,
    make_experiment,
    make_order,
    next_order,
    run_rounds,
)
from transformers import AutoModelForCausalLM

from curtail_pipeline.corpus.batches import HeldoutReader, ShardReader
from curtail_pipeline.emissions.meter import Drawn, make_meter
from curtail_pipeline.errors import TrainingError
from curtail_pipeline.federation.orders import (
    Result,
    SharedState,
    SiteTerms,
    WrittenWeights,
)
from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.storage.store import file_sha256
from curtail_pipeline.training.heldout_loss import evaluate
from curtail_pipeline.training.loss import token_losses
from curtail_pipeline.training.retention import snapshot_key
from curtail_pipeline.training.trainer import SiteTrainer

EXPERIMENT = make_experiment()


def test_a_round_says_what_its_counters_measured(store, tmp_path):
    (tmp_path / "intel-rapl:0").mkdir()
    for name, text in (("name", "package-0"), ("energy_uj", "1000000"), ("max_energy_range_uj", "9000000")):
        (tmp_path / "intel-rapl:0" / name).write_text(text)
    meter = make_meter(EXPERIMENT.site(SITE), 4, rapl=tmp_path)

    def draw(progress):
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text(str(10**6 + 10**6 * progress.steps))

    result = SiteTrainer(store, SITE, EXPERIMENT, meter=meter).train(make_order(store), draw)
    assert result.drawn == Drawn(kwh=3 / 4 / 3.6e6, source="25% of RAPL"), "3 J, by one thread of four"
    assert SiteTrainer(store, SITE, EXPERIMENT).train(make_order(store)).drawn is None


def test_a_round(store, vocabulary):
    order, steps = make_order(store), []
    result = SiteTrainer(store, SITE, EXPERIMENT).train(order, steps.append)
    assert result.steps == 3 and result.stop == "steps"
    assert result.tokens == 3 * SEQUENCES_PER_STEP * SEQUENCE
    assert result.consumed == ((1, 0, 3 * SEQUENCES_PER_STEP),)
    assert result.parent_sha256 == order.parent.sha256
    assert result.loss_first == pytest.approx(np.log(vocabulary), abs=1e-5)
    assert result.loss_last < result.loss_first
    assert [s.step for s in steps] == [0, 1, 2] and steps[-1].loss == result.loss_last
    assert result.loss_mean == pytest.approx(np.mean([s.loss for s in steps]))
    weights = store.path(order.out)
    assert result.weights == WrittenWeights(key=order.out, sha256=file_sha256(weights), bytes=weights.stat().st_size)
    begin, end = result.inner_state.begin, result.inner_state.end
    assert begin == "fresh" and f"sha256:{file_sha256(store.path(snapshot_key(SITE, end)))}" == end
    assert Result.read(result.model_dump_json(), "the result") == result


def test_replay_gives_the_same_bits_in_another_trainer(store):
    (_, _), (second, result), (third, last) = run_rounds(store, SiteTrainer(store, SITE, EXPERIMENT), 3)
    assert result.inner_state.begin.startswith("sha256:")
    for order, was in ((second, result), (third, last)):
        again = SiteTrainer(store, SITE, EXPERIMENT).train(changed(order, attempt=1, out="scratch/replay.safetensors"))
        assert again.weights.sha256 == was.weights.sha256
        assert comparable(again.model_copy(update={"weights": was.weights})) == comparable(was)


def test_a_trainer_that_did_other_work_in_between_gives_the_same_bits(store):
    trainer = SiteTrainer(store, SITE, EXPERIMENT)
    (first, a), (second, b) = run_rounds(store, trainer, 2)
    trainer.train(make_order(store, key="ckpt-000009", seed=77, max_steps=5, out="scratch/other.safetensors"))
    assert comparable(trainer.train(second)) == comparable(b)
    assert comparable(trainer.train(first)) == comparable(a)


def test_a_prepared_trainer_does_not_compile_when_its_first_order_comes(store, monkeypatch):
    graphs, phases, compile = [], [], torch.compile

    def keep(graph, _inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda function, **how: compile(function, backend=keep, **how))
    torch._dynamo.reset()
    experiment = make_experiment(compile=True)
    store.write_json("experiment.json", experiment.model_dump(mode="json"))
    trainer = SiteTrainer(store, SITE, experiment)
    trainer.prepare()
    assert len(graphs) == 1
    result = trainer.train(make_order(store), on_phase=phases.append)
    assert phases == ["fetch", "train", "store"] and len(graphs) == 1
    phases.clear()
    torch._dynamo.reset()
    unprepared = SiteTrainer(store, SITE, experiment)
    assert unprepared.train(make_order(store), on_phase=phases.append).weights == result.weights
    assert phases == ["fetch", "compile", "store"] and len(graphs) == 2


def test_inner_state_matters(store):
    _, (second, result) = run_rounds(store, SiteTrainer(store, SITE, EXPERIMENT), 2)
    fresh = SiteTrainer(store, SITE, EXPERIMENT).train(changed(second, inner_state="fresh"))
    assert fresh.weights.sha256 != result.weights.sha256


@pytest.mark.parametrize("change", [{"seed": 6}, {"members": 2}, {"first_step": 90}, {"total_steps": 2}])
def test_what_the_order_says_matters(store, change):
    trainer = SiteTrainer(store, SITE, make_experiment(warmup_steps=20))
    store.write_json("experiment.json", trainer.experiment.model_dump(mode="json"))
    plain, other = trainer.train(make_order(store)), trainer.train(make_order(store, **change))
    assert plain.weights.sha256 != other.weights.sha256


def test_rounds_do_not_depend_on_how_steps_are_divided(store):
    """3 + 3 steps are 6 steps when nothing is merged in between."""
    _, (_, halves) = run_rounds(store, SiteTrainer(store, SITE, EXPERIMENT), 2)
    whole = SiteTrainer(store, SITE, EXPERIMENT).train(make_order(store, max_steps=6, out="scratch/whole.safetensors"))
    assert whole.weights.sha256 == halves.weights.sha256
    assert whole.inner_state.end == halves.inner_state.end


def test_accumulated_gradients_are_those_of_the_whole_batch(store):
    losses = []
    for size in (1, 2, 4):
        experiment = make_experiment(device_batch_sequences=size)
        store.write_json("experiment.json", experiment.model_dump(mode="json"))
        steps = []
        SiteTrainer(store, SITE, experiment).train(make_order(store, max_steps=4), steps.append)
        losses.append([s.loss for s in steps])
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)
    assert losses[1] == pytest.approx(losses[2], rel=1e-4)


def test_a_lease_in_pieces_is_the_same_lease(store):
    trainer = SiteTrainer(store, SITE, EXPERIMENT)
    whole = trainer.train(make_order(store))
    parts = trainer.train(make_order(store, attempt=1, lease=[(1, 0, 5), (1, 5, 6), (1, 6, 200)]))
    assert parts.weights.sha256 == whole.weights.sha256
    assert parts.consumed == ((1, 0, 5), (1, 5, 6), (1, 6, 12))


def test_the_lease_may_pass_into_the_next_epoch(store):
    n = ShardReader(store, SITE, SEQUENCE).n_sequences
    result = SiteTrainer(store, SITE, EXPERIMENT).train(make_order(store, lease=[(1, n - 6, n), (2, 0, n)]))
    assert result.consumed == ((1, n - 6, n), (2, 0, 6))


# Why a round ends


def test_exhausted_lease_leaves_the_partial_batch(store):
    result = SiteTrainer(store, SITE, EXPERIMENT).train(make_order(store, lease=[(1, 0, 11)], max_steps=9))
    assert (result.steps, result.stop, result.consumed) == (2, "exhausted", ((1, 0, 8),))


def test_stop_ends_the_round_after_the_step(store):
    done = []
    result = SiteTrainer(store, SITE, EXPERIMENT).train(
        make_order(store, max_steps=50), done.append, lambda: len(done) == 2
    )
    assert (result.steps, result.stop) == (2, "membership")
    straight = SiteTrainer(store, SITE, EXPERIMENT).train(make_order(store, max_steps=2, out="scratch/two.safetensors"))
    assert straight.weights.sha256 == result.weights.sha256


def test_no_step_at_all_gives_the_parent_back(store):
    trainer = SiteTrainer(store, SITE, EXPERIMENT)
    ((order, first),) = run_rounds(store, trainer, 1)
    for change, stop in (
        ({"max_steps": 0}, "steps"),
        ({"lease": []}, "exhausted"),
        ({"deadline_s": 0.0}, "deadline"),
        ({"lease": [(1, 40, 42)]}, "exhausted"),
    ):
        result = trainer.train(next_order(order, first, **change))
        assert (result.steps, result.tokens, result.consumed, result.stop) == (0, 0, (), stop)
        assert result.weights.sha256 == first.weights.sha256
        assert result.inner_state.end == first.inner_state.end
        assert result.loss_mean is None
    fresh = SiteTrainer(store, SITE, EXPERIMENT).train(make_order(store, max_steps=0))
    assert fresh.weights.sha256 == file_sha256(store.path(WEIGHTS))
    assert (fresh.inner_state.begin, fresh.inner_state.end) == ("fresh", "fresh")


@pytest.mark.parametrize(("deadline", "steps"), [(0.5, 1), (1.0, 1), (5.5, 5), (6.0, 6)])
def test_no_step_runs_over_the_deadline_if_it_takes_as_long_as_the_one_before(store, deadline, steps):
    ticks = iter(range(100))
    trainer = SiteTrainer(store, SITE, EXPERIMENT, clock=lambda: float(next(ticks)))  # a step takes 1 s
    result = trainer.train(make_order(store, deadline_s=deadline, max_steps=20))
    assert (result.steps, result.stop, result.seconds) == (steps, "deadline", steps)
    assert result.tokens_per_s == SEQUENCES_PER_STEP * SEQUENCE


@settings(max_examples=15, deadline=None)
@given(
    lease=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 40), st.integers(1, 13)), max_size=4),
    max_steps=st.integers(0, 6),
    stop_after=st.integers(0, 6),
)
def test_consumed_is_the_prefix_that_was_trained_on(shared, lease, max_steps, stop_after):
    ranges = [(epoch, start, start + size) for epoch, start, size in lease]
    total = sum(size for _, _, size in lease)
    reader, done = CountingReader(), []
    trainer = SiteTrainer(shared, SITE, EXPERIMENT, reader)
    order = make_order(shared, lease=ranges, max_steps=max_steps, out="scratch/prefix.safetensors")
    result = trainer.train(order, done.append, lambda: len(done) >= stop_after)
    steps = min(max_steps, stop_after, total // SEQUENCES_PER_STEP)
    assert result.steps == len(done) == steps
    flat = [(e, i) for e, start, stop in ranges for i in range(start, stop)]
    taken = [(e, i) for e, start, stop in result.consumed for i in range(start, stop)]
    assert taken == flat[: steps * SEQUENCES_PER_STEP]
    assert [i for _, i in taken] == [i for rows in reader.read[:steps] for i in rows]


def test_learning_rates_follow_the_members_of_the_round(store):
    def weights(members, power, factor=1.0):
        rates = {name: getattr(EXPERIMENT.training, name) * factor for name in
                 ("matrix_lr", "embedding_lr", "unembedding_lr")}  # fmt: skip
        changes = {
            "rounds": EXPERIMENT.rounds.model_copy(update={"member_lr_power": power}),
            "training": EXPERIMENT.training.model_copy(update=rates),
        }
        experiment = EXPERIMENT.model_copy(update=changes)
        store.write_record("experiment.json", experiment)
        return SiteTrainer(store, SITE, experiment).train(make_order(store, members=members)).weights.sha256

    assert weights(1, 0.5) == weights(1, 0.0)
    assert weights(4, 0.5) == weights(4, 0.0, factor=2.0) != weights(4, 0.0)


def merged_orders(store):
    """An order whose inner state is merged after it, and the one after it, with its own state as the merged one."""
    first = make_order(store, shared=SharedState(name="fresh"), inner_out="scratch/r0/inner/NEM_SA.safetensors")
    result = SiteTrainer(store, SITE, EXPERIMENT).train(first)
    shared = SharedState(name=result.inner_state.end, key=first.inner_out)
    return first, next_order(first, result, shared=shared, inner_out="scratch/r1/inner/NEM_SA.safetensors")


def test_a_merged_state_is_read_where_the_order_says_and_left_there(store):
    wanted = run_rounds(store, SiteTrainer(store, SITE, EXPERIMENT), 2)
    store.delete("inner_state")
    _, second = merged_orders(store)
    result = SiteTrainer(store, SITE, EXPERIMENT).train(second)
    assert (result.weights.sha256, result.inner_state) == (wanted[1][1].weights.sha256, wanted[1][1].inner_state)
    assert store.list("inner_state") == [], "no snapshot of the site's own"
    assert f"sha256:{store.digest(second.inner_out).sha256}" == result.inner_state.end
    joiner = SiteTrainer(store, SITE, EXPERIMENT)
    cold = joiner.train(changed(second, inner_state="fresh", shared=SharedState(name="fresh")))
    assert cold.weights != result.weights, "who joins begins warm"


def test_a_lost_merged_state_is_handled_as_the_terms_say(store, caplog):
    first, second = merged_orders(store)
    store.delete(first.inner_out)
    anew = SiteTrainer(store, SITE, EXPERIMENT).train(second)
    assert anew.inner_state.begin == "fresh" and f"{SITE} starts fresh: the merged inner state sha256:" in caplog.text
    for strict in (changed(second, terms=SiteTerms(lost_state="refuse")), changed(second, replay="again")):
        with pytest.raises(TrainingError, match=r"the merged inner state sha256:.* cannot be had"):
            SiteTrainer(store, SITE, EXPERIMENT).train(strict)


def test_a_site_that_came_later_trains_on_text_of_another(store):
    """And a trainer that was started before goes on."""
    before = SiteTrainer(store, SITE, EXPERIMENT)
    settings = EXPERIMENT.model_dump(mode="json")
    settings["sites"].append({**settings["sites"][0], "name": "LATER", "threads": 2})
    store.write_json("experiment.json", settings)
    order = make_order(store, lease=[(1, 0, 40, SITE)])
    mine = before.train(changed(order, lease=[(1, 0, 40)]))
    theirs = SiteTrainer(store, "LATER", parse_experiment(settings, "changed")).train(
        changed(order, site="LATER", out="scratch/later.safetensors", terms={"made_with": mine.made_with})
    )
    assert theirs.steps == mine.steps == 3 and theirs.loss_first == pytest.approx(mine.loss_first, rel=1e-5)
    assert theirs.consumed == ((1, 0, 12, SITE),)


def test_retention_spares_the_running_segment(store):
    experiment = make_experiment(keep_inner_states=1)
    store.write_json("experiment.json", experiment.model_dump(mode="json"))
    trainer = SiteTrainer(store, SITE, experiment)
    rounds = run_rounds(store, trainer, 4, max_steps=1)
    assert len(store.list(f"inner_state/{SITE}")) == 4
    order = next_order(*rounds[-1], key="ckpt-000002", round=0)
    end = trainer.train(order).inner_state.end
    # Nothing of the earlier segment is committed: only what the running one needs is left.
    left = {f"sha256:{name.removesuffix('.safetensors')}" for name in store.list(f"inner_state/{SITE}")}
    assert left == {order.inner_state, end}


def test_evaluation_of_a_folder(store, tmp_path, vocabulary):
    heldout = HeldoutReader(store, SEQUENCE)
    folder = store.path("checkpoints/ckpt-000000")
    found = evaluate(folder, heldout, max_sequences=9, batch_sequences=4)
    assert found.loss == pytest.approx(np.log(vocabulary), abs=1e-5)
    assert found.perplexity == pytest.approx(vocabulary, rel=1e-4)
    assert found.bits_per_byte == pytest.approx(np.log2(vocabulary) / heldout.bytes_per_token, rel=1e-5)
    assert found.tokens == 9 * SEQUENCE
    model = AutoModelForCausalLM.from_pretrained(folder)
    batches = [torch.from_numpy(batch) for batch in heldout.batches(4, 9)]
    assert found.loss == sum(float(token_losses(model, b).double().sum()) for b in batches) / found.tokens
    result = SiteTrainer(store, SITE, EXPERIMENT).train(make_order(store, max_steps=40))
    shutil.copyfile(store.path(result.weights.key), folder / "model.safetensors")
    assert evaluate(folder, heldout).loss < found.loss - 1
    with pytest.raises(TrainingError, match="not a checkpoint that transformers can load"):
        evaluate(tmp_path / "none", heldout)
    with pytest.raises(TrainingError, match="no held-out sequences"):
        evaluate(folder, heldout, max_sequences=0)
