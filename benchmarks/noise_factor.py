"""What SEVEN's noise factor measures: S / sum |w g| for independent gradients of known noise.

uv run benchmarks/noise_factor.py

Every weight is 1 and draws its own gradients: a mean, plus noise that is new at each step.
"""

import torch

from seven_exp.pruning.criteria.seven import Seven

WEIGHTS, STEPS = 20_000, 100
GAUSSIAN, HEAVY, UNIFORM = "Gaussian", "Student t, 3 degrees", "uniform"


def noise(kind: str, generator: torch.Generator) -> torch.Tensor:
    """Of variance 1, shape (STEPS, WEIGHTS)."""
    normal = torch.randn(STEPS, WEIGHTS, generator=generator)
    if kind == GAUSSIAN:
        return normal
    if kind == UNIFORM:
        return (torch.rand(STEPS, WEIGHTS, generator=generator) - 0.5) * 12**0.5
    square = torch.randn(3, STEPS, WEIGHTS, generator=generator).square().sum(0)
    return normal / square.sqrt()  # t / sqrt(3): t with 3 degrees has variance 3


def shares(gradients: torch.Tensor) -> torch.Tensor:
    """S / sum |w g| of each weight, shape (WEIGHTS,)."""
    weights, seven = [torch.ones(WEIGHTS)], Seven()
    state = seven.init(weights)
    unit = None
    for gradient in gradients:
        seven.update(state, weights, [gradient])
        unit = state.numbers["unit"]
    assert unit is not None
    return seven.score(state, weights)[0] * unit / gradients.abs().sum(0)


def main() -> None:
    """Print a table."""
    print(
        "| noise | mean / deviation of g | S / sum of abs(w g), mean ± deviation |\n|---|---:|---:|"
    )
    for kind, ratio in [
        *((GAUSSIAN, ratio) for ratio in (0.0, 0.1, 0.3, 1.0, 2.0, 5.0)),
        *((HEAVY, ratio) for ratio in (0.0, 0.3)),
        *((UNIFORM, ratio) for ratio in (0.0, 0.3)),
    ]:
        generator = torch.Generator().manual_seed(0)
        found = shares(ratio + noise(kind, generator))
        print(f"| {kind} | {ratio} | {found.mean():.3f} ± {found.std():.3f} |")


if __name__ == "__main__":
    main()
