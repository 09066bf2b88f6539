"""The gradient of DP-SGD (Abadi et al. 2016): each sample's gradient is clipped, and the sum gets Gaussian noise.

Shapes: B samples, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vmap

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.types import Batch, LossSum
from bigmodel_cli.data.poisson_batches import generator
from bigmodel_cli.engine.device.placement import is_out_of_memory
from bigmodel_cli.engine.training.gradients import MeanGradient
from bigmodel_cli.engine.training.privacy_budget import Budget

MAX_BYTES = 2**28  # of the gradients of single samples held at once
AGREE = 1e-3  # relative difference of two ways to compute one gradient that are the same
Gradients = dict[str, Tensor]


@dataclass
class PrivateGradient(MeanGradient):
    """Sum of the samples' gradients, each of a norm of at most ``clip_norm``, plus noise, over the expected batch.

    A sample's loss is the mean over its units. What a sample adds depends on no other sample, whatever the task: its
    loss is that of a batch of its own.
    """

    budget: Budget
    expected_batch: float
    key: str
    """Of the noise; see :func:`bigmodel_cli.data.poisson_batches.generator`."""
    total_steps: int
    vectorised: bool | None = None
    """Whether ``torch.func`` gives the samples' gradients at once; None: not tried yet. Else one after the other."""
    spent_at: dict[int, float] = field(default_factory=dict)

    def add(self, run: Any, micro: Batch, count: int) -> Tensor:
        module = run.model.get_submodule(run.submodule)
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        with run.timer("backward"):
            if _is_linear_on_features(module, run, micro):
                return self._add_linear(run, module, micro)
            if self.vectorised is None:
                self.vectorised = self._agrees(run, module, trained, micro)
            size = max(1, MAX_BYTES // (4 * sum(p.numel() for p in trained.values())))
            chunks = -(-len(micro["index"]) // (size if self.vectorised else 1))
            total = torch.zeros((), device=run.placement.device)
            parts = {name: values.tensor_split(chunks) for name, values in micro.items()}
            for i in range(chunks):
                part = {name: values[i] for name, values in parts.items()}
                gradients, losses = self._of_samples(run, module, trained, part)
                self._add_clipped(trained, gradients)
                total += losses
        return total

    def _of_samples(
        self, run: Any, module: nn.Module, trained: Mapping[str, nn.Parameter], part: Batch
    ) -> tuple[Gradients, Tensor]:
        """The gradients of the samples of `part`, each (B,...), and the sum of their losses."""
        with run.placement.autocast():
            if self.vectorised:
                return _at_once(run.task.loss, module, trained, part)
            return _alone(run.task.loss, module, trained, part)

    def _agrees(self, run: Any, module: nn.Module, trained: Mapping[str, nn.Parameter], micro: Batch) -> bool:
        """Whether ``torch.func`` gives the gradients that autograd gives. It cannot run some models, and does not see
        a loss that reads the model's parameters past its forward pass."""
        two = {name: values[:2] for name, values in micro.items()}
        training = [m for m in module.modules() if m.training]
        kept = [p.detach().clone() for p in trained.values()]
        try:
            for m in training:  # without dropout
                m.training = False
            _shift(trained.values())  # a pull towards the first weights has no gradient there
            each = [_alone(run.task.loss, module, trained, {k: v[i : i + 1] for k, v in two.items()})[0]
                    for i in range(len(two["index"]))]  # fmt: skip
            found, _ = _at_once(run.task.loss, module, trained, two)
            reason = "" if all(_same(found[n], torch.cat([g[n] for g in each])) for n in trained) else "its loss"
        except (RuntimeError, ValueError) as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0][:80]
        finally:
            for m in training:
                m.training = True
            with torch.no_grad():
                for p, value in zip(trained.values(), kept, strict=True):
                    p.copy_(value)
        if reason:
            message = f"gradients of one sample after the other, which is slow: torch.func cannot do them ({reason})"
            run.emit({"event": "note", "message": message})
        return not reason

    def _add_clipped(self, trained: Mapping[str, nn.Parameter], gradients: Gradients) -> None:
        norms = torch.stack([g.flatten(1).float().square().sum(1) for g in gradients.values()]).sum(0).sqrt()
        if not torch.isfinite(norms).all():  # such a sample adds nothing, as one that was not drawn
            usable = torch.isfinite(norms)
            norms = norms[usable]
            gradients = {name: g[usable] for name, g in gradients.items()}
        factors = (self.budget.clip_norm / norms.clamp(min=1e-12)).clamp(max=1)
        for name, p in trained.items():
            total = torch.einsum("b,b...->...", factors.to(gradients[name].dtype), gradients[name])
            p.grad = total if p.grad is None else p.grad + total

    def _add_linear(self, run: Any, layer: nn.Linear, micro: Batch) -> Tensor:
        """The same for one linear layer (D -> K), whose samples' gradients are outer products and never formed."""
        name = run.task.inputs[0]
        x = micro[name].float()
        rest = {k: v for k, v in micro.items() if k != name}

        def loss(output: Tensor, sample: Batch) -> tuple[Tensor, Tensor]:
            batch = {name: output[None], **{k: v[None] for k, v in sample.items()}}
            return _mean(run.task.loss(lambda *inputs: output[None], batch))

        with torch.no_grad():
            errors, (_, losses) = vmap(grad_and_value(loss, has_aux=True))(layer(x), rest)
            norms = errors.norm(dim=1) * (x.square().sum(1) + (layer.bias is not None)).sqrt()
            factors = (self.budget.clip_norm / norms.clamp(min=1e-12)).clamp(max=1)
            errors = torch.where(torch.isfinite(norms)[:, None], errors * factors[:, None], 0)
            grads = [(layer.weight, errors.T @ x), *([(layer.bias, errors.sum(0))] if layer.bias is not None else [])]
        for p, total in grads:
            p.grad = total if p.grad is None else p.grad + total
        return losses.sum()

    @torch.no_grad()
    def finish(self, run: Any) -> None:
        device = run.placement.device
        numbers = generator(self.key, "noise", run.progress.step, device=device)
        for p in run.model.get_submodule(run.submodule).parameters():
            if p.requires_grad:
                noise = torch.empty_like(p).normal_(0, self.budget.noise * self.budget.clip_norm, generator=numbers)
                total = noise if p.grad is None else noise.add_(p.grad)
                p.grad = total.div_(self.expected_batch)  # with the strides of `p`, which fused optimizers rely on

    def spent(self, run: Any) -> dict[str, Any]:
        return {"epsilon": self._spent(run.progress.step), "delta": self.budget.delta}

    def record(self, run: Any) -> dict[str, Any]:
        steps = run.progress.step
        return {"privacy": {**self.budget.to_dict(steps), "spent": self._spent(steps)}}

    def _spent(self, steps: int) -> float:
        if steps not in self.spent_at:
            self.spent_at[steps] = self.budget.spent(steps)
        return self.spent_at[steps]

    def resume(self, meta: Mapping[str, Any]) -> None:
        """Go on with the noise of the checkpoint, also if the run has another length now.

        Raises:
            InputError: the steps were not private, or of other data; or a longer run would spend more than its budget.
        """
        saved = meta.get("privacy")
        if not isinstance(saved, Mapping) or {*saved} < {"noise", "rate"}:
            raise InputError("--resume: the checkpoint does not say what its private training spent", hint="restore it")
        if abs(saved["rate"] - self.budget.rate) > 1e-12:
            rates = f"{self.budget.rate:.3g}, before with {saved['rate']:.3g}"
            what = f"--resume: samples are drawn with probability {rates}"
            raise InputError(what, "expected the same data", "start a new run with --out")
        self.budget = Budget(**{name: saved[name] for name in Budget.__dataclass_fields__})
        self.spent_at = {}
        if (spends := self._spent(self.total_steps)) > self.budget.epsilon:
            what = f"--resume: {self.total_steps:,} steps with the noise of this run would spend epsilon {spends:.3g}"
            raise InputError(what, f"it may spend {self.budget.epsilon:g}", "the epochs it began with")


def _mean(loss: LossSum) -> tuple[Tensor, Tensor]:
    """A sample's loss as the mean over its units, and as their sum."""
    return loss.total / torch.as_tensor(loss.count).clamp(min=1), loss.total.detach()


def _at_once(
    loss: Callable[..., Any], module: nn.Module, trained: Mapping[str, nn.Parameter], part: Batch
) -> tuple[Gradients, Tensor]:
    from torch.nn.attention import SDPBackend, sdpa_kernel  # slow to import

    held = {n: t for n, t in (*module.named_parameters(), *module.named_buffers()) if n not in trained}

    def of_sample(parameters: Gradients, sample: Batch) -> tuple[Tensor, Tensor]:
        def forward(*inputs: Any, **named: Any) -> Any:
            return functional_call(module, {**held, **parameters}, inputs, named)

        return _mean(loss(forward, {name: values[None] for name, values in sample.items()}))

    parameters = {name: p.detach() for name, p in trained.items()}
    with sdpa_kernel(SDPBackend.MATH):  # the others cannot be vectorised, and would run sample by sample
        gradients, losses = vmap(grad(of_sample, has_aux=True), (None, 0), randomness="different")(parameters, part)
    return gradients, losses.sum()


def _alone(
    loss: Callable[..., Any], module: nn.Module, trained: Mapping[str, nn.Parameter], sample: Batch
) -> tuple[Gradients, Tensor]:
    """The gradient of one sample by plain autograd, with a first dimension of 1."""
    with torch.enable_grad():
        mean, total = _mean(loss(module, sample))
        found = torch.autograd.grad(mean, list(trained.values()), allow_unused=True, materialize_grads=True)
    return {name: g[None] for name, g in zip(trained, found, strict=True)}, total


def _shift(parameters: Iterable[nn.Parameter]) -> None:
    """Move parameters a little, without drawing from torch's own random numbers."""
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in parameters:
            p.add_(torch.randn(p.shape, generator=numbers).to(p), alpha=0.01)


def _same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= AGREE * b.norm().clamp(min=1e-6))


def _is_linear_on_features(module: nn.Module, run: Any, micro: Batch) -> bool:
    """Whether `module` is a linear head that trains whole, on one vector per sample."""
    return (
        type(module) is nn.Linear
        and bool(run.submodule)
        and all(p.requires_grad for p in module.parameters())
        and micro[run.task.inputs[0]].dim() == 2
    )
