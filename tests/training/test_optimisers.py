"""Optimisers and their state, the head's loss, and tensors on disk."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional
from training_case import SITE, make_experiment

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.federation.inner_states import ROOTS, SiteInner, merge_states, unusable
from curtail_pipeline.federation.state_file import write_state
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.training import loss
from curtail_pipeline.training.optimisers import BETAS, Muon, Optimisers
from curtail_pipeline.training.presets import build_model, initialise, model_config
from curtail_pipeline.training.retention import snapshot_key
from curtail_pipeline.training.snapshots import load_snapshot, save_snapshot
from curtail_pipeline.training.weights import write_tensors


def small_model(seed=0):
    model = build_model(model_config(make_experiment().training, 64))
    initialise(model, seed)
    return model


def walk(model, optimisers, steps, seed=0):
    """Steps with made-up gradients; the weights after each."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimisers.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)])
def test_muon_is_torchs_but_for_bfloat16(shape):
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    rates = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    a, b = Muon([ours], **rates), torch.optim.Muon([theirs], **rates)
    for _ in range(5):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    moved = (theirs - start).norm().item()
    assert moved > 0.05
    assert (ours - theirs).norm().item() < 0.02 * moved
    assert torch.equal(a.state[ours]["momentum_buffer"], b.state[theirs]["momentum_buffer"])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_matrices_stepped_together_step_as_each_alone_would(dtype, tolerance):
    generator = torch.Generator().manual_seed(2)
    for shape in ((24, 24), (48, 16), (16, 48)):
        start = [torch.randn(shape, generator=generator) for _ in range(3)]
        alone, together = ([torch.nn.Parameter(t.clone()) for t in start] for _ in range(2))
        rates = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
        a, b = (torch.optim.Muon if dtype == torch.bfloat16 else Muon)(alone, **rates), Muon(together, **rates)
        for _ in range(3):
            for p, q in zip(alone, together, strict=True):
                p.grad = torch.randn(shape, generator=generator)
                q.grad = p.grad.clone()
            a.step()
            b.step_shape(together, b.param_groups[0], dtype)
        for p, q, was in zip(alone, together, start, strict=True):
            assert (p - q).norm() < tolerance * (p - was).norm()
            torch.testing.assert_close(a.state[p]["momentum_buffer"], b.state[q]["momentum_buffer"])


def test_matrices_that_are_not_on_a_cpu_are_stepped_shape_by_shape(monkeypatch):
    matrices = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in ((4, 8), (8, 4), (4, 8), (4, 4))]
    stepped = []
    monkeypatch.setattr(Muon, "step_shape", lambda _, group, settings, dtype: stepped.append([p.shape for p in group]))
    Muon(matrices, lr=0.1).step()
    assert stepped == [[(4, 8), (4, 8)], [(8, 4)], [(4, 4)]]


def test_every_parameter_has_one_optimiser():
    model = small_model()
    optimisers = Optimisers(model, make_experiment().training)
    walk(model, optimisers, 1)
    names = {key.split("/")[1] for key in optimisers.state()}
    assert names == {name for name, _ in model.named_parameters()}
    by_adamw = {key.split("/")[1] for key in optimisers.state() if key.startswith("adamw/")}
    assert by_adamw == {"lm_head.weight", "model.embed_tokens.weight"}


def test_state_survives_the_disk_to_the_bit(tmp_path):
    training, store = make_experiment().training, FolderStore(tmp_path)
    model = small_model()
    optimisers = Optimisers(model, training)
    assert optimisers.state() == {}
    assert save_snapshot(store, SITE, optimisers.state()) == "fresh"
    half = walk(model, optimisers, 3)
    name = save_snapshot(store, SITE, optimisers.state())
    straight = walk(model, optimisers, 2, seed=1)

    other = small_model(seed=9)
    for key, parameter in other.named_parameters():
        parameter.data.copy_(half[key])
    resumed = Optimisers(other, training)
    state = load_snapshot(store, SITE, name)
    resumed.check(state, name)
    resumed.load(state)
    assert save_snapshot(store, SITE, resumed.state()) == name
    again = walk(other, resumed, 2, seed=1)
    assert all(torch.equal(straight[key], again[key]) for key in straight)

    resumed.reset()
    assert resumed.state() == {}


def test_multiplier_scales_every_rate():
    training = make_experiment().training
    still = small_model()
    before = {name: p.detach().clone() for name, p in still.named_parameters()}
    optimisers = Optimisers(still, training)
    optimisers.set_multiplier(0.0)
    assert all(torch.equal(before[name], p) for name, p in walk(still, optimisers, 2).items())
    optimisers.set_multiplier(1.0)
    assert not any(torch.equal(before[name], p) for name, p in walk(still, optimisers, 1).items())


def test_a_state_of_another_model_is_refused():
    wide = make_experiment(model_overrides={"hidden_size": 64}).training
    other = build_model(model_config(wide, 64))
    initialise(other, 0)
    foreign = Optimisers(other, wide)
    walk(other, foreign, 1)
    with pytest.raises(TrainingError, match="sha256:abc is not an optimiser state of this model"):
        Optimisers(small_model(), make_experiment().training).check(foreign.state(), "sha256:abc")


