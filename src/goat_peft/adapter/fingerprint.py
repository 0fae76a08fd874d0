"""Is this the base weight that the adapter was trained on?

An adapter stores `SAMPLES` entries of each base weight and a flag for a quantised base. They survive a change of the base's dtype, and a base with
other weights differs in them; a sibling fine-tuned for a few steps only may not differ enough.
"""

import torch
from torch import Tensor

SAMPLES = 64
_STRIDE = 2_654_435_761  # prime, so that samples fall on all rows and columns
_FLOAT_TOLERANCE = 0.004  # rounding to bfloat16 moves a weight by 0.001 to 0.002
_QUANTISED_TOLERANCE = 0.3  # rounding to 4 bits by about 0.1; unrelated weights differ by about 1.4


def weight_sample(weight: Tensor, quantised: bool) -> Tensor:
    """`SAMPLES` entries of `weight` (m, n) at fixed positions, then 1.0 if the base is quantised; (SAMPLES + 1,) float32."""
    count = weight.numel()
    positions = torch.tensor([i * _STRIDE % count for i in range(SAMPLES)], device=weight.device)
    entries = weight.reshape(-1)[positions].float()
    return torch.cat([entries, entries.new_tensor([float(quantised)])])


def distance(saved: Tensor, found: Tensor) -> float:
    """Relative distance `||saved - found|| / ||saved||` of two samples, flags left out."""
    saved, found = saved[:SAMPLES].float().cpu(), found[:SAMPLES].float().cpu()
    return (torch.linalg.vector_norm(saved - found) / torch.linalg.vector_norm(saved).clamp_min(1e-12)).item()


def same_base(saved: Tensor, found: Tensor) -> bool:
    """Whether two samples come from the same weight, up to rounding; wider where either base is quantised. NaN is never the same."""
    tolerance = _QUANTISED_TOLERANCE if saved[-1] > 0 or found[-1] > 0 else _FLOAT_TOLERANCE
    return distance(saved, found) <= tolerance


def check_base(adapter_name: str, samples: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Compare the saved and found samples of each adapted module, by module name.

    Raises `ValueError` naming the module that differs most and what to do.
    """
    foreign = {name: distance(saved, found) for name, (saved, found) in samples.items() if not same_base(saved, found)}
    if foreign:
        where = max(foreign, key=foreign.__getitem__)
        raise ValueError(
            f"Adapter '{adapter_name}' was trained on another base: the weights of {len(foreign)} of {len(samples)} adapted modules differ (relative "
            f"distance {foreign[where]:.3g} at '{where}'). Load the base it was trained on; to load it anyway, load this base anew (the refused adapter is on it) and pass config=GoatConfig.from_pretrained(path, check_base_weights=False)."
        )
