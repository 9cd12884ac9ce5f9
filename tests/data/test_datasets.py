"""Published screens come as published or not at all: downloads resume, are checked, and leave
nothing wrong behind; counts come back from logarithms.
"""

import functools
import hashlib
import http.server
import json
import os
import re
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pooch
import pytest
import requests
import scipy.sparse as sp

from gpovae.core.errors import GpovaeError
from gpovae.data import datasets, download, readers
from gpovae.data.download import Dataset, File
from gpovae.data.kinetics import KINETICS
from gpovae.data.register import register
from gpovae.data.simulate import simulated

from places import DATA, TAPSEQ_CELLS


@functools.cache
def replogle_like(storage=np.asarray):
    """Bytes of an h5ad like those of figshare.

    Dense float32, Ensembl ids in front, symbols beside them, gem groups.
    """
    a = simulated(400, 60, 5, seed=0, n_batches=3)
    obs = pd.DataFrame(
        dict(
            gem_group=a.obs["batch"].cat.codes.to_numpy(), gene=a.obs["gene"].astype(str).to_numpy()
        ),
        index=a.obs_names,
    )
    var = pd.DataFrame(
        dict(gene_name=a.var_names.to_numpy(str)), index=[f"ENSG{i:011d}" for i in range(a.n_vars)]
    )
    return (
        h5ad_bytes(
            ad.AnnData(a.X.toarray() if storage is np.asarray else storage(a.X), obs=obs, var=var)
        ),
        a,
    )


def h5ad_bytes(adata):
    with tempfile.TemporaryDirectory() as folder:
        adata.write_h5ad(Path(folder) / "a.h5ad")
        return (Path(folder) / "a.h5ad").read_bytes()


# trailing bytes do no harm, and a file of several chunks can break
CONTENT = replogle_like()[0] + bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()
CUT = 200_000


