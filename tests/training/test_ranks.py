"""A model over two processes: what one process computes, to rounding, and the same bits each time."""

import math

import numpy as np
import pytest
import torch
from training_case import SITE, make_experiment

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.training import devices
from curtail_pipeline.training.leading_ranks import LeadingRanks
from curtail_pipeline.training.learner import Diverged, Learner
from curtail_pipeline.training.presets import build_model, initialise, model_config
from curtail_pipeline.training.sharding import Sharded
from curtail_pipeline.training.site_learner import build_learner

EXPERIMENT = make_experiment(total_batch_tokens=16 * 12, device_batch_sequences=2, weight_decay=0.1)
SETTINGS = EXPERIMENT.training
CONFIG = model_config(SETTINGS, 64)
CPU = torch.device("cpu")
BATCHES = np.random.default_rng(0).integers(64, size=(5, 12, 17))


def start():
    model = build_model(CONFIG)
    initialise(model, 3)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def ranks():
    threads = torch.get_num_threads()
    devices.set_computing(1, SETTINGS)
    ranks = LeadingRanks([CPU, CPU])
    yield ranks
    devices.set_computing(threads, SETTINGS)
    ranks.close()
    assert [child.process.returncode for child in ranks._children] == [0]


def over(ranks, parallel):
    site = EXPERIMENT.site(SITE).model_copy(update={"devices": 2, "parallel": parallel})
    return build_learner(CONFIG.to_json_string().encode(), "config", SETTINGS, site, [CPU, CPU], ranks)


def walk(learner, batches=BATCHES):
    return [learner.step(batch, 1.0, 0.9) for batch in batches]


def ended(learner):
    return {**learner.weights(), **learner.state()}


def copied(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_do_what_one_process_does(ranks, parallel):
    alone = Learner(build_model(CONFIG), SETTINGS)
    alone.load_weights(start(), "start")
    losses = walk(alone)
    one, moved = ended(alone), start()

    two = over(ranks, parallel)
    assert isinstance(two._spread, Sharded) == (parallel == "fsdp")
    shares = [param for param in two.model.parameters() if param.device.type == "cpu"]
    held = sum(param.numel() if parallel == "ddp" else param.to_local().numel() for param in shares)
    whole = sum(tensor.numel() for tensor in moved.values())
    assert held == whole if parallel == "ddp" else held < 0.6 * whole

    two.load_weights(start(), "start")
    two.reset()
    assert walk(two) == pytest.approx(losses, rel=1e-5)
    momenta = [name for name in one if name.startswith("muon/")]
    assert len(two.optimisers._muon.state) == len(momenta) // 2
    first = copied(ended(two))
    assert first.keys() == one.keys()
    for name, tensor in one.items():
        scale = (tensor - moved[name]).abs().max() if name in moved else tensor.abs().max()
        assert (first[name] - tensor).abs().max() <= 1e-3 * scale, name

    again = over(ranks, parallel)  # built anew in the same processes
    again.load_weights(start(), "start")
    walk(again, BATCHES[:3])
    weights, state = copied(again.weights()), copied(again.state())
    walk(again, BATCHES[:2])  # away from there, and back
    again.load_weights(weights, "three steps")
    again.load_state(state, "three steps")
    walk(again, BATCHES[3:])
    assert all(torch.equal(first[name], tensor) for name, tensor in ended(again).items())


@pytest.mark.slow
def test_what_one_rank_refuses_all_refuse_and_go_on(ranks):
    two = over(ranks, "ddp")
    two.load_weights(start(), "start")
    before = copied(two.weights())
    spoilt = {name: tensor * float("nan") for name, tensor in start().items()}
    two.load_weights(spoilt, "spoilt")
    with pytest.raises(Diverged, match="diverged: loss nan"):
        two.step(BATCHES[0], 1.0)
    with pytest.raises(TrainingError, match="other does not fit the model's config"):
        two.load_weights({"lm_head.weight": torch.zeros(3, 3)}, "other")
    with pytest.raises(TrainingError, match="other is not an optimiser state of this model"):
        two.load_state({"adamw/x/step": torch.zeros(())}, "other")
    two.load_weights(before, "start")
    two.reset()
    assert walk(two)[0] == pytest.approx(math.log(64))


def test_devices_that_cannot_train_together_are_refused(monkeypatch):
    site = EXPERIMENT.site(SITE)

    def given(**changes):
        return devices.devices_of(site.model_copy(update=changes), 12)

    monkeypatch.setattr(devices.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 4)
    assert given() == [CPU]
    assert given(devices=4) == [CPU] * 4
    assert given(devices=3, device="cuda:1") == [torch.device("cuda", number) for number in (1, 2, 3)]
    with pytest.raises(TrainingError, match=rf"devices 5 of {SITE} do not divide the 12 sequences of a step"):
        given(devices=5)
    with pytest.raises(TrainingError, match=rf"devices 6 of {SITE} are more processes than .* \(4\); lower devices"):
        given(devices=6)
