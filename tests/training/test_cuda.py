"""What only a GPU can show: bits, kernels, memory, synchronisation and ranks of a training on one."""

import time
import warnings

import numpy as np
import pytest
import torch
from test_unfinished import Killed
from torch.profiler import ProfilerActivity, profile
from training_case import SITE, changed, comparable, make_experiment, make_order, next_order

from curtail_pipeline.corpus.tokenizer import save_tokenizer, train_bpe
from curtail_pipeline.errors import TrainingError
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.training import unfinished
from curtail_pipeline.training.devices import set_computing
from curtail_pipeline.training.heldout_loss import evaluate
from curtail_pipeline.training.learner import make_learner
from curtail_pipeline.training.memory import estimate, require_fit
from curtail_pipeline.training.presets import build_model, init_checkpoint, initialise, model_config
from curtail_pipeline.training.ranks import GroupRanks, Ranks
from curtail_pipeline.training.sharding import Sharded, local, share_of
from curtail_pipeline.training.trainer import SiteTrainer

DEVICE = torch.device("cuda", 0)
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.slow,
    # What torch says of its own kernels is no fault of ours.
    pytest.mark.filterwarnings("default"),
]

VOCABULARY = 512
LENGTH, SEQUENCES = 128, 8
SHAPE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 2}


def case(compiled=True, **training):
    settings = {
        "model_overrides": {**SHAPE, "vocab_size": VOCABULARY},
        "sequence_length": LENGTH,
        "device_batch_sequences": SEQUENCES // 2,
        "total_batch_tokens": SEQUENCES * LENGTH,
        "dtype": "bfloat16",
        "compile": compiled,
        **training,
    }
    experiment = make_experiment(**settings)
    site = experiment.sites[0].model_copy(update={"device": str(DEVICE)})
    return experiment.model_copy(update={"sites": [site]})


class Reader:
    """Sequences drawn by the lease's own numbers."""

    def batches(self, ranges, sequences_per_batch, seed):
        rows = [row for _, start, stop in ranges for row in range(start, stop)]
        for at in range(0, len(rows), sequences_per_batch):
            yield np.stack([sequence(row) for row in rows[at : at + sequences_per_batch]])


