import os

import pytest

from places import DATA

for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    # two workers on two cores; numba would set OpenMP's number too
    os.environ.setdefault(name, "1")
os.environ.setdefault("MPLBACKEND", "agg")
if DATA.is_dir():
    # screens by name are read from where the tests find their files
    os.environ.setdefault("GPOVAE_DATA", str(DATA))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What a module makes for its tests is made once.

    Tests that use it run in one worker, beside those marked for the same group.
    """
    for item in items:
        used = item._fixtureinfo.name2fixturedefs.values()
        shared = any(f.scope == "module" for found in used for f in found)
        if shared and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))


@pytest.fixture(scope="session", autouse=True)
def forked_kernels():
    "Reports run in kernels that need not import the libraries; those of a shell still do."
    import kernels

    with pytest.MonkeyPatch.context() as patched:
        launch = "jupyter_client.provisioning.local_provisioner.launch_kernel"
        patched.setattr(launch, kernels.launch_kernel)
        yield


@pytest.fixture(scope="session")
def screen():
    "A raw simulated screen, small enough to train on in seconds."
    import gpovae

    return gpovae.datasets.simulated(n_cells=900, n_genes=60, n_perturbations=6, seed=1)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, screen):
    "What the shell makes of it: raw.h5ad, prepared.h5ad, run/."
    from click.testing import CliRunner

    from gpovae.app.cli import main

    folder = tmp_path_factory.mktemp("cli")
    screen.write_h5ad(folder / "raw.h5ad")
    for command in (
        [
            "prepare",
            folder / "raw.h5ad",
            folder / "prepared.h5ad",
            "--perturbation-key",
            "gene",
            "--control",
            "non-targeting",
            "--quiet",
        ],
        [
            "train",
            folder / "prepared.h5ad",
            "--out",
            folder / "run",
            "--max-epochs",
            "3",
            "--seed",
            "0",
            "--quiet",
        ],
    ):
        result = CliRunner().invoke(main, [str(c) for c in command], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    "`gpovae demo` as it is, seed 0: its folder, and what it prints."
    from click.testing import CliRunner

    from gpovae.app.cli import main

    folder = tmp_path_factory.mktemp("simulated") / "demo"
    result = CliRunner().invoke(
        main, ["demo", "--out", str(folder), "--quiet"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return folder, result.output
