"""A memory plan as aligned lines for the terminal."""

from __future__ import annotations

from mserve.capacity.plan import MemoryPlan
from mserve.capacity.units import human_bytes

_LARGEST_SHOWN = 3


def render(plan: MemoryPlan) -> list[str]:
    """One line per use of memory, and one for what the blocks hold."""
    scope = "" if plan.ranks == 1 else f", on each of {plan.ranks} ranks"
    free = human_bytes(max(0, plan.available_bytes - plan.budget_bytes))
    lines = [
        ("available", human_bytes(plan.available_bytes), f"{free} of it kept free{scope}"),
        ("weights", human_bytes(plan.weight_bytes), _largest(plan.weights)),
        ("activations", human_bytes(plan.activation_bytes), f"step of {plan.max_step_tokens:,}"),
        ("logits", human_bytes(plan.logits_bytes), f"sampling of {plan.max_num_seqs:,} rows"),
    ]
    for kind, block_bytes in plan.plane_bytes.items():
        total = human_bytes(plan.num_blocks * block_bytes)
        lines.append((f"{kind} planes", total, f"{human_bytes(block_bytes)} per block"))
    held = f"{plan.num_tokens:,} tokens, {plan.full_context_requests:,.1f} x {plan.max_model_len:,}"
    if plan.num_blocks == plan.max_used_blocks:
        held += f": all that {plan.max_num_seqs:,} requests at once can use"
    lines.append(("blocks", f"{plan.num_blocks:,}", held))
    label_width = max(len(label) for label, _, _ in lines)
    size_width = max(len(size) for _, size, _ in lines)
    return [f"{label:<{label_width}}  {size:>{size_width}}  {what}" for label, size, what in lines]


def _largest(parts: dict[str, int]) -> str:
    ordered = sorted(parts, key=lambda part: -parts[part])[:_LARGEST_SHOWN]
    return ", ".join(f"{part} {human_bytes(parts[part])}" for part in ordered)
