"""An address stands for a file: fetched once, resumed, fetched again when it has changed, and never
mistaken for a name of this machine.
"""

import functools
import http.server
import re
import threading
import warnings

import anndata as ad
import fsspec
import numpy as np
import pytest
from click.testing import CliRunner

import gpovae
from gpovae.app.cli import main
from gpovae.core.errors import GpovaeError
from gpovae.data import remote
from gpovae.data.files import read_screen
from gpovae.data.prepare import prepare_file
from gpovae.data.remote import at_hand

LABELS = dict(perturbation_key="gene", control="non-targeting", size_factor="all")


class Site(http.server.SimpleHTTPRequestHandler):
    "A web site that writes down what is asked of it, and knows ranges; it may hang up."

    def do_GET(self):
        span = self.headers["Range"]
        self.server.log.append((self.path, span))
        if self.path.startswith("/secret"):
            return self.send_error(403)
        if not span and not self.server.hangs_up:
            return super().do_GET()
        body = open(self.translate_path(self.path), "rb").read()
        start = int((span or "bytes=0-")[6:-1])
        self.send_response(206 if span else 200)
        self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : len(body) // 2 if self.server.hangs_up else None])
        self.server.hangs_up = False

    def log_message(self, *args):
        pass


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("GPOVAE_DATA", str(tmp_path / "cache"))
    handler = functools.partial(Site, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.log, server.hangs_up, server.folder = [], False, folder
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def raw(site, screen):
    screen.write_h5ad(site.folder / "raw.h5ad")
    return f"{site.address}/raw.h5ad"


def shell(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_prepared_from_an_address_is_prepared_from_the_file(site, raw, tmp_path):
    places = [tmp_path / "of_address.h5ad", tmp_path / "of_file.h5ad"]
    for source, place in zip((raw, site.folder / "raw.h5ad"), places, strict=True):
        assert prepare_file(source, place, progress=False, **LABELS)
    of_address, of_file = map(read_screen, places)
    assert (of_address.X != of_file.X).nnz == 0
    assert of_address.obs.equals(of_file.obs) and of_address.var.equals(of_file.var)
    assert not prepare_file(raw, places[0], progress=False, **LABELS)  # nothing is left to do
    assert [path for path, _ in site.log] == ["/raw.h5ad"]


def test_the_record_names_the_address_without_secrets(raw, tmp_path):
    signed = raw.replace("//", "//me:secret@") + "?signature=abc"
    assert remote.without_secrets(signed) == raw
    prepare_file(f"{raw}?signature=abc", tmp_path / "p.h5ad", progress=False, **LABELS)
    source = read_screen(tmp_path / "p.h5ad").uns["gpovae_prepare"]["source"]
    assert source["parameters"]["file_url"] == raw
    assert b"signature=abc" not in (tmp_path / "p.h5ad").read_bytes()


def test_commands_take_addresses_and_write_none(site, raw, tmp_path):
    keys = ["--perturbation-key", "gene", "--control", "non-targeting"]
    assert "900 cells x 60 genes" in shell("check", raw, *keys).output
    prepared = site.folder / "prepared.h5ad"
    assert shell("prepare", raw, prepared, *keys, "--quiet").exit_code == 0
    address = f"{site.address}/prepared.h5ad"
    result = shell("power", address, "--quiet", "--json")
    assert result.exit_code == 0, result.output
    run = tmp_path / "run"
    result = shell("train", address, "--out", run, "--max-epochs", 1, "--quiet")
    assert result.exit_code == 0, result.output
    for command in (
        ["prepare", prepared, "s3://bucket/new.h5ad"],
        ["train", prepared, "--out", "s3://bucket/run"],
        ["predict", run, "--out", "s3://bucket/effects.csv"],
    ):
        result = shell(*command)
        assert result.exit_code == 2 and "is an address" in result.output, result.output
    with pytest.raises(GpovaeError, match="is an address"):
        prepare_file(prepared, "s3://bucket/new.h5ad")


def test_a_table_of_cells_may_lie_elsewhere(site, screen, tmp_path):
    bare = screen.copy()
    bare.obs = bare.obs.drop(columns="gene")
    bare.write_h5ad(site.folder / "bare.h5ad")
    screen.obs[["gene"]].to_csv(site.folder / "cells.csv")
    cells = f"{site.address}/cells.csv"
    address = f"{site.address}/bare.h5ad"
    assert prepare_file(address, tmp_path / "p.h5ad", cells, progress=False, **LABELS)
    assert gpovae.check(address, cells=cells, **LABELS).status < 2


def test_a_broken_line_goes_on_where_it_broke(site, raw):
    site.hangs_up = True
    with pytest.raises(GpovaeError, match="What came is kept: run again to go on"):
        at_hand(raw, progress=False)
    assert read_screen(at_hand(raw, progress=False)).n_obs == 900
    whole, remainder = [span for _, span in site.log]
    assert whole is None and int(re.fullmatch(r"bytes=(\d+)-", remainder)[1]) > 100_000


def test_half_of_an_earlier_file_is_not_continued(site, raw, screen):
    site.hangs_up = True
    with pytest.raises(GpovaeError):
        at_hand(raw, progress=False)
    screen[:700].write_h5ad(site.folder / "raw.h5ad")
    assert read_screen(at_hand(raw, progress=False)).n_obs == 700
    assert [span for _, span in site.log] == [None, None]


def test_a_copy_is_used_until_the_file_changes(site, raw, screen):
    assert at_hand(raw, progress=False) == at_hand(raw, progress=False)
    assert len(site.log) == 1
    screen[:700].write_h5ad(site.folder / "raw.h5ad")
    assert read_screen(at_hand(raw, progress=False)).n_obs == 700


def test_without_network_the_copy_serves_with_a_warning(site, raw):
    path = at_hand(raw, progress=False)
    site.shutdown()
    site.server_close()
    with pytest.warns(UserWarning, match="was not reached.*copy fetched earlier is used"):
        assert at_hand(raw, progress=False) == path
    with pytest.raises(GpovaeError, match="could not be fetched"):
        at_hand(raw.replace("raw", "other"), progress=False)


def test_what_cannot_be_fetched_is_refused_by_name(site):
    for address, words in {
        f"{site.address}/other.h5ad": "There is nothing at {}",
        f"{site.address}/secret.h5ad": "{} could not be fetched .*403",
        "nowhere://bucket/raw.h5ad": "{} cannot be fetched: Protocol not known: nowhere",
        "s3://bucket/raw.h5ad": "{} cannot be fetched: Install s3fs",
        f"{site.address}/empty.zarr": "There is nothing at {}|{} is a folder whose files",
    }.items():
        with pytest.raises(GpovaeError, match=words.replace("{}", re.escape(address))):
            at_hand(address, progress=False)
        assert shell("train", address, "--out", "run").exit_code != 0


def test_a_store_of_a_web_site(site, screen):
    with ad.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
        screen.write_zarr(site.folder / "raw.zarr")
    store = at_hand(f"{site.address}/raw.zarr", progress=False)
    assert (read_screen(store).X != screen.X).nnz == 0
    files = [path for path in store.rglob("*") if path.is_file()]
    assert len(files) == sum(p.is_file() for p in (site.folder / "raw.zarr").rglob("*"))


def test_names_with_spaces_come_as_they_are(site, screen):
    named = screen.copy()
    named.obs["cell type"] = "K562"
    with ad.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
        named.write_zarr(site.folder / "raw.zarr")
    store = at_hand(f"{site.address}/raw.zarr", progress=False)
    assert (read_screen(store).obs["cell type"] == "K562").all()


def listing(site, *links):
    "A folder whose page shows these links."
    (site.folder / "odd.zarr").mkdir()
    (site.folder / "odd.zarr/zarr.json").write_text("{}")
    shown = "".join(f'<a href="{link}">x</a>' for link in links)
    (site.folder / "odd.zarr/index.html").write_text(f"<html>{shown}</html>")
    return f"{site.address}/odd.zarr"


@pytest.mark.parametrize("link", ["../../../raw.h5ad", "%2e%2e/%2e%2e/%2e%2e/raw.h5ad"])
def test_a_site_writes_nowhere_else(site, raw, link, tmp_path):
    with pytest.raises(GpovaeError, match="which does not lie in it"):
        at_hand(listing(site, "zarr.json", link), progress=False)
    assert not list((tmp_path / "cache").rglob("raw.h5ad"))


def test_links_that_sort_a_page_are_no_files(site):
    store = at_hand(listing(site, "?C=N;O=D", "zarr.json"), progress=False)
    assert [path.name for path in store.iterdir()] == ["zarr.json"]


def test_a_store_that_tells_no_size(site, monkeypatch):
    elsewhere = fsspec.filesystem("memory")
    elsewhere.pipe("/bucket/raw.h5ad", b"1" * 1000)
    monkeypatch.setattr(type(elsewhere), "info", lambda *_, **__: dict(type="file", size=None))
    assert at_hand("memory://bucket/raw.h5ad", progress=False).stat().st_size == 1000


def test_quiet_is_known_before_a_file_is_fetched(site, raw, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(remote, "at_hand", lambda path, progress=True: shown.append(progress))
    shell("train", raw, "--out", tmp_path / "run", "--quiet")
    shell("train", raw, "--out", tmp_path / "run")
    assert shown == [False, True]


def test_a_store_of_a_bucket_goes_on(site, screen, monkeypatch):
    elsewhere = fsspec.filesystem("memory")
    with ad.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
        screen.write_zarr(site.folder / "raw.zarr")
    elsewhere.put(str(site.folder / "raw.zarr"), "/bucket/raw.zarr", recursive=True)
    span = []
    real = type(elsewhere)._open

    def breaking(self, path, *args, **kwargs):
        span.append(path)
        if len(span) == 6:
            raise ConnectionResetError("the line broke")
        return real(self, path, *args, **kwargs)

    monkeypatch.setattr(type(elsewhere), "_open", breaking)
    with pytest.raises(GpovaeError, match="the line broke"):
        at_hand("memory://bucket/raw.zarr", progress=False)
    store = at_hand("memory://bucket/raw.zarr", progress=False)
    assert (read_screen(store).X != screen.X).nnz == 0
    repeated = [path for path in set(span) if span.count(path) > 1]
    assert repeated == [span[5]]


def test_half_of_a_file_of_a_bucket_goes_on(site):
    elsewhere = fsspec.filesystem("memory")
    body = np.random.default_rng(0).bytes(100_000)
    elsewhere.pipe("/bucket/raw.h5ad", body)
    address = "memory://bucket/raw.h5ad"
    whole = at_hand(address, progress=False)
    whole.with_name("raw.h5ad.part").write_bytes(body[:40_000])
    whole.unlink()
    assert at_hand(address, progress=False).read_bytes() == body


@pytest.mark.parametrize("name", ["raw.h5ad", "C://raw.h5ad", "a:b.h5ad", "xx::y.h5ad"])
def test_names_of_this_machine_stay(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert at_hand(name) == name
