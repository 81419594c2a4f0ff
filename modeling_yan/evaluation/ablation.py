"""Generation's exact savings, each switched off alone: the same numbers, more work."""

import torch

from modeling_yan.flow_matching_yan import evaluation_times, solve_ode, time_grid
from modeling_yan.layers_yan import route_tokens
from modeling_yan.writing_yan import WritingPlan

SAVINGS = {
    "shared_pass": "the gate and the first step share a trunk pass",
    "chosen_expert": "only each token's own expert is computed",
    "source_cache": "keys and values of the source are projected once",
    "time_table": "scales and shifts of all times are computed once",
}


@torch.no_grad()
def solve_without(
    model,
    x_0: torch.Tensor,
    source: torch.Tensor,
    uniform: torch.Tensor,
    plan: WritingPlan,
    without: tuple[str, ...] = (),
) -> torch.Tensor:
    """
    The endpoint (N, L, d) that `model.solve` gives, computed without the savings that are named.

    Args:
        x_0: (N, L, d).
        source: states (N, Lx, d) without padding.
        uniform: (N, L), behind the draw of experts.
        without: names from `SAVINGS`.
    """
    unknown = set(without) - set(SAVINGS)
    if unknown:
        raise ValueError(f"without={sorted(unknown)} are not among {sorted(SAVINGS)}")
    flow, length = model.model.flow, x_0.shape[1]

    def make_condition():
        return model.model.condition(length, None, source, None)

    grid = time_grid(plan.num_inference_steps, shift=plan.time_shift, device=x_0.device)
    times = evaluation_times(grid, plan.solver)
    condition, embeddings = make_condition(), flow.time_embedding(times)
    table = [layer.split(1) for layer in flow.modulate(embeddings)]

    def trunk(x_t: torch.Tensor, index: int) -> torch.Tensor:
        modulations = [layer[index] for layer in table]
        if "time_table" in without:
            modulations = flow.modulate(flow.time_embedding(times[index : index + 1]))
        own = make_condition() if "source_cache" in without else condition
        return flow.trunk(x_t, modulations, own)

    first = trunk(x_0, 0)
    gate = flow.gate(first, condition.pooled, embeddings[:1], None)
    experts = model._choose_experts(gate, uniform, plan)
    routing = route_tokens(experts, model.config.num_experts)
    index = experts[..., None, None].expand(-1, -1, 1, x_0.shape[-1])
    evaluations = 0

    def velocity(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nonlocal evaluations
        shared = evaluations == 0 and "shared_pass" not in without
        hidden = first if shared else trunk(x_t, evaluations)
        evaluations += 1
        if "chosen_expert" in without:
            outputs = flow.experts(hidden).gather(2, index).squeeze(2)
        else:
            outputs = flow.experts(hidden, routing)
        return flow.velocity(outputs, x_t, t)

    return solve_ode(velocity, x_0, solver=plan.solver, time_grid=grid)
