"""Attention is causal without a mask, compiled or not, and computes what transformers' own does."""

import pytest
import torch
from torch.nn import functional
from training_case import make_experiment

from curtail_pipeline.training.attention import fix_positions, use_causal_attention
from curtail_pipeline.training.presets import build_model, initialise, model_config

TOKENS = torch.arange(3 * 8).reshape(3, 8) % 64


def small_model(**overrides):
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, **overrides}
    model = build_model(model_config(make_experiment(model_overrides=shape).training, 64)).train()
    initialise(model, 0)
    for parameter in model.parameters():  # the projections start at zero, and attention would not be seen
        parameter.data.add_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
    return model


def gradients(model):
    hidden = model.model(input_ids=TOKENS, use_cache=False).last_hidden_state
    hidden.square().mean().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"": hidden.detach(), **found}


@pytest.mark.parametrize("key_heads", [2, 1])
def test_the_bits_are_those_of_transformers_own(key_heads):
    theirs, ours = (small_model(num_key_value_heads=key_heads) for _ in range(2))
    use_causal_attention(ours)
    fix_positions(ours, 8, torch.float32, torch.device("cpu"))
    assert theirs.config._attn_implementation == "sdpa" != ours.config._attn_implementation
    expected = gradients(theirs)
    assert all(torch.equal(expected[name], found) for name, found in gradients(ours).items())


def traced(model):
    """The graph that `torch.compile` makes of the whole model, and its last hidden states."""
    graphs = []

    def keep(graph, _inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    found = torch.compile(model.model, backend=keep, fullgraph=True)(input_ids=TOKENS, use_cache=False)
    (graph,) = graphs
    return graph, found.last_hidden_state


def test_a_compiled_model_attends_causally_without_a_mask():
    model = small_model()
    use_causal_attention(model)
    expected = gradients(model)
    model.zero_grad()
    graph, hidden = traced(model)
    assert torch.equal(hidden.detach(), expected[""])
    calls = [node for node in graph.graph.nodes if node.target is functional.scaled_dot_product_attention]
    assert len(calls) == 2
    for call in calls:
        assert call.kwargs["is_causal"] is True
        assert len(call.args) == 3 and call.kwargs.get("attn_mask") is None


def test_rotary_factors_are_no_part_of_a_compiled_models_work():
    model = small_model()
    use_causal_attention(model)
    fix_positions(model, 8, torch.float32, torch.device("cpu"))
    graph, _ = traced(model)
    called = {node.target for node in graph.graph.nodes if node.op.startswith("call")}
    assert functional.scaled_dot_product_attention in called
    assert not called & {"cos", "sin", torch.cos, torch.sin}
    assert [name for name in model.state_dict() if "rotary" in name] == []
