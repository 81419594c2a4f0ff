"""Every saving that is switched off gives the same endpoint, and costs what the saving saves."""

import pytest
import torch

from modeling_yan.evaluation.ablation import SAVINGS, solve_without
from modeling_yan.sampling_yan import SamplingOptions

from ..helpers import seeded, tiny_model


@pytest.mark.parametrize("without", [(), *((name,) for name in SAVINGS), tuple(SAVINGS)])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_endpoint_stays_and_the_work_does_not(without, solver):
    model = tiny_model(prediction_type="data")
    generator = seeded()
    x_0, source = (torch.randn(2, n, 16, generator=generator) for n in (6, 5))
    uniform, options = torch.rand(2, 6, generator=generator), SamplingOptions(solver=solver)
    condition = model.model.condition(6, None, source, None)
    with torch.no_grad():
        expected = model.solve(x_0, condition, uniform, options)
    calls = {"trunk": 0, "source": 0, "time": 0}
    layer = model.model.flow.layers[0]

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    layer.register_forward_hook(count("trunk"))
    layer.cross_attention.k_proj.register_forward_hook(count("source"))
    layer.modulation.register_forward_hook(count("time"))
    torch.testing.assert_close(
        solve_without(model, x_0, source, uniform, options, without), expected, atol=1e-5, rtol=1e-5
    )
    evaluations = 3 if solver == "euler" else 6
    passes = evaluations + ("shared_pass" in without)
    assert calls["trunk"] == passes
    assert calls["source"] == 1 + passes * ("source_cache" in without)
    assert calls["time"] == 1 + passes * ("time_table" in without)


def test_unknown_savings_are_refused():
    states = torch.zeros(1, 2, 16)
    with pytest.raises(ValueError, match="'speed'"):
        solve_without(tiny_model(), states, states, torch.zeros(1, 2), SamplingOptions(), ("speed",))
