"""The published screen gives what its paper's rule gives; downloads either leave the published file or nothing."""
import functools, hashlib, http.server, os, threading
from dataclasses import replace
from pathlib import Path

import anndata as ad, numpy as np, pytest

from gpovae.data import datasets
from gpovae.data.screen import GpovaeError, register
from gpovae.data.simulate import KINETICS, simulated

SHARED = Path(os.environ.get("GPOVAE_DATA") or Path(__file__).parents[2] / "shared" / "data")
COUNTS = {"non-targeting": 8586, "FAM83A": 1212, "CCNE2": 1173, "OXR1": 1159, "PHF20L1": 1119, "HS2": 1067, "CPQ": 1044, "RIPK2": 1014, "MYC": 923, "LRRCC1": 851,
          "UBR5": 715, "STK3": 650, "DSCC1": 590, "GATA1": 562, "ZFPM2": 329}
CONTENT = bytes(range(256)) * 64
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def tap(monkeypatch):
    if not (SHARED / "schraivogel2020_tapseq").is_dir(): pytest.skip(f"needs the files of schraivogel2020 at {SHARED}/schraivogel2020_tapseq (set GPOVAE_DATA)")
    monkeypatch.setenv("GPOVAE_DATA", str(SHARED))
    return datasets.load("schraivogel2020")


def test_schraivogel_cells_and_labels(tap):
    assert tap.shape == (20_994, 72) and tap.obs.gene.value_counts().to_dict() == COUNTS
    assert set(tap.obs.gene) - set(tap.var_names) == {"HS2", "non-targeting"}
    assert tap.obs_names.is_unique and set(tap.obs.batch) == {"TAP1", "TAP2"}
    guide_of = tap.obs.guide.astype(str)
    assert all(g.startswith(t) for g, t in zip(guide_of, tap.obs.gene.astype(str))) and guide_of.nunique() == 86


def test_schraivogel_registers_with_its_arguments(tap):
    with pytest.warns(UserWarning, match="HS2"): screen = register(tap, **datasets.prepare_arguments("schraivogel2020"))
    assert screen.size_factor.sum() == 69 and screen.is_control.sum() == COUNTS["non-targeting"] and len(screen.perturbations) == 14


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

    def do_GET(self):
        if self.path == "/broken/data.bin": return self.send_error(503)
        if self.path == "/cut/data.bin":    # announces the whole file, sends half
            self.send_response(200); self.send_header("Content-Length", str(len(CONTENT))); self.end_headers()
            self.wfile.write(CONTENT[:len(CONTENT) // 2]); self.close_connection = True
            return
        self.server.requests += 1
        super().do_GET()


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "upstream"
    for name, content in dict(good=CONTENT, bad=CONTENT[:-1] + b"x").items():
        (folder / name).mkdir(parents=True); (folder / name / "data.bin").write_bytes(content)
    s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    s.requests = 0
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown(); s.server_close()


@pytest.fixture
def screen(server, tmp_path, monkeypatch):
    "A dataset whose one file lies on the local server; `screen('bad')` takes another upstream folder."
    monkeypatch.setenv("GPOVAE_DATA", str(tmp_path / "data"))
    return lambda folder: datasets.Dataset("Test", load=lambda: None, folder="test", url=f"http://127.0.0.1:{server.server_port}/{folder}", files={"data.bin": SHA256})


def test_fetched_once(screen, server, capsys):
    path, = datasets.fetch(screen("good"))
    assert path.read_bytes() == CONTENT and "100%" in capsys.readouterr().err    # a progress bar
    assert datasets.fetch(screen("good")) == [path] and server.requests == 1


@pytest.mark.parametrize("folder", ["bad", "cut", "broken", "absent"])
def test_a_failed_download_leaves_nothing(screen, folder):
    with pytest.raises(GpovaeError, match=rf"data.bin could not be downloaded from http.*/{folder}/data.bin .*put the file with sha256 {SHA256} at .*test.data.bin"):
        datasets.fetch(screen(folder), progress=False)
    assert not [p for p in datasets.data_folder().rglob("*") if p.is_file()]
    assert datasets.fetch(screen("good"), progress=False)[0].read_bytes() == CONTENT


def test_no_network(screen):
    with pytest.raises(GpovaeError, match="(?s)could not be downloaded.*Without network, put the file"):
        datasets.fetch(replace(screen("good"), url="http://127.0.0.1:9"), progress=False)


def test_a_wrong_file_on_disk_is_named_and_kept(screen, server):
    path, = datasets.paths(screen("good"))
    path.parent.mkdir(parents=True); path.write_bytes(b"mine")
    with pytest.raises(GpovaeError, match=f"data.bin is not the published file: expected sha256 {SHA256}, found {hashlib.sha256(b'mine').hexdigest()}"):
        datasets.fetch(screen("good"))
    assert path.read_bytes() == b"mine" and server.requests == 0


def test_registry_is_complete():
    table = datasets.available()
    assert list(table.index) == list(datasets.REGISTRY) and table.citation.str.len().min() > 0
    for d in datasets.REGISTRY.values(): assert callable(d.load) and bool(d.files) == bool(d.url) == bool(d.folder) and all(len(h) == 64 for h in d.files.values())


@pytest.mark.parametrize("name, hint", [("Simulated", "simulated"), ("schraivogel", "schraivogel2020")])
def test_unknown_name_gets_the_nearest(name, hint):
    for f in (datasets.load, datasets.prepare_arguments):
        with pytest.raises(GpovaeError, match=f"Did you mean {hint}"): f(name)


@pytest.mark.parametrize("kinetics", KINETICS)
@pytest.mark.parametrize("seed", range(3))
def test_simulated_survives_a_file(kinetics, seed, tmp_path):
    a = simulated(300, 60, 6, seed=seed, kinetics=kinetics, unmeasured=1, n_batches=2)
    a.write_h5ad(tmp_path / "a.h5ad"); b = ad.read_h5ad(tmp_path / "a.h5ad")
    assert (a.X != b.X).nnz == 0 and (a.obs.gene.astype(str) == b.obs.gene.astype(str)).all()
    for k, v in a.uns["gpovae_truth"].items(): np.testing.assert_array_equal(v, b.uns["gpovae_truth"][k])
    assert np.isfinite(a.uns["gpovae_truth"]["knockdown"]).sum() == 6 and (a.uns["gpovae_truth"]["knockdown"][:6] < 0).all()
    with pytest.warns(UserWarning, match="not among the measured"): register(b)


def test_simulated_without_artifacts():
    a = simulated(300, 60, 6, fail_share=0, doublet_share=0, n_downstream=0)
    assert not a.obs.true_fail.any() and not a.obs.true_doublet.any() and len(a.uns["gpovae_truth"]["genes"]) == 6
