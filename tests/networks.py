"""The one place that builds small networks for tests."""

import numpy as np
import pandas as pd
import torch

from gpovae.network.grn import GRN


def random_grn(n, seed, density=0.4, scale=0.5, longest=6):
    "A GRN of n genes, the logits of its responses, its table of genes."
    g = GRN(n, max_path_length=longest)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        g.edge_logit.copy_(torch.from_numpy(rng.normal(1, 2, (n, n))))
        g.effect.copy_(
            torch.from_numpy(rng.normal(size=(n, n)) * (rng.random((n, n)) < density) * scale)
        )
    return (
        g,
        torch.from_numpy(rng.normal(-1, 0.3, n)).float(),
        pd.DataFrame(dict(perturbed=True, position=range(n)), index=[f"g{i}" for i in range(n)]),
    )


def powers(W, longest):
    "W to the powers 0 to longest."
    return [np.linalg.matrix_power(W, k) for k in range(longest + 1)]


def W_of(grn):
    "Weights of a GRN, float64."
    return grn.weights().detach().double().numpy()
