"""One step of a model: in which types it is computed, and how often the host waits for the device."""

import numpy as np
import pytest
import torch
from torch._inductor.exc import InductorError
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from training_case import make_experiment
from transformers import NanoChatForCausalLM

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.training.devices import evaluation_device, set_computing
from curtail_pipeline.training.learner import Learner
from curtail_pipeline.training.presets import build_model, initialise, model_config

BATCH = np.arange(4 * 17).reshape(4, 17) % 60


def learner(**training):
    settings = make_experiment(**training).training
    model = build_model(model_config(settings, 64))
    initialise(model, 0)
    return Learner(model, settings)


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_what_flows_between_layers_is_of_the_training_type_and_weights_stay_float32(name, dtype):
    ours, seen = learner(dtype=name), set()
    for layer in ours.model.get_submodule("model.layers").children():
        layer.register_forward_hook(lambda _, inputs, output: seen.update({inputs[0].dtype, output.dtype}))
    for _ in range(2):
        ours.step(BATCH, 1.0)
    assert seen == {dtype}
    ours.gradients(torch.from_numpy(BATCH))
    kept = [*ours.model.parameters(), *(p.grad for p in ours.model.parameters()), *ours.optimisers.state().values()]
    assert {t.dtype for t in kept} == {torch.float32}


def test_bfloat16_learns_what_float32_does():
    losses = []
    for dtype in ("float32", "bfloat16"):
        ours = learner(dtype=dtype)
        losses.append([ours.step(BATCH, 1.0) for _ in range(8)])
    assert losses[0][-1] < losses[0][0] - 0.5
    assert losses[1] == pytest.approx(losses[0], abs=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_reads_nothing_of_the_device_but_loss_and_norm(dtype):
    """On fake tensors, which hold no values: whatever is read of them raises."""
    settings = make_experiment(dtype=dtype).training
    with FakeTensorMode():
        ours = Learner(NanoChatForCausalLM(model_config(settings, 64)), settings)
        for _ in range(2):
            found = ours.gradients(torch.zeros(4, 17, dtype=torch.int64))
            assert found.shape == (2,)
            ours.apply(0.5)
        with pytest.raises(DataDependentOutputException):
            float(found[0])


def test_a_machine_without_a_compiler_is_named_in_one_line(monkeypatch):
    ours = learner(compile=True)

    def hidden(_):
        raise InductorError(RuntimeError("Failed to find C compiler.\nPlease specify via CC"), None)

    monkeypatch.setattr(ours.loss, "hidden", hidden)
    with pytest.raises(
        TrainingError, match=r"\(Failed to find C compiler. Please .* CC\); install a C\+\+ compiler"
    ) as told:
        ours.warm_up()
    assert "\n" not in str(told.value)


def test_determinism_and_tf32_are_as_set():
    before = torch.get_num_threads()
    try:
        set_computing(1, make_experiment(deterministic=False, tf32=True).training)
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        set_computing(before, make_experiment().training)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"


def test_held_out_loss_is_measured_on_a_sites_gpu_where_this_machine_has_it(monkeypatch):
    site = make_experiment().sites[0]
    sites = [site.model_copy(update={"device": device}) for device in ("cpu", "cuda:3", "cuda:1")]
    assert evaluation_device(sites) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert evaluation_device(sites) == torch.device("cuda:1")
    assert evaluation_device(sites[:2]) == torch.device("cpu")


def test_muons_momentum_is_that_of_the_step():
    ours, before = learner(), 0.0
    for momentum in (0.85, 0.9):
        ours.gradients(torch.from_numpy(BATCH))
        gradient = ours.model.get_parameter("model.layers.0.mlp.fc2.weight").grad.clone()
        ours.apply(1.0, momentum)
        buffer = ours.optimisers.state()["muon/model.layers.0.mlp.fc2.weight/momentum_buffer"]
        expected = momentum * before + (1 - momentum) * gradient
        torch.testing.assert_close(buffer, expected)
        before = buffer.clone()
