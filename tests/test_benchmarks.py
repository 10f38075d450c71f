"""What a benchmark reads off train.py's output is what train.py wrote to metrics.csv."""

import csv
import sys

import pytest
from conftest import ROOT, TINY

from errors import UserError

sys.path.insert(0, str(ROOT / "benchmarks"))
import likelihood


def test_the_epochs_of_a_run_are_those_of_its_metrics(tmp_path):
    epochs = likelihood.train(tmp_path / "run", *TINY, "--n_epochs", "2")
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(epochs) == len(rows) == 2
    for (_, neg_elbo, seconds), row in zip(epochs, rows, strict=True):
        assert neg_elbo == pytest.approx(float(row["val_neg_elbo"]), abs=0.006)
        assert seconds == pytest.approx(float(row["seconds"]), abs=0.06)
    assert epochs[1][0] > epochs[0][0] > epochs[0][2]


def test_a_run_that_fails_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="--lr"):
        likelihood.train(tmp_path / "run", "--lr", "nan")