def test_a_damaged_or_missing_snapshot_is_refused(tmp_path):
    store = FolderStore(tmp_path)
    name = save_snapshot(store, SITE, {"a": torch.arange(100.0)})
    path = store.path(snapshot_key(SITE, name))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(TrainingError, match="is corrupt"):
        load_snapshot(store, SITE, name)
    path.unlink()
    with pytest.raises(TrainingError, match=r"pruned under training\.keep_inner_states"):
        load_snapshot(store, SITE, name)


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 70),
    vocabulary=st.integers(2, 90),
    cap=st.sampled_from([None, 2.0, 15.0]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_head_loss_and_gradients_are_those_of_cross_entropy(tokens, vocabulary, cap, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(tokens, 8, generator=generator) * scale).requires_grad_()
    weight = torch.randn(vocabulary, 8, generator=generator).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:  # several chunks, the last one shorter
        patch.setitem(loss.CHUNK_ELEMENTS, "cpu", 16 * vocabulary)
        ours = loss.head_loss(hidden, weight, targets, cap)
        (ours * 0.5).backward()
    found = [hidden.grad.clone(), weight.grad.clone()]
    hidden.grad = weight.grad = None

    exact = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    logits = exact[0] @ exact[1].T
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    theirs = functional.cross_entropy(logits, targets, reduction="sum")
    (theirs * 0.5).backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4, abs=1e-4)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.double(), b.grad, rtol=2e-3, atol=2e-4 * max(1.0, b.grad.abs().max().item()))


def test_token_losses_are_hugging_faces():
    model = small_model()
    model.lm_head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    model.eval()
    tokens = torch.randint(64, (3, 11), generator=torch.Generator().manual_seed(0))
    ours = loss.token_losses(model, tokens)
    assert ours.shape == (3, 10)
    assert ours.mean().item() == pytest.approx(model(input_ids=tokens, labels=tokens).loss.item(), rel=1e-5)


def test_head_loss_in_bfloat16_is_near():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(40, 16, generator=generator), torch.randn(30, 16, generator=generator)
    targets = torch.randint(30, (40,), generator=generator)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        h, w = hidden.to(dtype, copy=True).requires_grad_(), weight.clone().requires_grad_()
        total = loss.head_loss(h, w, targets, 15.0)
        total.backward()
        assert h.grad.dtype == dtype and w.grad.dtype == torch.float32
        found.append((total.item(), h.grad.float(), w.grad))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-2)
    for a, b in zip(found[0][1:], found[1][1:], strict=True):
        assert (a - b).norm() < 0.03 * a.norm()


@given(
    rounds=st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=2), min_size=1, max_size=3),
    scales=st.lists(st.sampled_from([0.0, 1e-25, 1e-12, 1e-3, 1.0, 1e6]), min_size=1, max_size=4),
    same=st.booleans(),
)
@settings(max_examples=6, deadline=None)
def test_what_clipped_gradients_leave_is_never_refused(tmp_path_factory, rounds, scales, same):
    """Unequal steps, gradients that vanish, explode or always point one way, states averaged between rounds."""
    folder, model = tmp_path_factory.mktemp("states"), small_model()
    write_tensors(folder / "weights", model.state_dict())
    optimisers, shared, drawn = Optimisers(model, make_experiment().training), None, 0
    for steps in rounds:
        left = []
        for site, count in zip("AB", steps, strict=True):
            optimisers.reset() if shared is None else optimisers.load(shared)
            for _ in range(count):
                generator = torch.Generator().manual_seed(0 if same else drawn)
                for parameter in model.parameters():
                    parameter.grad = torch.randn(parameter.shape, generator=generator) * scales[drawn % len(scales)]
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimisers.set_momentum((0.85, 0.95)[drawn % 2])
                optimisers.step()
                drawn += 1
            path = folder / site
            left.append(SiteInner(site, path, write_tensors(path, optimisers.state())))
            values = {name: tensor.numpy() for name, tensor in optimisers.state().items()}
            for codec in ("bf16", "int8", "int4", "int2"):
                coded = SiteInner(site, folder / codec, write_state(folder / codec, codec, values).sha256, codec)
                assert unusable([coded], folder / "weights", grad_clip=1.0) == {}
        assert unusable(left, folder / "weights", grad_clip=1.0) == {}
        merged = merge_states(left, {"A": 0.3, "B": 0.7}, folder / "merged")
        assert unusable([SiteInner("A", folder / "merged", merged.sha256)], folder / "weights", grad_clip=1.0) == {}
        shared = load_file(folder / "merged")


def test_the_bound_on_a_mean_is_that_of_these_betas():
    first, second = BETAS
    assert pytest.approx(2 * (1 - first) / ((1 - second) * (1 - first**2 / second)) ** 0.5, rel=0.05) == ROOTS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("dtype", "cap", "near"), [(torch.float32, None, 1e-5), (torch.bfloat16, 15.0, 0.02)])
def test_the_fused_head_loss_is_the_plain_one(monkeypatch, dtype, cap, near):
    vocabulary, tokens = 192, 32
    monkeypatch.setitem(loss.CHUNK_ELEMENTS, "cpu", 16 * vocabulary)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(tokens, 16, generator=generator), torch.randn(vocabulary, 16, generator=generator)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    found = []
    torch._dynamo.reset()
    for fused in (False, True):
        h, w = hidden.to(dtype, copy=True).requires_grad_(), weight.clone().requires_grad_()
        total = loss.head_loss(h, w, targets, cap, fused)
        (total * 0.5).backward()
        found.append((total.detach(), h.grad.float(), w.grad))
    for plain, other in zip(*found, strict=True):
        assert (plain - other).norm() <= near * plain.norm()


def test_the_head_is_fused_on_a_gpu_alone_and_only_where_the_model_is_compiled(monkeypatch):
    asked = []
    monkeypatch.setattr(loss, "head_loss", lambda hidden, weight, targets, cap, fused: asked.append(fused))
    for compiled in (False, True):
        module = loss.TokenLoss(small_model(), torch.float32, compiled)
        module.hidden = lambda ids: torch.zeros(*ids.shape, 32, device=ids.device)
        module(torch.zeros(1, 5, dtype=torch.int64))
        module.to("meta")(torch.zeros(1, 5, dtype=torch.int64, device="meta"))
    assert asked == [False, False, False, True]
