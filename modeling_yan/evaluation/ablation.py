"""Generation's exact savings, each switched off alone: the same numbers, more work."""

import torch

from modeling_yan import YanForConditionalGeneration
from modeling_yan.flow_matching_yan import evaluation_times, solve_mixture_ode, time_grid
from modeling_yan.sampling_yan import SamplingOptions
from modeling_yan.velocity_field_yan import TokenRouting, route_tokens

SAVINGS = {
    "shared_pass": "the gate and the first step share a trunk pass",
    "chosen_expert": "only each token's own expert is computed",
    "source_cache": "keys and values of the source are projected once",
    "time_table": "scales and shifts of all times are computed once",
}


@torch.no_grad()
def solve_without(
    model: YanForConditionalGeneration,
    x_0: torch.Tensor,
    source: torch.Tensor,
    uniform: torch.Tensor,
    options: SamplingOptions,
    without: tuple[str, ...] = (),
) -> torch.Tensor:
    """
    The endpoint (N, L, d) that `model.solve` gives, computed without the savings that are named.

    Args:
        x_0: (N, L, d).
        source: states (N, Lx, d) without padding.
        uniform: (N, L), behind the draw of experts.
        options: steps, solver and choice of experts.
        without: names from `SAVINGS`.

    Raises:
        ValueError: for another name.
    """
    unknown = set(without) - set(SAVINGS)
    if unknown:
        raise ValueError(f"without={sorted(unknown)} are not among {sorted(SAVINGS)}")
    flow, length = model.model.flow, x_0.shape[1]
    grid = time_grid(options.num_inference_steps, shift=options.time_shift, device=x_0.device)
    times = evaluation_times(grid, options.solver)
    condition = model.model.condition(length, None, source, None)
    embeddings = flow.time_embedding(times)
    table = [layer.split(1) for layer in flow.modulate(embeddings)]

    def evaluate(x_t: torch.Tensor, t: torch.Tensor, index: int) -> torch.Tensor:
        modulations = [layer[index] for layer in table]
        if "time_table" in without:
            modulations = flow.modulate(flow.time_embedding(times[index : index + 1]))
        anew = "source_cache" in without
        own = model.model.condition(length, None, source, None) if anew else condition
        return flow.trunk(x_t, modulations, own)

    def choose(hidden: torch.Tensor) -> TokenRouting:
        if "shared_pass" in without:
            hidden = evaluate(x_0, grid[0], 0)
        gate = flow.gate(hidden, condition.pooled, embeddings[:1], None)
        return route_tokens(options.choose_experts(gate, uniform), model.config.num_experts)

    def velocity(hidden: torch.Tensor, routing: TokenRouting, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if "chosen_expert" in without:
            index = routing.experts.view(*x_t.shape[:2], 1, 1).expand(-1, -1, 1, x_t.shape[-1])
            outputs = flow.experts(hidden).gather(2, index).squeeze(2)
        else:
            outputs = flow.experts(hidden, routing)
        return flow.velocity(outputs, x_t, t)

    return solve_mixture_ode(evaluate, choose, velocity, x_0, time_grid=grid, solver=options.solver)[0]
