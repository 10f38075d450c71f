"""The script evaluate.py: every figure once, and what it refuses."""

import json

from utils.cli import UserError

import pytest
import torch
from conftest import random_model, save_model, words

import data
import evaluate

MEANS = ("recon", "kl", "neg_elbo", "nll", "gap", "exact_nll", "nll_above_exact")
MEANS += ("encoder_neg_elbo", "refining_gain")
OTHERS = {*evaluate.COUNTS, "binarize", "prior", "latent_dim"}


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs evaluate.py with these flags; gives what it prints."""
    monkeypatch.setitem(data.SPLITS, "train", ("train", slice(0, 2000)))  # for speed

    def run(*flags) -> str:
        flags = (*flags, "--n_importance_samples 20 --device cpu --precision fp32")
        monkeypatch.setattr("sys.argv", ["evaluate.py", *words(flags)])
        evaluate.main()
        return capsys.readouterr().out

    return run


def test_the_table_and_the_json_object_hold_every_figure(run, tiny_run, capsys):
    flags = "--n_images 100 --binarize dynamic --exact --n_refining_steps 20 --json"
    result = json.loads(run("--model_params", tiny_run / "best.pth", flags))
    evaluate.print_table(result)
    table = capsys.readouterr().out
    assert OTHERS | {"active_units", "kl_of_dimension", "knn_accuracy"} <= result.keys()
    assert (result["n_images"], result["binarize"], result["latent_dim"]) == (100, "dynamic", 2)
    assert result["neg_elbo"] == pytest.approx(result["recon"] + result["kl"])
    assert result["gap"] == pytest.approx(result["neg_elbo"] - result["nll"])
    plain = json.loads(run("--model_params", tiny_run / "best.pth", flags.replace("20", "0")))
    assert plain["neg_elbo"] > result["nll"] > result["exact_nll"] - 0.01
    assert result["encoder_neg_elbo"] == plain["neg_elbo"] > result["neg_elbo"]
    assert result["knn_accuracy"] == plain["knn_accuracy"]
    assert result["refining_gain"] == pytest.approx(plain["neg_elbo"] - result["neg_elbo"])
    assert 0.1 < result["knn_accuracy"] < 1
    for name in MEANS:
        assert f"{result[name]:.3f} +- {result[f'{name}_stderr']:.3f}" in table
    assert f"active units {result['active_units']} of 2" in table


def test_a_flow_is_evaluated_on_the_images_that_it_was_trained_for(run, tmp_path):
    path = save_model(tmp_path / "a.pth", random_model(prior="flow"), binarize="threshold")
    figures = {}
    for flags in ("--split val", "--split test", "--split val --batch_size 7"):
        result = json.loads(run("--model_params", path, "--json --n_images 50", flags))
        assert (result["prior"], result["binarize"]) == ("flow", "threshold")
        assert len(result["kl_of_dimension"]) == 2
        figures[flags] = result["nll"]
    assert figures["--split val"] == pytest.approx(figures["--split val --batch_size 7"], rel=1e-5)
    assert figures["--split val"] != figures["--split test"]


def test_bad_input_is_one_sentence(run, tmp_path):
    path, model = tmp_path / "a.pth", random_model(latent_dim=3)
    save_model(path, model)
    with pytest.raises(UserError, match="--exact needs 2 latent dimensions, not 3"):
        run("--model_params", path, "--exact")
    save_model(path, model, dataset="../../home")
    with pytest.raises(UserError, match=r"'../../home' is not a dataset"):
        run("--model_params", path)
    torch.nn.init.constant_(model.encoder[-1].bias, 1e38)  # finite weights, infinite KL
    save_model(path, model)
    with pytest.raises(UserError, match="is not finite"):
        run("--model_params", path, "--n_images 10")
