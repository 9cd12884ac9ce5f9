"""Saved runs: what is in the folder, what is refused and with which words, what an older one is
turned into; and names that are code, which stay text in every report.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from safetensors.torch import load_file, save_file

import gpovae
from gpovae import GPOVAE, GpovaeError
from gpovae.app import reports
from gpovae.data.screen import Key
from gpovae.experiments.runner import whole
from gpovae.train.run import FORMAT, MIGRATIONS, checksum, run_settings

from bench_explorer import browser, chromium

pytestmark = pytest.mark.xdist_group("runs")
SMALL = dict(latent=4, basal=(16, 1), embedding=(16, 2), decoder=(16, 2), batch_size=64)
# perturbed genes; beside them "<img src=y onerror=alert(4)>", which responds, and the names of
# cells
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "a\"b'c",
    "<b>bold</b>",
]
BAD = "img[src=x], img[src=y], img[src=z]"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    "A screen whose genes, perturbations and cells are named by an enemy, and a run on it."
    folder = tmp_path_factory.mktemp("hostile")
    a = gpovae.datasets.simulated(n_cells=600, n_genes=50, n_perturbations=4, seed=0)
    called = dict(
        zip([g for g in a.obs["gene"].cat.categories if g != "non-targeting"], HOSTILE, strict=True)
    )
    called[next(g for g in a.var_names if g not in called)] = "<img src=y onerror=alert(4)>"

    def renamed(names):
        return [called.get(g, g) for g in names]

    a.var_names = renamed(a.var_names)
    a.obs_names = [f"<img src=z onerror=alert(3)>{i}" for i in range(a.n_obs)]
    a.obs["gene"] = pd.Categorical(renamed(a.obs["gene"].astype(str)))
    a.uns["gpovae_truth"]["genes"] = np.array(renamed(a.uns["gpovae_truth"]["genes"]), str)
    gpovae.prepare(a, perturbation_key="gene", control="non-targeting", progress=False)
    a.write_h5ad(folder / "screen.h5ad")
    model = GPOVAE(a, **SMALL)
    model.train(max_epochs=2, progress=False)
    model.save(folder / "<b>run", data=folder / "screen.h5ad")
    return folder


@pytest.fixture(scope="module")
def run(hostile):
    return hostile / "<b>run"


def documents(page):
    "A page and the pages in its frames, parsed as a browser would."
    soup = BeautifulSoup(page, "html.parser")
    yield soup
    for frame in soup.find_all("iframe", srcdoc=True):
        yield from documents(frame["srcdoc"])


@pytest.mark.parametrize("name", ["report", "evaluate", "network", "compare"])
def test_names_stay_text(hostile, run, tmp_path, name):
    more = dict(
        report=dict(run=str(run)),
        evaluate=dict(run=str(run), thorough=False),
        network=dict(run=str(run), min_probability=0.0),
        compare=dict(runs=str(run)),
    )[name]
    made = reports.run(name, tmp_path, progress=False, **more)
    said = ""
    for soup in documents(made["html"].read_text(encoding="utf-8")):
        assert (
            not soup.select(BAD)
            and not [s for s in soup.find_all("script") if s.text.lstrip().startswith("alert")]
            and not [b for b in soup.find_all("b") if b.text == "bold"]
        )
        said += soup.get_text()
    if name in ("report", "network"):
        assert not [n for n in HOSTILE if n not in said]
    if not chromium():
        pytest.skip("there is no Chromium here")
    with browser() as context:
        shown = []
        page = context.new_page()
        page.on("dialog", lambda d: (shown.append(d.message), d.dismiss()))
        page.on("pageerror", lambda e: shown.append(str(e)))
        page.goto(made["html"].as_uri())
        page.wait_for_timeout(500)
        for frame in page.frames:
            assert not frame.locator(BAD).count()
        assert not shown


def test_a_folder_of_plain_files(run):
    assert sorted(p.name for p in run.iterdir()) == [
        "history.csv",
        "model.safetensors",
        "settings.json",
    ]
    s = json.loads((run / "settings.json").read_text())
    assert (
        s["format"] == FORMAT
        and s["genes"][0]
        and set(s["versions"]) == {"gpovae", "torch", "python", "anndata"}
        and len(s["screen"]) == len(s["cells"]) == 16
    )
    assert s["files"] == {
        f: hashlib.sha256((run / f).read_bytes()).hexdigest()
        for f in ("model.safetensors", "history.csv")
    } and whole(run)
    assert set(HOSTILE) <= set(GPOVAE.load(run).predict().obs["perturbation"])


def test_nothing_unpickles():
    "No module loads pickles, and none is written."
    for f in Path(gpovae.__file__).parent.rglob("*.py"):
        assert not re.search(
            r"torch\.(load|save)\(|\bpickle\b|allow_pickle=True|joblib\.load|read_pickle",
            f.read_text(encoding="utf-8"),
        ), f


def rewritten(folder, sign=True, **to):
    "Settings with other values, and (an enemy can do it too) the checksum that goes with them."
    f = folder / "settings.json"
    s = json.loads(f.read_text()) | to
    s = {k: v for k, v in s.items() if v is not None or k not in to}
    f.write_text(json.dumps(s | dict(checksum=checksum(s)) if sign else s))


def weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    s = json.loads((folder / "settings.json").read_text())
    rewritten(
        folder,
        files=s["files"]
        | {
            "model.safetensors": (
                hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
            )
        },
    )


def flip(file, at=-1):
    b = bytearray(file.read_bytes())
    b[at] ^= 1
    file.write_bytes(b)


BROKEN = {
    "no folder": (
        lambda f: shutil.rmtree(f),
        "is not a gpovae run: it has no settings.json. Train one",
    ),
    "no settings": (
        lambda f: (f / "settings.json").unlink(),
        "is not a gpovae run: it has no settings.json. Train one",
    ),
    "half of the settings": (
        lambda f: (f / "settings.json").write_text((f / "settings.json").read_text()[:400]),
        "settings.json is damaged",
    ),
    "binary settings": (
        lambda f: (f / "settings.json").write_bytes(b"\xff\xfe\x00"),
        "settings.json is damaged",
    ),
    "a list": (lambda f: (f / "settings.json").write_text("[]"), "says no format"),
    "of something else": (
        lambda f: (f / "settings.json").write_text('{"format": "png"}'),
        "says no format",
    ),
    "other genes": (lambda f: rewritten(f, sign=False, genes=["x"]), "settings.json was altered"),
    "another seed": (lambda f: rewritten(f, sign=False, seed=1), "settings.json was altered"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "half of the weights": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:9999]
        ),
        "model.safetensors does not belong to its settings.json .*cut off",
    ),
    "a bit of the weights": (
        lambda f: flip(f / "model.safetensors"),
        "model.safetensors does not belong to its settings.json",
    ),
    "another history": (
        lambda f: flip(f / "history.csv", -2),
        "history.csv does not belong to its settings.json",
    ),
    "of the future": (
        lambda f: rewritten(f, format=FORMAT + 1, versions=dict(gpovae="7.7")),
        (
            rf"format {FORMAT + 1}, written by gpovae 7\.7; gpovae .* reads formats up to"
            rf" {FORMAT}\. Install that version, or a later one"
        ),
    ),
    "of the past": (
        lambda f: rewritten(f, format=1),
        "format 1, of a version before the first release, which cannot be brought up to date",
    ),
    "format 2, and something missing": (
        lambda f: rewritten(f, format=2),
        "says format 2, and lacks 'weights'",
    ),
    "signed, a setting that does not exist": (
        lambda f: rewritten(f, settings=dict(magic=1)),
        "magic",
    ),
    "signed, a size that is not that of the weights": (
        lambda f: rewritten(
            f, settings=json.loads((f / "settings.json").read_text())["settings"] | dict(latent=5)
        ),
        "weights in .* do not fit its settings.json",
    ),
    "signed, no nodes": (lambda f: rewritten(f, nodes=None), "cannot be read as a run .*nodes"),
    "signed, a tensor too few": (
        lambda f: weights(f, lambda t: t.pop("log_theta")),
        "weights in .* do not fit its settings.json",
    ),
    "signed, no residual": (
        lambda f: weights(f, lambda t: t.pop("residual.common")),
        "cannot be read as a run .*residual",
    ),
    "signed, a pickle for weights": (
        lambda f: (
            torch.save({}, f / "model.safetensors"),
            rewritten(
                f,
                files={
                    "model.safetensors": (
                        hashlib.sha256((f / "model.safetensors").read_bytes()).hexdigest()
                    )
                },
            ),
        ),
        "cannot be read as a run .*Safetensor",
    ),
    "a screen that is none": (
        lambda f: ((f / "x.h5ad").write_text("x"), rewritten(f, data=str(f / "x.h5ad"))),
        "The screen that this run was trained on cannot be read: .*x.h5ad",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_refused_with_the_reason(run, tmp_path, kind):
    change, words = BROKEN[kind]
    shutil.copytree(run, tmp_path / "run")
    change(tmp_path / "run")
    with pytest.raises(GpovaeError, match=words) as e:
        GPOVAE.load(tmp_path / "run")
    assert str(tmp_path / "run") in str(e.value) or kind.startswith("signed, a setting"), e.value
    if "screen" not in kind and not kind.startswith("signed"):
        assert not whole(tmp_path / "run")


def test_the_place_of_the_screen_may_change(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    rewritten(tmp_path / "run", sign=False, data="/nowhere.h5ad")
    assert GPOVAE.load(tmp_path / "run").adata is None and whole(tmp_path / "run")


def test_genes_in_another_order_and_missing_ones(hostile, run):
    model = GPOVAE.load(run)
    turned = model.adata[:, np.random.default_rng(0).permutation(model.adata.n_vars)].copy()
    with pytest.warns(UserWarning, match="prepared: the order of the genes"):
        again = GPOVAE.load(run, turned)
    other = model.adata.copy()
    other.obs[Key.split] = other.obs[Key.split].to_numpy()[::-1]
    with pytest.warns(UserWarning, match="other cells, or another split"):
        GPOVAE.load(run, other)
    assert list(again.adata.var_names) == model.genes != list(turned.var_names)
    np.testing.assert_array_equal(
        again.get_latent_representation(), model.get_latent_representation()
    )
    with pytest.raises(
        GpovaeError,
        match=(
            f"lacks 7 gene.s. of the model .{', '.join(map(re.escape, model.genes[:5]))},"
            " \\.\\.\\.\\)\\. Load it"
        ),
    ):
        GPOVAE.load(run, model.adata[:, 7:].copy())
    with pytest.raises(
        GpovaeError, match=f"lacks 1 gene.s. of the model .{re.escape(model.genes[3])}.. Load it"
    ):
        GPOVAE.load(run, model.adata[:, [i for i in range(model.adata.n_vars) if i != 3]].copy())


def test_an_older_run_is_brought_up_to_date(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "old")
    s = json.loads((run / "settings.json").read_text())
    old = {k: v for k, v in s.items() if k not in ("checksum", "screen", "files")} | dict(
        format=2, weights=s["files"]["model.safetensors"]
    )
    (tmp_path / "old/settings.json").write_text(json.dumps(old))
    model = GPOVAE.load(tmp_path / "old")
    np.testing.assert_array_equal(model.predict().X, GPOVAE.load(run).predict().X)
    # reading changes nothing
    assert json.loads((tmp_path / "old/settings.json").read_text()) == old
    model.save(tmp_path / "new")
    assert run_settings(tmp_path / "new")["format"] == FORMAT
    flip(tmp_path / "old/model.safetensors")
    with pytest.raises(GpovaeError, match="does not belong"):
        GPOVAE.load(tmp_path / "old")
    monkeypatch.setattr("gpovae.train.run.FORMAT", FORMAT + 1)
    monkeypatch.setitem(
        MIGRATIONS, FORMAT, lambda s: s | dict(format=FORMAT + 1, genes=s["genes"][::-1])
    )
    assert run_settings(run)["genes"] == s["genes"][::-1]
    assert run_settings(tmp_path / "old")["format"] == FORMAT + 1  # from 2, step by step
    assert sorted(MIGRATIONS) == list(range(2, FORMAT + 1))  # no gap
