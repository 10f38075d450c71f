"""The training loop of most public repositories, with the network of pytorch/examples (vae).

DataLoader, PIL and ToTensor for each image, float32, unfused Adam, `.item()` at each step.
time_to_quality.py runs this file as a process, throughput.py takes its loop.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import cli

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms


class Network(nn.Module):
    """784-400-20-400-784 with ReLU: x (B, 1, 28, 28) -> logits like x, mu and logvar (B, 20)."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(784, 400)
        self.fc21 = nn.Linear(400, 20)
        self.fc22 = nn.Linear(400, 20)
        self.fc3 = nn.Linear(20, 400)
        self.fc4 = nn.Linear(400, 784)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.relu(self.fc1(x.flatten(1)))
        mu, logvar = self.fc21(h), self.fc22(h)
        std = torch.exp(0.5 * logvar)
        z = mu + torch.randn_like(std) * std
        return self.fc4(F.relu(self.fc3(z))).view_as(x), mu, logvar


def loss_function(logits: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """-ELBO in nats, summed over the batch."""
    bce = F.binary_cross_entropy(torch.sigmoid(logits), x, reduction="sum")
    kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return bce + kld


def train_one_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Iterable) -> float:
    """The loss in nats, summed over all images."""
    model.train()
    total = 0.0
    for x, _ in loader:
        optimizer.zero_grad()
        logits, mu, logvar = model(x)
        loss = loss_function(logits, x, mu, logvar)
        loss.backward()
        total += loss.item()
        optimizer.step()
    return total


@torch.inference_mode()
def validate(model: nn.Module, loader: Iterable) -> float:
    """-ELBO in nats per image, by one draw from the posterior of each."""
    model.eval()
    total, n_images = 0.0, 0
    for x, _ in loader:
        logits, mu, logvar = model(x)
        total += loss_function(logits, x, mu, logvar).item()
        n_images += len(x)
    return total / n_images


def extract_mnist(data_dir: Path, folder: str | Path) -> datasets.MNIST:
    """The training file as torchvision reads it, from a copy: it extracts beside the archives."""
    shutil.copytree(data_dir / "MNIST", Path(folder, "MNIST"))
    return datasets.MNIST(folder, transform=transforms.ToTensor(), download=True)


def main() -> None:
    parser = cli.parser("Trains by the conventional loop; prints its validation -ELBO as JSON.")
    parser.add_argument("folder", type=Path, help="where torchvision has extracted MNIST")
    cli.add_seed_flag(parser)
    epochs, images = cli.integer(1, 1000), cli.integer(1, 50_000)
    parser.add_argument("--n_epochs", type=epochs, default=10, help="epochs in all")
    parser.add_argument("--n_train", type=images, default=50_000, help="the first so many images")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    dataset = datasets.MNIST(args.folder, transform=transforms.ToTensor())
    train_set, val_set = (
        Subset(dataset, range(args.n_train)),
        Subset(dataset, range(50_000, 60_000)),
    )
    loader = DataLoader(train_set, batch_size=128, shuffle=True)
    model = Network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    epoch_seconds = []
    for epoch in range(1, args.n_epochs + 1):
        start = time.perf_counter()
        loss = train_one_epoch(model, optimizer, loader) / args.n_train
        epoch_seconds.append(time.perf_counter() - start)
        print(f"epoch {epoch} | -ELBO {loss:.2f} nats | {epoch_seconds[-1]:.1f} s", flush=True)
    val_neg_elbo = validate(model, DataLoader(val_set, batch_size=128))
    print(json.dumps({"val_neg_elbo": val_neg_elbo, "epoch_seconds": epoch_seconds}))


if __name__ == "__main__":
    cli.run(main)
