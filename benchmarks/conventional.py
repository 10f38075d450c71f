"""The training loop of most public repositories, with the network of pytorch/examples (vae).

It uses float32, unfused Adam, `.item()` in each step, and a DataLoader with PIL and ToTensor.
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import cli


class Network(nn.Module):
    """784-400-20-400-784 (ReLU): x (B, 1, 28, 28) -> pixel means (like x), mu, logvar (B, 20)."""

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
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))).view_as(x), mu, logvar


def neg_elbo(model: Network, x: Tensor) -> Tensor:
    """-ELBO in nats, summed over the batch, with one posterior draw per image."""
    recon_x, mu, logvar = model(x)
    bce = F.binary_cross_entropy(recon_x, x, reduction="sum")
    kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return bce + kld


def train_one_epoch(model: Network, optimizer: torch.optim.Optimizer, loader: DataLoader) -> float:
    """Trains on all batches; returns -ELBO in nats, summed over all images."""
    model.train()
    total = 0.0
    for x, _ in loader:
        optimizer.zero_grad()
        loss = neg_elbo(model, x)
        loss.backward()
        total += loss.item()
        optimizer.step()
    return total


@torch.no_grad()
def validate(model: Network, loader: DataLoader) -> float:
    """-ELBO in nats, summed over all images."""
    model.eval()
    return sum(neg_elbo(model, x).item() for x, _ in loader)


def main() -> None:
    parser = cli.parser("Trains with the conventional loop; prints the validation -ELBO as JSON.")
    add, images = parser.add_argument, cli.number(1, 50_000)
    add("--n_epochs", type=cli.number(1), default=10, help="epochs of training")
    add("--n_train", type=images, default=50_000, help="train on the first N images")
    cli.add_seed_flag(parser)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    dataset = datasets.MNIST(cli.DATA_DIR, download=True, transform=transforms.ToTensor())
    loader = DataLoader(Subset(dataset, range(args.n_train)), batch_size=128, shuffle=True)
    val_loader = DataLoader(Subset(dataset, range(50_000, 60_000)), batch_size=128)
    model = Network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    epoch_seconds = []
    for epoch in range(1, args.n_epochs + 1):
        start = time.perf_counter()
        loss = train_one_epoch(model, optimizer, loader) / args.n_train
        epoch_seconds.append(time.perf_counter() - start)
        print(f"epoch {epoch} | -ELBO {loss:.2f} nats")
    val_neg_elbo = validate(model, val_loader) / 10_000
    print(json.dumps({"val_neg_elbo": val_neg_elbo, "epoch_seconds": epoch_seconds}))


if __name__ == "__main__":
    cli.run(main)
