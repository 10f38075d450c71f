"""The optimizer: AdamW by PyTorch's own fused kernel, its learning rate, averaged weights.

Paper: Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019),
https://arxiv.org/abs/1711.05101. torch.optim.AdamW computes the same, but its first use imports
PyTorch's compiler, which takes nearly as long as `import torch`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.adamw import adamw

WARMUP_STEPS = 100
BETAS, EPS, WEIGHT_DECAY = (0.9, 0.99), 1e-8, 0.01
AVERAGE_POWER, AVERAGE_EVERY = 6, 8  # over about the last seventh of all steps, each eighth one


def decay(progress: float) -> float:
    """From 1 at the beginning of training (0) to 0 at its end (1), as a parabola."""
    return (1 - progress) ** 2


def learning_rate(step: int, n_steps: int, peak: float) -> float:
    """Of step 0 to n_steps - 1: a parabola from the peak to 0, behind a linear warm-up.

    The warm-up takes 100 steps, or a tenth of a run that is shorter than 1,000.
    """
    warmup = min(1.0, (step + 1) / min(WARMUP_STEPS, 0.1 * n_steps))
    return peak * warmup * decay(step / n_steps)


class AdamW:
    """Steps of Algorithm 2 for `parameters`, whose gradients are there at each `step`.

    It also averages the parameters over the steps, with weights that grow as the power
    AVERAGE_POWER of the step (Karras et al. 2024, https://arxiv.org/abs/2312.02696, eq. 8). At a
    high learning rate codes move by several of their posteriors' deviations within ten steps, to
    and fro: the average of the weights is better than any of them. Those of the parameters that are
    `slow` have a learning rate of their own.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        slow: Iterable[Tensor] = (),
        weight_decay: float = WEIGHT_DECAY,
    ):
        self.parameters, slow_ids = list(parameters), {id(p) for p in slow}
        self.weight_decay = weight_decay
        is_slow = [id(p) in slow_ids for p in self.parameters]
        self.groups = [[i for i, s in enumerate(is_slow) if s == slow] for slow in (False, True)]
        self.exp_avgs = [torch.zeros_like(p) for p in self.parameters]
        self.exp_avg_sqs = [torch.zeros_like(p) for p in self.parameters]
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]
        self.averages = [p.detach().clone() for p in self.parameters]
        self.n_steps = 0
        self.lr = 0.0  # of the last step

    @torch.no_grad()
    def step(self, lr: float, slow_lr: float | None = None) -> None:
        """One step with these learning rates; without `slow_lr` all parameters have `lr`."""
        self.lr = lr
        for mine, rate in zip(self.groups, (lr, lr if slow_lr is None else slow_lr), strict=True):
            adamw(
                [self.parameters[i] for i in mine],
                [self.parameters[i].grad for i in mine],
                [self.exp_avgs[i] for i in mine],
                [self.exp_avg_sqs[i] for i in mine],
                max_exp_avg_sqs=[],
                state_steps=[self.steps[i] for i in mine],
                fused=True,
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=rate,
                weight_decay=self.weight_decay,
                eps=EPS,
                maximize=False,
            )
        self.n_steps += 1
        if self.n_steps % AVERAGE_EVERY == 0 or self.n_steps < AVERAGE_EVERY:
            past = max(0.0, 1 - AVERAGE_EVERY / self.n_steps) ** (AVERAGE_POWER + 1)
            for average, parameter in zip(self.averages, self.parameters, strict=True):
                average.lerp_(parameter, 1 - past)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the parameters are their averages: for validation, samples and checkpoints."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.data, parameter.data = parameter.data, average.data

    def state_dict(self) -> dict[str, list[Tensor]]:
        """What a resumed run needs, within `averaged`: the model then holds the averages."""
        moments = {"m": self.exp_avgs, "v": self.exp_avg_sqs, "steps": self.steps}
        return moments | {"parameters": self.averages}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Takes over such a state, within `averaged`; raises whatever a foreign one provokes."""
        for name, ours in self.state_dict().items():
            for tensor, saved in zip(ours, state[name], strict=True):
                tensor.copy_(saved)
        self.n_steps = int(self.steps[0])
