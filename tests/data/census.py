"""Damaged files: a screen in every layout, mutated by a seed, and a process that reads them.

    python tests/data/census.py [N]         N files (default 10,000), and what came of them
    python tests/data/census.py N --further the same of layouts that are rarer

The number of a file is its seed. From 3,000 on, benchmarks/census.json is written.
"""

import gzip
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import date
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
from tqdm import tqdm

RECORD = Path(__file__).parents[2] / "benchmarks/census.json"
LABELS = "labels.csv"
SECONDS = 10  # of processor time for one file, at most
MEMORY = 2 * 2**30  # beyond what the process has after its imports
RIGHT = ["read", "refused", "refused by the walk"]


def small_screen() -> ad.AnnData:
    rng = np.random.default_rng(0)
    X = sp.csr_matrix(rng.poisson(0.6, (60, 25)).astype(np.float32))
    obs = pd.DataFrame({"gene": rng.choice(["NT", "g1", "g2"], 60)}, [f"c{i}" for i in range(60)])
    obs["gene"] = obs["gene"].astype("category")
    var = pd.DataFrame({"gene_ids": [f"ENSG{i:011d}" for i in range(25)]})
    var.index = [f"g{i}" for i in range(25)]
    return ad.AnnData(X, obs, var, uns=dict(note="text", table=np.arange(4.0)))


