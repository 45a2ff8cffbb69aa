"""The estimate of a training's memory, against what PyTorch holds."""

import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from training_case import SITE, fill_store, make_experiment, make_order
from transformers import NanoChatForCausalLM

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.settings.training_settings import TrainingSettings
from curtail_pipeline.training import devices, loss, memory
from curtail_pipeline.training.learner import Learner
from curtail_pipeline.training.memory import GIB, Fit, activation_bytes, estimate, logit_bytes, require_fit
from curtail_pipeline.training.presets import model_config
from curtail_pipeline.training.trainer import SiteTrainer

VOCABULARY = 320
SHAPES = [
    {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 1, "num_attention_heads": 3},
    {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2},
    {"hidden_size": 96, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3},
]


def training(shape=SHAPES[0], **changes):
    batch = {"sequence_length": 24, "total_batch_tokens": 24 * 12, "device_batch_sequences": 4}
    return make_experiment(model_overrides={**shape, "num_key_value_heads": 1}, **batch, **changes).training


def kept(learner, batch, length):
    """Bytes that autograd keeps of one loss, beside parameters and the head's two gradients."""
    weights = {p.untyped_storage()._cdata for p in learner.model.parameters()}
    stored = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            stored[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        learner.loss(torch.zeros(batch, length + 1, dtype=torch.int64))
    head = learner.model.get_parameter("lm_head.weight")
    wide = 2 if learner._settings.dtype == "bfloat16" else 4
    return sum(size for size, _ in stored.values()) - 4 * head.numel() - wide * batch * length * head.shape[1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_what_autograd_keeps(shape, dtype):
    settings = training(shape, dtype=dtype)
    config = model_config(settings, VOCABULARY)
    with FakeTensorMode():
        found = kept(Learner(NanoChatForCausalLM(config), settings), 4, settings.sequence_length)
    assert found == activation_bytes(config, settings, 4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_activations_of_a_compiled_model_are_what_the_partitioned_graph_keeps():
    settings = training(dtype="bfloat16", compile=True)
    config = model_config(settings, VOCABULARY)
    torch._dynamo.reset()
    learner = Learner(NanoChatForCausalLM(config), settings)
    # inductor's partitioner, without its C++ compiler
    learner.loss.hidden = torch.compile(learner.loss.states, backend="aot_eager_decomp_partition", fullgraph=True)
    assert kept(learner, 4, settings.sequence_length) == activation_bytes(config, settings, 4)


class Held(TorchDispatchMode):
    """The most bytes of tensors that existed at a time."""

    def __init__(self, tensors):
        super().__init__()
        self.now = self.most = 0
        self._known = weakref.WeakSet()
        tree_map_only(torch.Tensor, self._count, list(tensors))

    def _count(self, tensor):
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size):
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **kwargs or {})
        tree_map_only(torch.Tensor, self._count, found)
        return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_of_a_step_is_the_estimates(monkeypatch, dtype):
    monkeypatch.setitem(loss.CHUNK_ELEMENTS, "cpu", 32 * VOCABULARY)
    shape = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = make_experiment(
        model_overrides=shape, sequence_length=128, total_batch_tokens=128 * 8, device_batch_sequences=4, dtype=dtype
    ).training
    config = model_config(settings, VOCABULARY)
    with FakeTensorMode():
        learner = Learner(NanoChatForCausalLM(config), settings)
        with Held(learner.model.parameters()) as held:
            learner.gradients(torch.zeros(4, 129, dtype=torch.int64))
            learner.apply(1.0)
            learner.gradients(torch.zeros(8, 129, dtype=torch.int64))
    expected = estimate(config, settings, "cpu", 4).total
    assert 0.9 * expected < held.most < 1.05 * expected


def test_the_papers_model_fits_an_80_gb_card_at_16_sequences_and_not_at_64():
    settings = TrainingSettings(preset="d20", dtype="bfloat16", compile=True)
    config = model_config(settings, 65_536)
    sizes = [estimate(config, settings, "cuda", batch).total / 1e9 for batch in (16, 64)]
    assert sizes[0] < 75 and sizes[1] > 85


def test_logits_of_a_gpu_that_are_not_fused_take_3_gib_at_the_most():
    """Each is held in bfloat16 and, at times, three times over in float32 or as slopes."""
    settings = TrainingSettings(preset="d20", dtype="bfloat16")
    config = model_config(settings, 65_536)
    weights = (2 * 4 + 2) * 65_536 * config.hidden_size + 2 * 16 * settings.sequence_length * config.hidden_size
    assert logit_bytes(config, settings, "cuda", 16) - weights == 3 << 30


def test_what_does_not_fit_is_refused_with_the_largest_batch_that_does(monkeypatch):
    settings, cpu = training(), torch.device("cpu")
    config = model_config(settings, VOCABULARY)
    sizes = {batch: estimate(config, settings, "cpu", batch).total for batch in (1, 2, 3, 4)}
    for batch in (1, 2, 3):
        monkeypatch.setattr(memory, "capacity", lambda _, room=sizes[batch]: room)
        with pytest.raises(TrainingError, match=rf"_batch_sequences to {batch}, the largest that fits") as refused:
            require_fit(config, settings, cpu)
        assert "\n" not in str(refused.value) and "cpu has 0.00 GiB" in str(refused.value)
    monkeypatch.setattr(memory, "capacity", lambda _: sizes[1] - 1)
    with pytest.raises(TrainingError, match=r"not even one sequence .* smaller training\.preset"):
        require_fit(config, settings, cpu)
    monkeypatch.setattr(memory, "capacity", lambda _: sizes[4])
    assert require_fit(config, settings, cpu) == Fit(estimate(config, settings, "cpu", 4), sharded=False)


def test_a_trainer_refuses_an_order_whose_model_does_not_fit(tmp_path, monkeypatch):
    experiment = make_experiment()
    store = fill_store(tmp_path, experiment)
    monkeypatch.setattr(memory, "capacity", lambda _: 1000)
    with pytest.raises(TrainingError, match="not even one sequence at a time fits"):
        SiteTrainer(store, SITE, experiment).train(make_order(store))
    assert not store.exists(make_order(store).out)


def test_capacity_is_the_machines_or_the_containers(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP_LIMIT", limit)
    whole = memory.capacity(torch.device("cpu"))
    limit.write_text("max\n")
    assert memory.capacity(torch.device("cpu")) == whole > GIB // 8
    limit.write_text("1048576\n")
    assert memory.capacity(torch.device("cpu")) == 1048576


@pytest.mark.parametrize(("device", "count", "fits"), [("cuda", 4, True), ("cuda:1", 4, False), ("cuda:5", 1, False)])
def test_more_devices_than_there_are_are_refused(monkeypatch, device, count, fits):
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 4)
    site = make_experiment().sites[0].model_copy(update={"device": device, "devices": count})
    if fits:
        assert devices.device_of(site) == torch.device(device)
        return
    with pytest.raises(TrainingError, match=rf"device '{device}' of {SITE}.* is not there \(4 CUDA devices\); lower"):
        devices.device_of(site)


def test_what_does_not_fit_whole_is_shared_out(monkeypatch):
    settings = TrainingSettings(preset="d20", dtype="bfloat16", compile=True, device_batch_sequences=8)
    config, gpu = model_config(settings, 65_536), torch.device("cuda", 0)
    alone, whole, share = (estimate(config, settings, "cuda", 8, *way) for way in ((1,), (4,), (4, True)))
    assert alone.parameters == whole.parameters == pytest.approx(4 * share.parameters)
    matrices = alone.parameters // 4 - 2 * config.vocab_size * config.hidden_size
    assert alone.optimiser - whole.optimiser == 3 * matrices  # three quarters of Muon's momenta
    assert share.optimiser == pytest.approx(alone.optimiser / 4)
    assert share.gathered > 0 == whole.gathered and share.total < whole.total

    monkeypatch.setattr(memory, "capacity", lambda _: whole.total)
    assert require_fit(config, settings, gpu, 4) == Fit(whole, sharded=False)
    assert require_fit(config, settings, gpu, 4, "fsdp") == Fit(share, sharded=True)
    monkeypatch.setattr(memory, "capacity", lambda _: share.total)
    assert require_fit(config, settings, gpu, 4) == Fit(share, sharded=True)
    with pytest.raises(TrainingError, match=r"on each of 4 devices \(ddp\), and cuda:0 has"):
        require_fit(config, settings, gpu, 4, "ddp")
    monkeypatch.setattr(memory, "capacity", lambda _: share.total - 1)
    with pytest.raises(TrainingError, match=r"4 devices \(fsdp\).*device_batch_sequences to 4, the largest"):
        require_fit(config, settings, gpu, 4)