def sequence(number):
    return np.random.default_rng(number).integers(VOCABULARY // 4, size=LENGTH + 1).astype(np.uint16)


BATCHES = [np.stack([sequence(100 * step + row) for row in range(SEQUENCES)]) for step in range(6)]


def filled(root, experiment):
    store = FolderStore(root / "store")
    save_tokenizer(train_bpe(["text"], VOCABULARY, "<|bos|>"), root / "tokenizer", "<|bos|>")
    store.write_json("experiment.json", experiment.model_dump(mode="json"))
    init_checkpoint(experiment.training, root / "tokenizer", store.path("checkpoints/ckpt-000000"), experiment.seed)
    return store


@pytest.fixture
def store(tmp_path):
    return filled(tmp_path, case())


def trainer_of(store, **settings):
    return SiteTrainer(store, SITE, case(), Reader(), **settings)


def learner(experiment=None, ranks=None, sharded=False):
    """One with the initial weights, whatever it is spread over."""
    settings = (experiment or case()).training
    set_computing(1, settings)
    config = model_config(settings, VOCABULARY)
    start = build_model(config)
    initialise(start, 3)
    with torch.no_grad():  # projections that are zero would hide what comes before them
        for parameter in start.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    found = make_learner(config, settings, ranks or Ranks(DEVICE), sharded)
    with torch.no_grad():
        for name, tensor in found.model.state_dict().items():
            local(tensor).copy_(share_of(start.state_dict()[name].to(DEVICE), tensor))
    return found


def walk(learner):
    return [learner.step(batch, 1.0) for batch in BATCHES]


def test_a_replayed_round_has_the_same_bits_and_so_has_the_next(store):
    ended = []
    for _ in range(2):
        trainer, order = trainer_of(store), make_order(store)
        first = trainer.train(order)
        second = trainer.train(next_order(order, first))
        ended.append((comparable(first), comparable(second)))
    assert ended[0] == ended[1]
    assert ended[0][0]["loss_last"] < ended[0][0]["loss_first"]


def test_a_killed_round_goes_on_from_its_snapshot_to_the_same_bits(store, monkeypatch):
    order, now = make_order(store, max_steps=6), [0.0]

    def ticking():
        now[0] += 300.0  # seconds: a snapshot is due after every second step
        return now[0]

    wanted = trainer_of(store).train(order)
    dying = trainer_of(store, clock=ticking)

    def kill(told):
        if dying._unfinished._writer is not None:
            dying._unfinished._writer.join()
        if told.steps == 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(unfinished.UnfinishedRounds, "end", lambda _: None)
        with pytest.raises(Killed):
            dying.train(order, kill)
    told = []
    again = trainer_of(store).train(changed(order, attempt=1), told.append)
    assert 1 < told[0].steps < 6 and told[-1].steps == 6
    assert comparable(again) == comparable(wanted)


def test_compiled_is_eager_to_rounding():
    eager, compiled = walk(learner(case(compiled=False))), walk(learner())
    assert eager[-1] < eager[0]
    assert compiled == pytest.approx(eager, abs=0.01)


def kernels(learner):
    tokens = torch.from_numpy(BATCHES[0].astype(np.int64)).to(DEVICE)
    learner.gradients(tokens)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        learner.gradients(tokens)
        torch.cuda.synchronize()
    return [event.key.lower() for event in seen.key_averages()]


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_attention_is_a_flash_kernel(compiled, deterministic):
    found = kernels(learner(case(compiled=compiled, deterministic=deterministic)))
    flash = [name for name in found if "flash" in name or ("cudnn" in name and "sdpa" in name)]
    assert any("bwd" in name or "bprop" in name for name in flash), found
    assert any("fwd" in name or "fprop" in name for name in flash), found
    assert not any("fmha_cutlass" in name or "softmax_warp" in name for name in found)


def test_the_host_waits_for_the_device_once_in_a_step():
    trained = learner()
    walk(trained)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trained.step(BATCHES[0], 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(each.message) for each in said if "synchronizing" in str(each.message)]
    assert len(waits) == 1, waits


class Held:
    bytes_per_token = 4.0

    def batches(self, sequences_per_batch, max_sequences=None):
        yield from (batch.astype(np.int64) for batch in BATCHES)


def test_held_out_loss_is_the_cpus_to_rounding_and_repeats(store):
    folder = store.path("checkpoints/ckpt-000000")
    cpu = evaluate(folder, Held())
    gpu, again = (evaluate(folder, Held(), device=str(DEVICE)) for _ in range(2))
    assert gpu == again and gpu.tokens == cpu.tokens
    assert gpu.loss == pytest.approx(cpu.loss, abs=1e-4)


@pytest.mark.parametrize("compiled", [True, False])
def test_memory_is_as_estimated(compiled):
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 4}
    settings = case(
        compiled=compiled,
        model_overrides={**shape, "vocab_size": 8192},
        sequence_length=1024,
        device_batch_sequences=16,
        total_batch_tokens=32 * 1024,
    ).training
    set_computing(1, settings)
    config = model_config(settings, 8192)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    trained = make_learner(config, settings, Ranks(DEVICE), False)
    trained.warm_up()
    torch.cuda.reset_peak_memory_stats()
    trained.step(np.random.default_rng(0).integers(8192, size=(32, 1025)), 1.0)
    ratio = (torch.cuda.max_memory_allocated() - before) / estimate(config, settings, "cuda", 16).total
    assert 0.75 < ratio < 1.15, ratio


def test_a_model_that_does_not_fit_is_refused_with_the_batch_that_does():
    settings = make_experiment(
        preset="d20", model_overrides={}, sequence_length=2048, device_batch_sequences=512,
        total_batch_tokens=512 * 2048, dtype="bfloat16", compile=True,
    ).training  # fmt: skip
    with pytest.raises(TrainingError, match=r"device_batch_sequences to \d+, the largest that fits") as refused:
        require_fit(model_config(settings, 65_536), settings, DEVICE)
    assert "\n" not in str(refused.value)


def test_the_first_step_of_a_prepared_trainer_comes_within_three_seconds(store):
    ahead, ends = trainer_of(store), []
    ahead.prepare()
    begin = time.monotonic()
    ahead.train(make_order(store), lambda _: ends.append(time.monotonic()))
    assert ends[0] - begin < 3


@pytest.mark.parametrize("sharded", [False, True])
def test_a_group_of_one_computes_what_one_process_does(tmp_path, sharded):
    exact = case(dtype="float32", compiled=False)
    losses = walk(learner(exact))
    ranks = GroupRanks(DEVICE, 0, 1, tmp_path)
    try:
        group = learner(exact, ranks, sharded)
        assert isinstance(group._spread, Sharded) == sharded
        assert walk(group) == pytest.approx(losses, abs=1e-3)
    finally:
        ranks.close()
