"""Train scVI for an epoch on prepared screens, on their counts, labels and batches.

Run by the Python of an environment with scvi-tools, with the files as arguments; prints what
scvi-tools registered of each, as JSON.
"""

import json
import sys

import anndata as ad
import scvi

registered = {}
for file in sys.argv[1:]:
    adata = ad.read_zarr(file) if file.endswith(".zarr") else ad.read_h5ad(file)
    scvi.model.SCVI.setup_anndata(adata, batch_key="gpovae_batch", labels_key="gpovae_perturbation")
    model = scvi.model.SCVI(adata, n_latent=5)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False, logger=False)
    counts = model.adata_manager.get_from_registry("X").sum()
    stats = {name: int(n) for name, n in model.adata_manager.summary_stats.items()}
    latent = model.get_latent_representation()
    registered[file] = stats | dict(counts=float(counts), latent=list(latent.shape))
print(json.dumps(registered))