def _write_h5(path: Path, a: ad.AnnData, legacy: bool) -> None:
    "A file of Cell Ranger 3, or of Cell Ranger 2."
    X = a.X.astype(np.int32)
    with h5py.File(path, "w") as f:
        group = f.create_group("GRCh38" if legacy else "matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(X, name)
        group["shape"] = np.array(X.shape[::-1], np.int32)
        group["barcodes"] = a.obs_names.to_numpy("S")
        names = a.var_names.to_numpy("S")
        ids = a.var["gene_ids"].to_numpy("S")
        if legacy:
            group["gene_names"], group["genes"] = names, ids
            return
        features = group.create_group("features")
        features["name"], features["id"] = names, ids
        features["feature_type"] = np.array(["Gene Expression"] * a.n_vars, "S")


def _write_folder(path: Path, a: ad.AnnData) -> None:
    path.mkdir()
    with gzip.open(path / "matrix.mtx.gz", "wb") as f:
        scipy.io.mmwrite(f, sp.coo_matrix(a.X.T.astype(int)), field="integer")
    features = a.var.reset_index()[["gene_ids", "index"]].assign(type="Gene Expression")
    features.to_csv(path / "features.tsv.gz", sep="\t", header=False, index=False)
    pd.Series(a.obs_names).to_csv(path / "barcodes.tsv.gz", header=False, index=False)


def layouts(folder: Path) -> list[Path]:
    "The screen in every layout."
    a = small_screen()
    dense, by_gene = a.copy(), a.copy()
    dense.X, by_gene.X = a.X.toarray(), a.X.tocsc()
    a.write_h5ad(folder / "by_cell.h5ad")
    by_gene.write_h5ad(folder / "by_gene.h5ad")
    dense.write_h5ad(folder / "dense.h5ad")
    _write_h5(folder / "cell_ranger3.h5", a, legacy=False)
    _write_h5(folder / "cell_ranger2.h5", a, legacy=True)
    _write_folder(folder / "folder", a)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a.write_zarr(folder / "store.zarr")
    return sorted(folder.iterdir())


def _write_old(path: Path, a: ad.AnnData) -> None:
    "As anndata wrote until 2019: annotations are arrays of records."
    with h5py.File(path, "w") as f:
        counts = f.create_group("X")
        counts.attrs["h5sparse_format"] = "csr"
        counts.attrs["h5sparse_shape"] = np.array(a.shape)
        for name in ("data", "indices", "indptr"):
            counts[name] = getattr(a.X, name)
        f["obs"] = a.obs.astype(str).to_records(column_dtypes="S9", index_dtypes="S9")
        f["var"] = a.var.to_records(column_dtypes="S20", index_dtypes="S9")


def _write_sharded(path: Path, a: ad.AnnData) -> None:
    "A store of zarr v3 whose arrays lie in shards, each of several chunks."
    with ad.settings.override(zarr_write_format=3, auto_shard_zarr_v3=True):
        a.write_zarr(path)


def _write_plain_folder(path: Path, a: ad.AnnData) -> None:
    "Files of Cell Ranger 2, not compressed."
    path.mkdir()
    scipy.io.mmwrite(path / "matrix.mtx", sp.coo_matrix(a.X.T.astype(int)), field="integer")
    genes = a.var.reset_index()[["gene_ids", "index"]]
    genes.to_csv(path / "genes.tsv", sep="\t", header=False, index=False)
    pd.Series(a.obs_names).to_csv(path / "barcodes.tsv", header=False, index=False)


def _write_mudata(path: Path, a: ad.AnnData) -> None:
    a.write_h5ad(path)
    with h5py.File(path, "a") as f:
        f.attrs["encoding-type"] = "MuData"
        names = list(f)
        rna = f.create_group("mod/rna")
        for name in names:
            f.move(name, f"{rna.name}/{name}")
        for name in ("obs", "var"):
            f.create_group(name)


def _write_loom(path: Path, a: ad.AnnData) -> None:
    with h5py.File(path, "w") as f:
        f["matrix"] = a.X.T.toarray()
        f["row_attrs/Gene"] = a.var_names.to_numpy("S")
        f["col_attrs/CellID"] = a.obs_names.to_numpy("S")


def _write_r(path: Path, a: ad.AnnData) -> None:
    "As R writes it: text in the place of categories, doubles, and nothing that is not asked for."
    a = ad.AnnData(a.X.astype(np.float64).toarray(), a.obs.astype(str), a.var.copy())
    a.write_h5ad(path, convert_strings_to_categoricals=False)
    with h5py.File(path, "a") as f:
        for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            del f[name]


def _write_genomes(path: Path, a: ad.AnnData) -> None:
    "Two genomes in one file of Cell Ranger 2."
    _write_h5(path, a, legacy=True)
    with h5py.File(path, "a") as f:
        f.copy("GRCh38", "mm10")


def further_layouts(folder: Path) -> list[Path]:
    "The screen in layouts that are rarer, or refused by name: MuData, loom, several genomes."
    a = small_screen()
    _write_old(folder / "old.h5ad", a)
    _write_r(folder / "from_r.h5ad", a)
    _write_plain_folder(folder / "plain", a)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _write_sharded(folder / "sharded.zarr", a)
    _write_genomes(folder / "genomes.h5", a)
    _write_mudata(folder / "mudata.h5mu", a)
    _write_loom(folder / "loom.loom", a)
    return sorted(folder.iterdir())


def _damage_bytes(file: Path, rng: np.random.Generator) -> None:
    "Flip some bytes, cut the end off, or exchange two pieces."
    data = bytearray(file.read_bytes())
    if not data:
        return
    kind = rng.integers(3)
    if kind == 0:
        for i in rng.integers(0, len(data), rng.integers(1, 9)):
            data[i] ^= int(rng.integers(1, 256))
    elif kind == 1:
        del data[int(rng.integers(len(data))) :]
    else:
        i, j = sorted(rng.integers(0, len(data), 2))
        data[i : i + 16], data[j : j + 16] = data[j : j + 16], data[i : i + 16]
    file.write_bytes(data)


def _damage_hdf5(file: Path, rng: np.random.Generator) -> None:
    "Delete, retype, shorten or fill an entry, or declare another shape or encoding."
    with h5py.File(file, "r+") as f:
        names = []
        f.visit(names.append)
        name = names[rng.integers(len(names))]
        item = f[name]
        kind = rng.integers(6)
        if kind == 0:
            del f[name]
        elif kind == 1 and item.attrs:
            key = list(item.attrs)[rng.integers(len(item.attrs))]
            item.attrs[key] = ["other", 10**12, np.array([10**12, 10**12]), b"\xff"][
                rng.integers(4)
            ]
        elif isinstance(item, h5py.Dataset):
            values = item[()]
            del f[name]
            if kind == 2:
                f[name] = np.array(["text", "of", "another", "type"], "S")
            elif kind == 3 and np.ndim(values):
                f[name] = values[: len(values) // 2]
            elif kind == 4 and np.issubdtype(np.asarray(values).dtype, np.number):
                f[name] = -np.asarray(values, float) - 1e6
            else:
                f.create_dataset(name, (2**40,), np.float64, chunks=(2**16,))


def mutate(originals: list[Path], target: Path, seed: int) -> Path:
    "A damaged copy of one of the layouts."
    rng = np.random.default_rng(seed)
    original = originals[rng.integers(len(originals))]
    place = target / f"{seed}-{original.name}"
    if original.is_dir():
        shutil.copytree(original, place)
        files = sorted(p for p in place.rglob("*") if p.is_file())
        _damage_bytes(files[rng.integers(len(files))], rng)
        return place
    shutil.copy(original, place)
    (_damage_hdf5 if rng.random() < 0.6 else _damage_bytes)(place, rng)
    return place


def read(path: Path) -> str:
    "What comes of a file: `gpovae check` of it, then all of its counts."
    from gpovae.core.errors import GpovaeError
    from gpovae.data.check import check
    from gpovae.data.layouts import source

    try:
        # h5ad and zarr have their labels with them
        has_labels = path.suffix in (".h5ad", ".zarr")
        labels = None if has_labels else path.parents[1] / LABELS
        check(path, cells=labels, perturbation_key="gene")
        with source(path, cells=labels, scratch=path.parent) as raw:
            n = sum(block.shape[0] for block in raw.blocks())
        return "read" if n == len(raw.obs) else f"{n} rows of {len(raw.obs)}"
    except GpovaeError as e:
        return "refused" if "\n" not in str(e) else f"message of several lines: {e}"
    except BaseException as e:
        return f"{type(e).__name__}: {e}"


def read_all(is_guarded: bool) -> None:
    "Read the files whose names come in; a line of JSON for each: what came of it."
    from gpovae.data import layouts

    if not is_guarded:  # the process itself is what may be lost
        layouts.walk = lambda path: None
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        path = Path(line.strip())
        start = time.process_time()
        result = read(path)
        seconds = time.process_time() - start
        left = [p.name for p in path.parent.iterdir() if p.name.startswith(".gpovae-")]
        if left:
            result = f"left behind: {left}"
        print(json.dumps(dict(result=result, seconds=seconds)), flush=True)


class Reader:
    "A process that reads files; another takes its place where it dies or hangs."

    def __init__(self, *flags: str):
        self.flags = flags
        self.process = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--read", *self.flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def read(self, path: Path) -> str:
        "What came of a file: read, refused, or what went wrong."
        # the first file waits for the imports; who waits for the walk may wait longer
        patience = SECONDS if self.process and not self.flags else 12 * SECONDS
        if self.process is None:
            self.start()
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        ready = select.select([self.process.stdout], [], [], patience)[0]
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.process.kill()
            code = self.process.wait()
            self.process = None
            return f"died ({code})" if ready else "hangs"
        answer = json.loads(line)
        return answer["result"] if answer["seconds"] < SECONDS else f"{answer['seconds']:.0f} s"

    def close(self) -> None:
        if self.process:
            self.process.stdin.close()
            self.process.wait()


def census(folder: Path, seeds, write=layouts) -> dict[str | int, tuple[str, str]]:
    """Layout and result of every file: the whole ones by name, the damaged ones by seed.

    Files are read without the walk by another process (`gpovae.data.damaged`), which takes a third
    of a second each. Where that costs the reader its life, the file is read once more, with it.
    """
    originals = folder / "originals"
    originals.mkdir()
    found = write(originals)
    small_screen().obs.to_csv(folder / LABELS)
    reader, guarded = Reader(), Reader("--guarded")
    # the whole ones first
    results = {path.name: (path.name, reader.read(path)) for path in found}
    for seed in seeds:
        target = folder / "damaged"
        target.mkdir()
        path = mutate(found, target, seed)
        result = reader.read(path)
        if reader.process is None:
            for left in target.glob(".gpovae-*"):  # of the process that was lost
                shutil.rmtree(left)
            result = f"{guarded.read(path)} by the walk"
        results[seed] = path.name.partition("-")[2], result
        shutil.rmtree(target)
    reader.close()
    guarded.close()
    return results


def main(n: int, is_further: bool) -> int:
    "Print what came of n files; how many of them went wrong."
    write = further_layouts if is_further else layouts
    with tempfile.TemporaryDirectory() as folder:
        results = census(Path(folder), tqdm(range(n), unit="file"), write)
    table = pd.DataFrame(results.values(), index=results, columns=["layout", "result"])
    damaged = table.drop(index=[place for place in table.index if isinstance(place, str)])
    counts = damaged.value_counts().unstack(0, fill_value=0)
    print(counts.to_string())
    wrong = table[~table.result.isin(RIGHT)]
    print(wrong.to_string())
    if n >= (3_000 if is_further else 10_000):
        command = f"python tests/data/census.py {n}{' --further' * is_further}"
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        record["further" if is_further else "usual"] = dict(
            date=str(date.today()), command=command, files=n, counts=counts.to_dict()
        )
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return len(wrong)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    if "--read" in sys.argv:
        read_all(is_guarded="--guarded" in sys.argv)
    else:
        sys.exit(main(*numbers or [10_000], is_further="--further" in sys.argv) > 0)