class Upstream(http.server.BaseHTTPRequestHandler):
    """The first part of the path says how the server behaves.

    `log`: path, Range asked for, bytes sent.
    """

    def log_message(self, *args):
        pass

    def reply(self, status, body, headers=(), cut=None):
        self.send_response(status)
        for k, v in dict(headers).items():
            self.send_header(k, v)
        self.send_header("Content-Length", str(len(body)))
        self.server.log.append((self.path, self.headers["Range"], len(body[:cut])))
        self.end_headers()
        self.wfile.write(body[:cut])

    def do_GET(self):
        how = self.path.split("/")[1]
        asked = self.headers["Range"]
        if how in self.server.pages:
            return self.reply(200, self.server.pages[how])
        if how in ("500", "503", "404", "202"):
            return self.reply(int(how), b"")
        body = CONTENT[:-1] + b"x" if how == "bad" else CONTENT
        if asked is None or how == "norange":
            return self.reply(200, body, cut=CUT if how == "cut" else None)
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        if how == "shifted":
            start += 1
        if start >= len(body):
            return self.reply(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        self.reply(
            206,
            body[start:],
            {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"},
            cut=CUT if how == "cut" else None,
        )


@pytest.fixture
def server():
    s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    s.log = []
    s.pages = {}
    threading.Thread(target=s.serve_forever, args=(0.02,), daemon=True).start()
    s.url = f"http://127.0.0.1:{s.server_port}"
    yield s
    s.shutdown()
    s.server_close()


@pytest.fixture
def dataset(server, tmp_path, monkeypatch):
    """A dataset whose one file lies on the local server.

    `dataset('bad')` takes a server that behaves so.
    """
    monkeypatch.setenv("GPOVAE_DATA", str(tmp_path / "data"))
    return lambda how, checksum=f"sha256:{SHA256}": Dataset(
        "Test",
        load=lambda: None,
        folder="test",
        files=(File("data.h5ad", f"{server.url}/{how}/77", checksum),),
    )


def left():
    return {p.name for p in download.data_folder().rglob("*") if p.is_file()}


def test_fetched_once(dataset, server, capsys, monkeypatch):
    monkeypatch.setattr(download, "Bar", functools.partial(download.Bar, delay=0))
    (path,) = download.fetch(dataset("good"))
    shown = capsys.readouterr().err
    assert (
        path.read_bytes() == CONTENT
        and left() == {"data.h5ad"}
        and re.search(r"data\.h5ad: .* of .*B, [\d:]+ gone", shown)
    ), shown
    assert download.fetch(dataset("good")) == [path] and len(server.log) == 1
    download.fetch(replace(dataset("good"), folder="again"), progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("how", ["bad", "503", "500", "404", "202"])
def test_a_failed_download_leaves_nothing(dataset, how):
    with pytest.raises(
        GpovaeError,
        match=(
            rf"data.h5ad could not be downloaded from http.*/{how}/77 .*put the file .hash"
            rf" sha256:{SHA256}. at .*test.data.h5ad, or set GPOVAE_DATA to the folder that holds"
            r" test/"
        ),
    ) as e:
        download.fetch(dataset(how), progress=False)
    assert not left() and "run again" not in str(e.value)
    assert download.fetch(dataset("good"), progress=False)[0].read_bytes() == CONTENT


def test_a_broken_line_is_resumed(dataset, server):
    """Each attempt brings what is missing.

    Nothing appears under the target's name before all is there.
    """
    rounds = -(-len(CONTENT) // CUT)
    kept = 0
    assert rounds >= 3
    for i in range(rounds - 1):
        with pytest.raises(
            GpovaeError,
            match=(
                r"the line broke after [\d,]+ of [\d,]+ bytes.* The [\d,]+ bytes that came are kept"
                r" in .*data.h5ad.part: run again to go on"
            ),
        ):
            download.fetch(dataset("cut"), progress=False)
        _, asked, sent = server.log[-1]
        assert asked == (f"bytes={kept}-" if i else None) and left() == {"data.h5ad.part"}
        part = (download.data_folder() / "test" / "data.h5ad.part").read_bytes()
        assert kept < len(part) <= kept + sent and part == CONTENT[: len(part)]
        kept = len(part)
    (path,) = download.fetch(dataset("good"), progress=False)
    assert path.read_bytes() == CONTENT and left() == {"data.h5ad"}
    assert server.log[-1][1:] == (f"bytes={kept}-", len(CONTENT) - kept)  # only the rest was sent


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, requests.ConnectionError, OSError])
def test_an_interrupt_is_resumed(dataset, server, monkeypatch, interruption):
    def some(self, size):
        yield self.raw.read(size)
        raise interruption("enough")

    with monkeypatch.context() as m:
        m.setattr(requests.Response, "iter_content", some)
        with pytest.raises(KeyboardInterrupt if interruption is KeyboardInterrupt else GpovaeError):
            download.fetch(dataset("good"), progress=False)
    assert left() == {"data.h5ad.part"}
    assert download.fetch(dataset("good"), progress=False)[
        0
    ].read_bytes() == CONTENT and left() == {"data.h5ad"}
    assert server.log[-1][1] == f"bytes={2**16}-"


def part_of(dataset, content):
    part = download.paths(dataset)[0].with_name("data.h5ad.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(content)


@pytest.mark.parametrize(
    "how, content, requests_made",
    [
        ("norange", CONTENT[:5000], 1),  # the server sends everything: from the start
        ("shifted", CONTENT[:5000], 2),  # not the rest that was asked for
        ("good", CONTENT, 1),  # killed between the last byte and the move: 416, nothing is sent
        ("good", CONTENT + b"more", 2),  # longer than the file
        ("good", b"", 1),
    ],
    ids=["range ignored", "another range", "whole", "too long", "empty"],
)
def test_what_is_left_of_an_earlier_attempt(dataset, server, how, content, requests_made):
    part_of(dataset(how), content)
    assert download.fetch(dataset(how), progress=False)[0].read_bytes() == CONTENT and left() == {
        "data.h5ad"
    }
    assert len(server.log) == requests_made
    if content == CONTENT:
        assert server.log[-1][2] == 0


def test_a_wrong_part_goes_only_when_its_hash_says_so(dataset):
    part_of(dataset("good"), b"another file")
    with pytest.raises(GpovaeError, match="does not match the known hash"):
        download.fetch(dataset("good"), progress=False)
    assert not left()
    assert download.fetch(dataset("good"), progress=False)[0].read_bytes() == CONTENT


def test_no_network(dataset):
    offline = replace(
        dataset("good"), files=(File("data.h5ad", "http://127.0.0.1:9/77", f"sha256:{SHA256}"),)
    )
    with pytest.raises(
        GpovaeError,
        match=(
            r"(?s)data.h5ad could not be downloaded from http://127.0.0.1:9/77 .*Without network,"
            rf" put the file .hash sha256:{SHA256}. at .*data.test.data.h5ad, or set GPOVAE_DATA"
        ),
    ):
        download.fetch(offline, progress=False)
    assert not left()


def test_a_wrong_file_on_disk_is_named_and_kept(dataset, server):
    (path,) = download.paths(dataset("good"))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(
        GpovaeError,
        match=(
            f"data.h5ad is not the published file: expected sha256 {SHA256}, found"
            f" {hashlib.sha256(b'mine').hexdigest()}"
        ),
    ):
        download.fetch(dataset("good"))
    assert path.read_bytes() == b"mine" and not server.log


def figshare(server, **changed):
    "An article as figshare's API lists it."
    entry = (
        dict(
            id=77,
            name="data.h5ad",
            size=len(CONTENT),
            is_link_only=False,
            download_url=f"{server.url}/good/77",
            supplied_md5=MD5,
            computed_md5=MD5,
            mimetype="application/x-hdf",
        )
        | changed
    )
    server.pages["v2"] = json.dumps(
        dict(id=20029387, files=[entry | dict(id=5, computed_md5="0" * 32), entry])
    ).encode()
    return f"{server.url}/v2/articles/20029387"


def test_hash_from_figshare(dataset, server):
    record = figshare(server)
    (path,) = download.fetch(dataset("good", record), progress=False)
    assert path.read_bytes() == CONTENT and left() == {"data.h5ad", "data.h5ad.checked"}
    asked = len(server.log)
    server.pages.clear()  # the record is gone
    assert (
        download.fetch(dataset("good", record), progress=False) == [path]
        and len(server.log) == asked
    )
    os.utime(path)
    # touched: hashed again, against the hash that was noted
    assert download.fetch(dataset("good", record)) == [path]
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(
        GpovaeError,
        match=(
            f"not the published file: expected md5 {MD5}, found"
            f" {hashlib.md5(CONTENT[:-1]).hexdigest()}"
        ),
    ):
        download.fetch(dataset("good", record))


def test_figshare_says_otherwise(dataset, server):
    with pytest.raises(GpovaeError, match="does not match the known hash"):
        download.fetch(dataset("good", figshare(server, computed_md5="1" * 32)), progress=False)
    with pytest.raises(GpovaeError, match="articles/20029387 does not list data.h5ad"):
        download.fetch(dataset("good", figshare(server, id=78)), progress=False)
    with pytest.raises(
        GpovaeError, match="could not be downloaded .*hash published at http.*/500/articles"
    ):
        download.fetch(dataset("good", f"{server.url}/500/articles/1"), progress=False)
    server.pages["v2"] = b"<html>not now</html>"
    with pytest.raises(GpovaeError, match="could not be downloaded .*hash published at"):
        download.fetch(dataset("good", f"{server.url}/v2/articles/20029387"), progress=False)
    assert not left()


def test_a_file_put_in_place_by_hand(dataset, server):
    """Where there is no network, its hash cannot be known.

    It is used, and said so; with network it is checked once.
    """
    there = dataset("good", "http://127.0.0.1:9/v2/articles/1")
    (path,) = download.paths(there)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    with pytest.warns(UserWarning, match="data.h5ad could not be checked"):
        assert download.fetch(there) == [path]
    assert download.fetch(dataset("good", figshare(server))) == [path] and left() == {
        "data.h5ad",
        "data.h5ad.checked",
    }
    path.with_name("data.h5ad.checked").unlink()
    path.write_bytes(b"mine")
    with pytest.raises(GpovaeError, match="not the published file"):
        download.fetch(dataset("good", figshare(server)))


@pytest.mark.parametrize("legacy", [True, False])
def test_hash_from_zenodo(dataset, server, monkeypatch, legacy):
    "The record through pooch's own code, its two addresses pointed at the local server."
    files = (
        [dict(key="data.h5ad", checksum=f"md5:{MD5}", links=dict(self=""))]
        if legacy
        else [dict(filename="data.h5ad", checksum=MD5)]
    )
    server.pages["records"] = json.dumps(dict(id=7041849, files=files)).encode()
    monkeypatch.setattr(
        pooch.downloaders,
        "doi_to_url",
        lambda doi, **_: f"https://zenodo.org/records/{doi.rsplit('.', 1)[1]}",
    )
    monkeypatch.setattr(pooch.downloaders.ZenodoRepository, "base_api_url", f"{server.url}/records")
    (path,) = download.fetch(dataset("good", "doi:10.5281/zenodo.7041849"), progress=False)
    assert path.read_bytes() == CONTENT and server.log[0][0] == "/records/7041849"
    with pytest.raises(GpovaeError, match="zenodo.7041849 does not list other.h5ad"):
        download.published_hash(File("other.h5ad", "", "doi:10.5281/zenodo.7041849"))


def test_default_folder(monkeypatch):
    monkeypatch.delenv("GPOVAE_DATA", raising=False)
    assert download.data_folder() == Path(pooch.os_cache("gpovae"))


@pytest.fixture
def served(server, tmp_path, monkeypatch):
    "Lets the local server stand for the upstream of a screen of the table."
    monkeypatch.setenv("GPOVAE_DATA", str(tmp_path / "data"))

    def serve(name, *contents):
        entry = datasets.REGISTRY[name]
        files = []
        for i, (file, content) in enumerate(zip(entry.files, contents, strict=True)):
            server.pages[f"file{i}"] = content
            md5 = f"md5:{hashlib.md5(content).hexdigest()}"
            files.append(file._replace(url=f"{server.url}/file{i}", checksum=md5))
        monkeypatch.setitem(datasets.REGISTRY, name, replace(entry, files=tuple(files)))

    return serve


@pytest.mark.parametrize("name", ["replogle2022_k562", "replogle2022_rpe1"])
def test_replogle(served, server, name):
    content, raw = replogle_like()
    served(name, content)
    screen = datasets.load(name)
    # on disk, the same
    assert (
        screen.shape == raw.shape
        and not isinstance(screen.X, (np.ndarray, sp.spmatrix))
        and (screen.X[:] != raw.X).nnz == 0
    )
    assert (
        list(screen.obs["gene"]) == list(raw.obs["gene"]) and screen.obs["gem_group"].nunique() == 3
    )
    assert set(screen.obs["perturbation_type"]) == {"knockdown"}
    assert datasets.path(name).name.endswith("_raw_singlecell_01.h5ad") and left() == {
        datasets.path(name).name,
        f"{name}_by_cell.h5ad",
    }
    written = (download.data_folder() / "replogle2022" / f"{name}_by_cell.h5ad").stat().st_mtime_ns
    assert datasets.load(name).shape == raw.shape and len(server.log) == 1
    assert (
        download.data_folder() / "replogle2022" / f"{name}_by_cell.h5ad"
    ).stat().st_mtime_ns == written
    assert datasets.prepare_arguments(name) == dict(
        perturbation_key="gene", control="non-targeting", batch_key="gem_group"
    )


def relabelled(labels):
    "Bytes of an h5ad like those of scPerturb, counts by gene."
    a = simulated(400, 60, 5, seed=0)
    raw = (
        a.obs["gene"]
        .astype(str)
        .map(dict(zip(a.obs["gene"].value_counts().index, labels, strict=True)))
    )
    return (
        h5ad_bytes(
            ad.AnnData(
                sp.csc_matrix(a.X),
                obs=pd.DataFrame(
                    dict(perturbation=pd.Categorical(raw), nperts=2, perturbation_type="CRISPR"),
                    index=a.obs_names,
                ),
                var=pd.DataFrame(dict(ensembl_id="?"), index=a.var_names),
            )
        ),
        a,
        raw,
    )


def test_norman(served):
    content, a, raw = relabelled(["control", "KLF1", "CBL", "CBL_CNN1", "KLF1_MAP2K6", "MAP2K6"])
    served("norman2019", content)
    screen = datasets.norman2019()
    assert (
        set(screen.obs["perturbation"])
        == {"control", "KLF1", "CBL", "CBL+CNN1", "KLF1+MAP2K6", "MAP2K6"}
        and (screen.X[:] != a.X).nnz == 0
    )
    with datasets.opened("norman2019") as s:
        assert list(s.obs["perturbation"]) == list(raw.str.replace("_", "+"))
        # the file says CRISPR, which scPerturb writes for everything
        assert set(s.obs["perturbation_type"]) == {"activation"}
    assert set(screen.obs["perturbation_type"]) == {"activation"}
    assert left() == {"NormanWeissman2019_filtered.h5ad", "norman2019_by_cell.h5ad"}


def test_adamson(served):
    content, a, raw = relabelled(
        ["63(mod)_pBA580", "OST4_pDS353", "*", None, "HSPA5_pDS017", "Gal4-4(mod)_pBA582"]
    )
    served("adamson2016", content)
    screen = datasets.adamson2016()
    known = raw.isin(
        ["63(mod)_pBA580", "OST4_pDS353", "HSPA5_pDS017", "Gal4-4(mod)_pBA582"]
    ).to_numpy()
    assert (
        list(screen.obs["perturbation"].unique().sort_values()) == ["HSPA5", "OST4", "control"]
        and screen.n_obs == known.sum() < a.n_obs
    )
    assert (screen.X[:] != a.X[known]).nnz == 0


def test_a_copy_that_fails_leaves_the_name_free(served, monkeypatch):
    served("norman2019", relabelled(["control", "A", "B", "A_B", "C", "D"])[0])

    def fails(path, *_, **__):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as m:
        m.setattr(datasets, "write_screen", fails)
        with pytest.raises(OSError):
            datasets.norman2019()
    assert "norman2019_by_cell.h5ad" not in left()
    assert datasets.norman2019().n_obs == 400


def test_every_screen_can_be_opened(devel):
    for name in ("simulated", "schraivogel2020", "mcfaline2023"):
        with datasets.opened(name) as s:
            a = datasets.load(name)
            assert (
                list(s.obs) == list(a.obs)
                and (sp.vstack(list(s.blocks())) != a.X).nnz == 0
                and len(list(s.blocks())) > 0
            )


class RObject:
    "Writes an object of R with slots: `rdata` reads those of class S4, but writes none."

    def __init__(self, name, **slots):
        self.slots = slots | {"class": name}

    @classmethod
    def matrix(cls, counts, features, cells):
        "(cells, features) counts as R has them: features x cells, in the layout of the screen."
        turned = sp.coo_matrix(sp.coo_matrix(counts).T)
        dim = np.array(turned.shape, np.int32)
        slots = dict(Dim=dim, Dimnames=[np.array(features), cells], x=turned.data.astype(float))
        if cells is None:
            places = dict(i=turned.row.astype(np.int32), j=turned.col.astype(np.int32))
            return cls("dgTMatrix", **slots, **places)
        by_cell = turned.tocsc()
        slots["x"] = by_cell.data.astype(float)
        return cls("dgCMatrix", **slots, i=by_cell.indices, p=by_cell.indptr)


def r_bytes(content, write):
    "Bytes of an .rda (of a dict) or .RDS."
    rdata = pytest.importorskip("rdata")
    from rdata.conversion.to_r import DEFAULT_CLASS_MAP, build_r_object
    from rdata.parser import RObjectType

    def constructor(data, converter):
        attributes = converter.convert_to_r_attributes(data.slots)
        return build_r_object(RObjectType.VEC, value=[], is_object=True, attributes=attributes)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        constructors = {**DEFAULT_CLASS_MAP, RObject: constructor}
        getattr(rdata, write)(path, content, constructor_dict=constructors)
        return path.read_bytes()


def test_papalexi(served):
    "A cell has the target of its top guide: at least 5 UMIs, and more than 0.8 of all."
    counts = np.arange(12).reshape(6, 2)
    #              A1 A2 NT
    guides = [[5, 0, 0], [4, 0, 0], [8, 2, 0], [9, 2, 0], [0, 1, 30], [0, 7, 1]]
    stored = dict(
        response_matrix=RObject.matrix(counts, ["A", "B"], None),
        grna_matrix=RObject.matrix(guides, ["Ag1", "Ag2", "NTg1"], None),
        extra_covariates=pd.DataFrame(
            dict(bio_rep=pd.Categorical(list("xxxyyy"))), index=pd.RangeIndex(1, 7)
        ),
        grna_target_data_frame=pd.DataFrame(
            dict(
                grna_id=np.array(["NTg1", "Ag2", "Ag1"]),
                grna_target=pd.Categorical(["non-targeting", "A", "A"]),
            ),
            index=pd.RangeIndex(1, 4),
        ),
    )
    served("papalexi2021", r_bytes(dict(lowmoi_example_data=stored), "write_rda"))
    screen = datasets.papalexi2021(progress=False)
    kept = [0, 3, 4, 5]
    np.testing.assert_array_equal(screen.X.toarray(), counts[kept])
    assert list(screen.obs_names) == [f"cell_{i + 1}" for i in kept]
    assert list(screen.obs["guide"]) == ["Ag1", "Ag1", "NTg1", "Ag2"]
    assert list(screen.obs["gene"]) == ["A", "A", "non-targeting", "A"]
    assert list(screen.obs["batch"]) == list("xyyy")
    assert set(screen.obs["perturbation_type"]) == {"knockout"}
    assert datasets.path("papalexi2021").name == "lowmoi_example_data.rda"


def test_scmageck(served):
    "Guides join cells by barcode; a cell without counts, or with two guides, is left out."
    cells = np.array(["AC", "AG", "AT", "CA", "CC"])
    counts = np.array([[1, 0], [0, 2], [0, 0], [3, 1], [1, 1]])
    assay = RObject("Assay", counts=RObject.matrix(counts, ["TP53", "MKI67"], cells))
    meta = pd.DataFrame(dict(nUMI=np.arange(5) * 100.0), index=pd.Index(cells, dtype=object))
    seurat = RObject("Seurat", assays=dict(RNA=assay), **{"meta.data": meta})
    control = "NonTargetingControlGuideForHuman"
    rows = [
        ("AC", "TP53_sg_1", "TP53", 1),
        ("AG", "TP53_sg_1", "TP53", 4),
        ("AG", "TP53_sg_2", "TP53", 1),  # 0.8 is not more than 0.8
        ("AT", "TP53_sg_1", "TP53", 9),  # no counts
        ("CA", f"{control}_sg_3", control, 9),
        ("CA", "TP53_sg_2", "TP53", 2),
        ("GG", "TP53_sg_2", "TP53", 9),  # not among the cells
    ]
    table = pd.DataFrame(
        [(f"{cell}-1", guide, "ACGT", gene, 1, n) for cell, guide, gene, n in rows],
        columns=["cell", "barcode", "sgrna", "gene", "read_count", "umi_count"],
    )
    content = table.to_csv(sep="\t", index=False).encode()
    served("scmageck_mcf10a", r_bytes(seurat, "write_rds"), content)
    screen = datasets.scmageck_mcf10a(progress=False)
    np.testing.assert_array_equal(screen.X.toarray(), counts[[0, 3]])
    assert list(screen.obs_names) == ["AC", "CA"]
    assert list(screen.obs["gene"]) == ["TP53", "non-targeting"]
    assert list(screen.obs["guide"]) == ["TP53_sg_1", f"{control}_sg_3"]
    assert list(screen.obs["size"]) == [0, 300]
    assert set(screen.obs["perturbation_type"]) == {"knockout"}


def test_files_of_r_need_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdata", None)
    with pytest.raises(GpovaeError, match=r"some.rda is a file of R.*pip install 'gpovae\[r\]'"):
        readers.read_r(Path("some.rda"))


@pytest.fixture(scope="module")
def knockouts():
    "The two screens of knockouts, as published."
    pytest.importorskip("rdata")
    for folder in ("papalexi2021_eccite", "scmageck_mcf10a"):
        if not (DATA / folder).is_dir():
            pytest.skip(f"needs the files at {DATA}/{folder} (set GPOVAE_DATA)")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("GPOVAE_DATA", str(DATA))
        return {name: datasets.load(name) for name in ("papalexi2021", "scmageck_mcf10a")}


def test_papalexi_cells_and_labels(knockouts):
    a = knockouts["papalexi2021"]
    n = a.obs["gene"].value_counts()
    assert a.shape == (16_093, 299) and n["non-targeting"] == 1912 and len(n) == 26
    assert n["IFNGR1"] == 1056 and n["CUL3"] == 188
    assert len(set(n.index) & set(a.var_names)) == 9
    assert a.obs["batch"].nunique() == 3 and a.obs["guide"].nunique() == 106
    assert a.X.dtype == np.float32 and (a.X.data == np.rint(a.X.data)).all()


def test_scmageck_cells_and_labels(knockouts):
    a = knockouts["scmageck_mcf10a"]
    n = a.obs["gene"].value_counts()
    assert a.shape == (4_550, 28) and len(n) == 30 and n["TP53"] == 296
    assert set(n.index) - set(a.var_names) == {"non-targeting", "MLL2", "MLL3"}
    share = a[:, "MKI67"].X.toarray().ravel() / a.obs["size"]
    of = share.groupby(a.obs["gene"], observed=True).mean()
    assert of["TP53"] > 5 * of["non-targeting"]
    assert (a.obs["size"] > np.asarray(a.X.sum(1)).ravel()).all()


@pytest.mark.parametrize("name", ["papalexi2021", "scmageck_mcf10a"])
def test_knockouts_register_with_their_arguments(knockouts, name):
    with pytest.warns(UserWarning, match="not among the measured"):
        screen = register(knockouts[name].copy(), **datasets.prepare_arguments(name))
    assert set(screen.kinds) == {"knockout"}
    assert len(screen.perturbations) == datasets.REGISTRY[name].perturbations
    assert screen.adata.shape == (datasets.REGISTRY[name].cells, datasets.REGISTRY[name].genes)


@pytest.mark.parametrize("name", ["simulated", "schraivogel2020"])
def test_screens_without_one_file_have_no_path(name):
    with pytest.raises(GpovaeError, match=rf"{name} has \d files, not one"):
        datasets.path(name)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [float, np.float32])
def test_whole_counts(seed, dtype):
    rng = np.random.default_rng(seed)
    c = rng.poisson(rng.gamma(0.5, 4, (200, 40))) * (rng.random((200, 40)) < 0.5)
    c[:40] += (c[:40] > 0) * rng.integers(0, 8, (40, 1))  # cells without a count of 1
    c = c[np.gcd.reduce(c, axis=1) == 1]
    size = c.sum(1) + rng.integers(0, 20_000, len(c))
    v = np.log1p(1e4 * c / size[:, None]).astype(dtype)
    for X in (v, sp.csr_matrix(v), sp.csc_matrix(v)):
        counts, n = readers.whole_counts(X)
        np.testing.assert_array_equal(counts.toarray(), c)
        np.testing.assert_allclose(n, size, rtol=1e-5)
    assert counts.dtype == np.float32 and sp.issparse(counts)


def test_whole_counts_refuses():
    with pytest.raises(GpovaeError, match="cell 1 are not logarithms of whole counts"):
        readers.whole_counts(np.log1p([[1, 2, 3], [1, 2, np.e]]))
    with pytest.raises(GpovaeError, match="Cell 1 has no counts at all"):
        readers.whole_counts([[1.0, 2], [0, 0]])
    with pytest.raises(GpovaeError, match="cell 0 are not"):
        readers.whole_counts(np.log1p([[13, 14, 17.0]]))  # smallest count beyond `most`


@pytest.fixture
def devel(monkeypatch):
    if not (DATA / "perturbench_devel").is_dir():
        pytest.skip(f"needs devel.h5ad at {DATA}/perturbench_devel (set GPOVAE_DATA)")
    monkeypatch.setenv("GPOVAE_DATA", str(DATA))
    return ad.read_h5ad(DATA / "perturbench_devel" / "devel.h5ad")


@pytest.mark.parametrize(
    "name, part, n_cells, perturbations, multiples",
    [
        ("mcfaline2023", "mcfaline23", dict(all=2586, control=300), 9, 0),
        ("norman2019_small", "norman19", dict(all=3375, control=100), 33, 2),
    ],
)
def test_counts_of_perturbench(devel, name, part, n_cells, perturbations, multiples):
    a = datasets.load(name)
    stored = devel[devel.obs["dataset"] == part]
    v = stored.X.toarray()
    c = a.X.toarray().astype(float)
    size = a.obs["size"].to_numpy()
    assert (
        a.shape == (n_cells["all"], 500)
        and sp.isspmatrix_csr(a.X)
        and a.X.dtype == np.float32
        and list(a.obs_names) == list(stored.obs_names)
        and list(a.var_names) == list(stored.var_names)
    )
    assert (c == np.rint(c)).all() and np.abs(np.log1p(1e4 * c / size[:, None]) - v).max() < 1e-6
    assert (
        np.abs(size - np.rint(size)).max() < 1e-6
        and (c.sum(1) < size).all()
        and (size < stored.obs["ncounts"]).all()
    )
    assert ((np.where(c > 0, c, np.inf).min(1) > 1).sum()) == multiples and np.where(
        c > 0, c, np.inf
    ).min(1).max() <= 2
    assert (
        a.obs["perturbation"].nunique() == perturbations + 1
        and (a.obs["perturbation"] == "control").sum() == n_cells["control"]
    )
    assert list(a.obs["perturbation"].astype(str)) == list(
        stored.obs["perturbation"].astype(str)
    ) and list(a.obs["cell_line"].astype(str)) == list(stored.obs["cell_type"].astype(str))


@pytest.mark.parametrize(
    "name, batches", [("mcfaline2023", {"A172", "T98G", "U87MG"}), ("norman2019_small", {"all"})]
)
def test_perturbench_registers_with_its_arguments(devel, name, batches):
    with pytest.warns(UserWarning, match="not among the measured"):
        screen = register(datasets.load(name), **datasets.prepare_arguments(name))
    kind = {"CRISPRi": "knockdown", "CRISPRa": "activation"}
    part = "mcfaline23" if name == "mcfaline2023" else "norman19"
    said = devel.obs["perturbation_type"][devel.obs["dataset"] == part]
    assert set(screen.kinds) == {kind[word] for word in said}
    assert (
        set(screen.batch) == batches
        and len(screen.perturbations) == datasets.REGISTRY[name].perturbations
    )


@pytest.fixture
def tap(monkeypatch):
    if not (DATA / "schraivogel2020_tapseq").is_dir():
        pytest.skip(
            f"needs the files of schraivogel2020 at {DATA}/schraivogel2020_tapseq (set GPOVAE_DATA)"
        )
    monkeypatch.setenv("GPOVAE_DATA", str(DATA))
    return datasets.load("schraivogel2020")


def test_schraivogel_cells_and_labels(tap):
    assert tap.shape == (20_994, 72) and tap.obs.gene.value_counts().to_dict() == TAPSEQ_CELLS
    assert set(tap.obs.gene) - set(tap.var_names) == {"HS2", "non-targeting"}
    assert set(tap.obs.perturbation_type) == {"knockdown"}
    assert tap.obs_names.is_unique and set(tap.obs.batch) == {"TAP1", "TAP2"}
    guide_of = tap.obs.guide.astype(str)
    assert (
        all(g.startswith(t) for g, t in zip(guide_of, tap.obs.gene.astype(str), strict=True))
        and guide_of.nunique() == 86
    )


def test_schraivogel_registers_with_its_arguments(tap):
    with pytest.warns(UserWarning, match="HS2"):
        screen = register(tap, **datasets.prepare_arguments("schraivogel2020"))
    assert (
        screen.size_factor.all()  # the globins leave later
        and screen.is_control.sum() == TAPSEQ_CELLS["non-targeting"]
        and len(screen.perturbations) == 14
    )


def test_registry_is_complete():
    table = datasets.available()
    assert (
        list(table.index)
        == list(datasets.REGISTRY)
        == [
            "simulated",
            "schraivogel2020",
            "mcfaline2023",
            "norman2019_small",
            "papalexi2021",
            "scmageck_mcf10a",
            "adamson2016",
            "norman2019",
            "replogle2022_k562",
            "replogle2022_rpe1",
        ]
    )
    assert list(table) == [
        "title",
        "megabytes",
        "cells",
        "genes",
        "perturbations",
        "at_hand",
        "licence",
        "citation",
        "upstream",
    ]
    assert (
        table.citation.str.len().min() > 0
        and table.licence.str.len().min() > 0
        and table.at_hand["simulated"]
    )
    for name, d in datasets.REGISTRY.items():
        assert d.load is getattr(datasets, name) and bool(d.files) == bool(d.upstream) == bool(
            d.folder
        ) == bool(d.cells)
        for f in d.files:
            algorithm, _, rest = f.checksum.partition(":")
            assert (
                f.megabytes > 0
                and f.url.startswith("https://")
                and (algorithm in ("doi", "https") or (algorithm == "sha256" and len(rest) == 64))
            )


def test_files_lie_where_the_shared_folder_has_them(monkeypatch):
    if not DATA.is_dir():
        pytest.skip(f"needs {DATA} (set GPOVAE_DATA)")
    monkeypatch.setenv("GPOVAE_DATA", str(DATA))
    small = [
        "schraivogel2020",
        "mcfaline2023",
        "norman2019_small",
        "papalexi2021",
        "scmageck_mcf10a",
    ]
    assert datasets.available().at_hand[small].all()


@pytest.mark.parametrize(
    "name, hint", [("Simulated", "simulated"), ("schraivogel", "schraivogel2020")]
)
def test_unknown_name_gets_the_nearest(name, hint):
    for f in (datasets.load, datasets.prepare_arguments):
        with pytest.raises(GpovaeError, match=f"Did you mean {hint}"):
            f(name)


@pytest.mark.parametrize("kinetics", KINETICS)
@pytest.mark.parametrize("seed", range(3))
def test_simulated_survives_a_file(kinetics, seed, tmp_path):
    a = simulated(300, 60, 6, seed=seed, kinetics=kinetics, unmeasured=1, n_batches=2)
    a.write_h5ad(tmp_path / "a.h5ad")
    b = ad.read_h5ad(tmp_path / "a.h5ad")
    assert (a.X != b.X).nnz == 0 and (a.obs.gene.astype(str) == b.obs.gene.astype(str)).all()
    for k, v in a.uns["gpovae_truth"].items():
        np.testing.assert_array_equal(v, b.uns["gpovae_truth"][k])
    assert (
        np.isfinite(a.uns["gpovae_truth"]["knockdown"]).sum() == 6
        and (a.uns["gpovae_truth"]["knockdown"][:6] < 0).all()
    )
    with pytest.warns(UserWarning, match="not among the measured"):
        register(b)


def test_simulated_without_artifacts():
    a = simulated(300, 60, 6, fail_share=0, doublet_share=0, n_downstream=0)
    assert (
        not a.obs.true_fail.any()
        and not a.obs.true_doublet.any()
        and len(a.uns["gpovae_truth"]["genes"]) == 6
    )
