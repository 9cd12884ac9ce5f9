"""`preset="paper"` against recorded numbers of the published objective: one batch, fixed parameters and noise.

tests/data/paper_step.npz holds inputs, parameters, noise and results computed by running the published implementation (Baek et al. 2025; its code: CC BY-NC 4.0)
on random inputs, torch CPU float32."""
from pathlib import Path

import numpy as np, pytest, torch

from gpovae.data.batches import Batch
from gpovae.model.alignment import GRN
from gpovae.model.objective import make_settings, objective
from gpovae.model.vae import VAE, Noise, Perturbations

Z = {k: torch.from_numpy(np.atleast_1d(v)) for k, v in np.load(Path(__file__).parent / "data/paper_step.npz").items()}
NODES = slice(0, 4)   # nodes 0..3 are perturbed, 4 and 5 never
NAMES = {"embedding_encoder": "embedding_encoder", "qc_encoder": "artifact_encoder", "z_encoder": "basal_encoder"}


def ours(name: str) -> str:
    "Our name of a recorded parameter."
    head, _, rest = name.partition(".")
    if name == "mask_param": return "grn.edge_logit"
    if name == "decoder.log_concentration": return "log_theta"
    if rest.startswith("softmax_logits"): return rest.replace("softmax_logits", "logits")
    if rest.startswith("hidden"):
        layer, _, kind = rest[len("hidden"):].partition(".")
        return f"decoder.layers.{layer}.{kind}" if head == "decoder" else f"{NAMES[head]}.hidden.layers.{layer}.{kind}"
    return f"{NAMES[head]}.{rest}"


RECORDED = [k[len("param."):] for k in Z if k.startswith("param.")]


@pytest.fixture(scope="module")
def step():
    "The model with the recorded parameters, its settings, the batch and the noise."
    s = make_settings("paper", latent=4, basal=(7, 1), embedding=(8, 4), decoder=(9, 2), particles=3, eps=0.8, sparsity=5.0)
    P = Perturbations([[0], [1], [2], [3]], np.zeros((4, 6)), np.ones((4, 6)), np.ones(4), 1)
    P.node_cells.copy_(Z["in.D_obs_counts"]); P.n_fail.copy_(Z["in.qc_obs_counts"][0])
    vae = VAE(15, torch.arange(6), GRN(6, signed=False, hops=5, edge_prior=0.3), P, latent=4, basal=s.basal, embedding=s.embedding, decoder=s.decoder, anchored=False)
    vae.log_x_mean.copy_(Z["in.log_x_mean"]); vae.log_x_std.copy_(Z["in.log_x_std"])
    state = dict(vae.named_parameters())
    with torch.no_grad():
        for name in RECORDED: state[ours(name)].copy_(Z[f"param.{name}"])
    D, u = Z["in.D"], Z["in.qc"].flatten().float()
    label = torch.where(D.sum(1) > 0, D.argmax(1), -1)
    batch = Batch(Z["in.X"].float(), Z["in.library_size"].float(), label, u, torch.zeros(12, dtype=torch.long), Z["in.cfX"].float(), Z["in.cfX"].sum(1) != 0, Z["in.deltaX"].float())
    noise = [Noise(Z[f"noise.{p}u_mask"][:, NODES], Z[f"noise.{p}eps_E"][:, NODES], Z[f"noise.{p}eps_qcE"], Z[f"noise.{p}eps_z"]) for p in ("", "cf.")]
    return vae, s, batch, noise


def close(a, b, rtol): torch.testing.assert_close(torch.as_tensor(a).float(), torch.as_tensor(b).float(), rtol=rtol, atol=1e-6)


def test_every_parameter_is_recorded(step):
    vae, *_ = step
    assert {ours(n) for n in RECORDED} == {n for n, p in vae.named_parameters() if p.requires_grad}


def test_samples(step):
    vae, s, batch, (noise, _) = step
    E = vae.effects(torch.arange(4), noise.mask, noise.effect)
    close(E.mask.round(), Z["sample.mask"][:, NODES], 0); close(E.effect, Z["sample.E"][:, NODES], 1e-5)
    e_a, _ = vae.artifact(noise.artifact)
    close(e_a, Z["sample.qc_E"], 1e-5)
    z_p = vae.perturbations.gather(E.latent, torch.arange(4), batch.label)
    q = vae.encode(vae.standardise(batch.x), z_p, batch.fail[:, None] * e_a, batch.batch)
    close(q.sample(noise.basal), Z["sample.z_basal"], 1e-5)


def test_terms_and_total(step):
    vae, s, batch, noise = step
    out = objective(vae, batch, s, *noise)
    for mine, theirs in dict(reconstruction="reconstruction", kl_basal="z_basal", kl_effect="E", kl_mask="mask", kl_artifact="qc_E").items():
        close(out[mine], -Z[f"loss.{theirs}"].mean(), 1e-4)
    for mine, theirs in dict(counterfactual="cf_kl", alignment="grn", sparsity="penalty").items(): close(out[mine], Z[f"loss.{theirs}"][0], 1e-5)
    close(out["total"], Z["loss.total"][0], 1e-5)


def test_gradients_and_one_step_of_adam(step):
    vae, s, batch, noise = step
    state = dict(vae.named_parameters())
    before = {k: v.detach().clone() for k, v in state.items()}
    optimiser = torch.optim.Adam(vae.parameters(), lr=s.learning_rate, weight_decay=s.weight_decay)
    vae.zero_grad(); objective(vae, batch, s, *noise)["total"].backward()
    for name in RECORDED:
        g, r = state[ours(name)].grad, Z[f"grad.{name}"]
        assert (g - r).norm() <= 1e-4 * r.norm() + 1e-6, name
    norm = torch.nn.utils.clip_grad_norm_(vae.parameters(), s.clip_norm)
    close(norm, Z["grad.norm_before_clip_100"][0], 1e-4)
    optimiser.step()
    for name in RECORDED: torch.testing.assert_close(state[ours(name)].detach(), Z[f"after_step.{name}"], rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        for k, v in state.items(): v.copy_(before[k])
