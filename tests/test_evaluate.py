"""The script evaluate.py: every metric once, and what it refuses."""

import json
import math

import pytest
import torch
from conftest import random_model, save_model, words

import data
import evaluate
from utils.cli import UserError


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs evaluate.py with these flags; gives what it prints."""
    monkeypatch.setitem(data.SPLITS, "train", ("train", 60_000, slice(0, 2000)))  # for speed

    def run(*flags) -> str:
        flags = (*flags, "--n_importance_samples 20 --device cpu --precision fp32")
        monkeypatch.setattr("sys.argv", ["evaluate.py", *words(flags)])
        evaluate.main()
        return capsys.readouterr().out

    return run


def test_the_table_and_the_json_object_hold_every_metric(run, tiny_run, capsys):
    flags = ("--model_params", tiny_run / "best.pth", "--n_images 100 --binarize dynamic --json")
    r = json.loads(run(*flags, "--exact"))
    evaluate.print_table(r)
    table = capsys.readouterr().out
    assert (r["n_images"], r["binarize"], r["latent_dim"]) == (100, "dynamic", 2)
    assert r["neg_elbo"] == pytest.approx(r["recon"] + r["kl"])
    assert r["neg_elbo"] > r["nll"] > r["exact_nll"] - 0.01
    assert 0.1 < r["knn_accuracy"] < 1
    for name in evaluate.ROWS:
        assert f"{r[name]:.3f} +- {r[f'{name}_stderr']:.3f}" in table
    assert f"active units {r['active_units']} of 2" in table


def test_a_flow_is_evaluated_on_the_images_that_it_was_trained_for(run, tmp_path):
    path = save_model(tmp_path / "a.pth", random_model(prior="flow"), binarize="dynamic")
    for split in ("val", "test"):
        r = json.loads(run("--model_params", path, "--json --n_images 50 --split", split))
        assert (r["prior"], r["binarize"], r["split"]) == ("flow", "dynamic", split)
        assert len(r["kl_of_dimension"]) == 2


def test_the_integral_needs_few_dimensions(run, tmp_path):
    path = save_model(tmp_path / "a.pth", random_model(latent_dim=3))
    with pytest.raises(UserError, match="--exact needs 1 or 2 latent dimensions, not 3"):
        run("--model_params", path, "--exact")


def test_knn_is_a_brute_force_vote():
    generator = torch.Generator().manual_seed(0)
    mu, known = torch.randn(1040, 2, generator=generator).split((40, 1000))
    labels, known_labels = torch.randint(0, 3, (1040,), generator=generator).split((40, 1000))
    n_right = 0
    for point, label in zip(mu.tolist(), labels.tolist(), strict=True):
        others = zip(known.tolist(), known_labels.tolist(), strict=True)
        distances = sorted((math.dist(point, other), digit) for other, digit in others)
        votes = [digit for _, digit in distances[:5]]
        n_right += max(range(10), key=lambda digit: (votes.count(digit), -digit)) == label
    accuracy = evaluate.knn_accuracy(mu, labels, known, known_labels)
    assert accuracy == pytest.approx(n_right / 40)
