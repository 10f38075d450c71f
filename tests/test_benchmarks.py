"""The benchmarks' own arithmetic: what they read off a run and what they make of it. No times."""

import statistics

from utils.checkpoint import load_checkpoint
from utils.cli import DATA_DIR, UserError

import pytest
import torch
from conftest import TINY, read_rows

from benchmarks import common, conventional, seeds, time_to_quality
from data import load_mnist
from estimators import active_units, elbo_terms, posterior_noise, posteriors
from loss import bernoulli_nll, kl_divergence


def our_loss(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """-ELBO of each image by loss.py: (B,)."""
    logits, mu, logvar = model(x)
    return bernoulli_nll(logits, x) + kl_divergence(mu, logvar)


def test_the_epochs_of_a_run_are_those_of_its_metrics(tmp_path):
    done = common.run("train.py", *TINY, "--n_epochs", "2", "--save_dir", tmp_path)
    rows = [
        {name: float(value) for name, value in row.items()}
        for row in read_rows(tmp_path / "metrics.csv")
    ]
    assert common.metrics(tmp_path / "last.pth") == rows
    best = common.metrics(tmp_path / "best.pth")[-1]
    assert f"best epoch {best['epoch']}:" in "\n".join(done.lines)
    first, second = done.epoch_ends
    assert 0 < rows[0]["seconds"] < first < second - rows[1]["seconds"] < second < done.seconds
    assert 50 < done.megabytes < 5_000


def test_a_run_that_fails_is_one_sentence():
    with pytest.raises(UserError, match=r"^train\.py failed: .*argument --lr: must be [^\n]*$"):
        common.run("train.py", "--lr", "nan")


def test_the_conventional_loops_figure_is_minus_the_elbo():
    torch.manual_seed(1)
    model, x = conventional.Network(), torch.rand(7, 1, 28, 28)
    parts = x.split(5)  # the last batch is smaller
    torch.manual_seed(2)
    neg_elbo = conventional.validate(model, [(part, None) for part in parts])
    torch.manual_seed(2)
    ours = torch.cat([our_loss(model, part) for part in parts])
    assert neg_elbo == pytest.approx(ours.mean().item(), rel=1e-5)
    assert sum(p.numel() for p in model.parameters()) == 652_824  # as in pytorch/examples


def test_a_step_of_the_conventional_loop_descends_our_loss():
    torch.manual_seed(1)
    model, x = conventional.Network(), torch.rand(8, 1, 28, 28)
    before = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(2)
    loss = our_loss(model, x).sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    torch.manual_seed(2)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    assert conventional.train_one_epoch(model, sgd, [(x, None)]) == pytest.approx(loss.item())
    for p, old, gradient in zip(model.parameters(), before, gradients, strict=True):
        assert gradient.abs().max() > 0.1
        torch.testing.assert_close(old - p.detach(), gradient, rtol=1e-3, atol=1e-4)


def fake_round(**figures: float) -> dict[str, float]:
    """A round of time_to_quality.py in which every command took 60 seconds, and these figures."""
    names = ("conventional", "ours", "seed_objective", "default")
    same = {f"{name}_seconds": 60.0 for name in names} | {"conventional_epoch_seconds": 5.0}
    same |= {"target_neg_elbo": 106.0, "ours_neg_elbo": 105.0, "default_neg_elbo": 136.0}
    return same | {"seed_objective": 72.0} | figures


def test_the_table_of_times_counts_what_was_reached_in_its_own_round():
    rounds = [
        fake_round(ours_seconds=6.0, target_neg_elbo=104.0),  # 105 is not below it
        fake_round(ours_seconds=9.0, seed_objective=72.41),
        fake_round(ours_seconds=12.0, seed_objective=72.40),
    ]
    _, _, theirs, ours, seed_project, default = time_to_quality.table(rounds).splitlines()
    cells = [cell.strip() for cell in ours.split("|")[2:-1]]
    assert cells[:3] == ["9.0 (6.0 to 12.0)", "6.67 (5.00 to 10.00)", "1.80 (1.20 to 2.40)"]
    assert cells[3:] == ["-ELBO 105.00 (105.00 to 105.00)", "2 of 3"]
    assert seed_project.endswith("| objective 72.40 (72.00 to 72.41) | 2 of 3 |")
    assert theirs.endswith("(104.00 to 106.00) |  |")
    assert default.endswith("|  |")


def test_a_row_of_seeds_is_the_runs_best_epoch_and_its_test_figures(tmp_path, monkeypatch):
    monkeypatch.setitem(seeds.RECIPES, "tiny", " ".join((*TINY, "--n_epochs 2 --lr 0.01")))
    row = seeds.measure("tiny", 889, 1, tmp_path)
    assert tuple(row) == seeds.COLUMNS
    epochs = [
        {name: float(epoch[name]) for name in ("val_recon_loss", "val_kld_loss", "val_neg_elbo")}
        for epoch in read_rows(tmp_path / "metrics.csv")
    ]
    best = min(epochs, key=lambda epoch: 600 * epoch["val_recon_loss"] + epoch["val_kld_loss"])
    assert {name: row[name] for name in best} == best
    model, checkpoint = load_checkpoint(tmp_path / "best.pth")
    assert checkpoint["args"]["seed"] == row["seed"] == 889
    images, _ = load_mnist(DATA_DIR, "test")
    q = posteriors(model, images)
    terms = elbo_terms(model, images, q, posterior_noise(len(images), 2))
    neg_elbo = (terms.recon + terms.kl).mean().item()
    assert row["test_neg_elbo"] == pytest.approx(neg_elbo, rel=0.01)  # evaluate.py may take bf16
    assert row["test_nll"] == pytest.approx(neg_elbo, rel=0.01)  # K = 1
    assert row["active_units"] == active_units(q.mu).sum()


def run_seeds(monkeypatch, path, *flags: str) -> None:
    words = ["seeds.py", "--recipes", "default", "20d", "--save_to", str(path), *flags]
    monkeypatch.setattr("sys.argv", words)
    seeds.main()


def test_seeds_go_on_where_they_stopped(tmp_path, monkeypatch, capsys):
    path, calls = tmp_path / "new" / "seeds.csv", []

    def measure(recipe, seed, K, save_dir):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append((recipe, seed))
        figures = {name: 100.0 + len(calls) ** 2 for name in seeds.FIGURES}
        how = {"recipe": recipe, "seed": seed, "flags": seeds.RECIPES[recipe]}
        return how | {"n_importance_samples": K} | figures

    monkeypatch.setattr(seeds, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        run_seeds(monkeypatch, path, "--n_seeds", "2")
    first = path.read_text()
    assert calls == [("default", 888), ("20d", 888), ("default", 889)]
    calls.clear()
    run_seeds(monkeypatch, path, "--n_seeds", "3")
    assert calls == [("20d", 889), ("default", 890), ("20d", 890)]
    assert path.read_text().startswith(first)

    printed = capsys.readouterr().out.splitlines()
    rows = read_rows(path)
    assert len(rows) == 6
    for recipe in ("default", "20d"):
        (line,) = (line for line in printed if line.startswith(f"| {recipe} |"))
        values = [float(row["val_kld_loss"]) for row in rows if row["recipe"] == recipe]
        mean, std = statistics.fmean(values), statistics.stdev(values)
        assert line.split(" | ")[1:4:2] == ["3", f"{mean:.3f} +- {std:.3f}"]

    with pytest.raises(UserError, match="choose another --save_to"):
        run_seeds(monkeypatch, path, "--n_importance_samples", "5")
    assert read_rows(path) == rows


def test_one_seed_has_no_deviation_and_five_have_that_of_a_sample():
    rows = [dict.fromkeys(seeds.FIGURES, str(i)) | {"recipe": "default"} for i in range(1, 6)]
    assert "+-" not in seeds.table(rows[:1], ["default"])
    assert " 3.000 +- 1.581 |" in seeds.table(rows, ["default"])  # sqrt(10 / 4)


def test_seeds_leave_a_foreign_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="other columns"):
        run_seeds(monkeypatch, path)
    assert path.read_text() == "a,b\n1,2\n"
