"""Lightning's loggers: every epoch is logged, also after an interruption; nothing else moves."""

import pandas as pd
import pytest
import torch

from gpovae import GPOVAE, GpovaeError, datasets, prepare
from gpovae.train.logs import LOGS
from gpovae.train.run import RunFolder


@pytest.fixture(scope="module")
def prepared():
    adata = datasets.simulated(n_cells=600, n_genes=40, n_perturbations=4, seed=1)
    prepare(adata, perturbation_key="gene", control="non-targeting", progress=False)
    return adata


@pytest.fixture(scope="module")
def plain(prepared):
    "Trained without a logger."
    return trained(prepared)


def trained(adata, **options):
    model = GPOVAE(adata)
    model.train(max_epochs=3, seed=0, progress=False, **options)
    return model


def same_weights(a, b):
    exactly = dict(rtol=0, atol=0, equal_nan=True)  # some of what is known is missing
    torch.testing.assert_close(a.vae.state_dict(), b.vae.state_dict(), **exactly)
    return True


def test_csv_has_every_epoch_and_nothing_else_changes(prepared, plain, tmp_path):
    model = trained(prepared, directory=tmp_path, logger="csv")
    logged = pd.read_csv(tmp_path / LOGS / "metrics.csv")
    assert logged["step"].tolist() == model.history["epoch"].tolist() == [0, 1, 2]
    assert logged["validation_loss"].tolist() == pytest.approx(model.history["validation_loss"])
    assert same_weights(model, plain)
    assert not trained(prepared, directory=tmp_path / "none").history.empty
    assert not (tmp_path / "none" / LOGS).exists(), "nobody asked for a logger"


def test_a_training_that_goes_on_logs_the_epochs_before_it_again(prepared, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("gpovae.train.logs.Logs.on_train_epoch_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(prepared, directory=tmp_path, logger="csv")
    assert RunFolder(tmp_path).status == "resumable", "logs are not foreign files"
    trained(prepared, directory=tmp_path, logger="csv")
    assert pd.read_csv(tmp_path / LOGS / "metrics.csv")["step"].tolist() == [0, 1, 2]


def test_tensorboard(prepared, plain, tmp_path):
    pytest.importorskip("tensorboard", reason="not installed: pip install 'gpovae[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = trained(prepared, directory=tmp_path, logger="tensorboard")
    events = EventAccumulator(str(tmp_path / LOGS)).Reload().Scalars("validation_loss")
    assert [event.value for event in events] == pytest.approx(model.history["validation_loss"])
    assert same_weights(model, plain)


def test_mlflow(prepared, plain, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="not installed: pip install 'gpovae[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    model = trained(prepared, directory=tmp_path, logger="mlflow")
    client = mlflow.MlflowClient(f"file:{tmp_path / LOGS}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "gpovae")
    (run,) = client.search_runs([experiment.experiment_id])
    logged = client.get_metric_history(run.info.run_id, "validation_loss")
    assert [m.value for m in logged] == pytest.approx(model.history["validation_loss"])
    assert same_weights(model, plain)


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(logger="csv"), "directory="),
        (dict(logger="wandb"), "csv, tensorboard, mlflow"),
        (dict(logger="tensorboard", directory="here"), r"gpovae\[tensorboard\]"),
    ],
)
def test_refusals(prepared, options, says, monkeypatch, tmp_path):
    def missing(*_, **__):
        raise ModuleNotFoundError("tensorboard")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gpovae.train.logs.TensorBoardLogger", missing)
    with pytest.raises(GpovaeError, match=says):
        trained(prepared, **options)
