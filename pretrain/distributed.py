"""Tensors over all processes of a run: gathered, summed, averaged; and BatchNorm over all of them.

Without `torch.distributed` there is one process and every function gives back what it got. All processes call the same
functions in the same order, with tensors of the same shape: the loop hands each process an equal share of the batch.

What is differentiable here follows one rule, the one that DistributedDataParallel and SyncBatchNorm follow: backward
gives the gradient of the *sum* of all processes' losses, and `average_gradients` then divides by their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BUCKET_BYTES = 32 * 2**20  # gradients in one all-reduce; DistributedDataParallel takes 25 MiB


def world_size() -> int:
    """How many processes train together; 1 without `torch.distributed`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """(N, ...) of each process to (world * N, ...) in the order of ranks, without gradient."""
    if world_size() == 1:
        return tensor.detach()
    sent = tensor.detach().contiguous()
    sent = sent.to(torch.uint8) if sent.dtype == torch.bool else sent  # not every backend moves bools
    received = [torch.empty_like(sent) for _ in range(world_size())]
    dist.all_gather(received, sent)
    return torch.cat(received).to(tensor.dtype)


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """As `gather`; backward brings each process the gradients that all processes have for its own rows."""
    if world_size() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of every process's tensor, in each of them; differentiable, backward sums the gradients."""
    if world_size() == 1:
        return tensor
    total: Tensor = _Sum.apply(tensor)
    return total


@torch.no_grad()
def mean_over_processes(tensor: Tensor) -> Tensor:
    """The mean of every process's tensor, without gradient: what to log of a loss."""
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], bucket_bytes: int = BUCKET_BYTES) -> None:
    """Every parameter's gradient becomes its mean over the processes, in place; one all-reduce a flat bucket.

    Parameters come in the same order in every process. Those without a gradient are left out, so the same ones must be
    without in all: what an objective freezes, it freezes everywhere.
    """
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for bucket in _buckets(gradients, bucket_bytes):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        flat /= world_size()
        means = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, mean in zip(bucket, means, strict=True):
            gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def broadcast_state(module: nn.Module) -> None:
    """Parameters and buffers of the first process to all others, in place: every replica starts the same."""
    if world_size() == 1:
        return
    for tensor in (*module.parameters(), *module.buffers()):
        sent = tensor.detach().contiguous()
        dist.broadcast(sent, src=0)
        tensor.copy_(sent)


def _buckets(tensors: list[Tensor], bucket_bytes: int) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one dtype and device, each list up to `bucket_bytes` unless one tensor is larger."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        fits = size + tensor.nbytes <= bucket_bytes
        if bucket and not (fits and tensor.dtype == bucket[0].dtype and tensor.device == bucket[0].device):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


class _Gather(torch.autograd.Function):
    """All processes' rows, in the order of ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


class _Sum(torch.autograd.Function):
    """All processes' tensors added up."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class AllReducedBatchNorm(nn.SyncBatchNorm):
    """BatchNorm over the batches of all processes, of any number of dimensions: (N, C, ...) to the same.

    On a GPU this is torch's SyncBatchNorm. On the CPU, where that one raises, the mean and then the squared distances
    from it are summed over the processes, differentiably; the numbers are those of one process with the whole batch.
    With one process, or in eval mode, it is plain BatchNorm. Names in the state dict are BatchNorm's own.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) to (N, C, ...), statistics in float32 (float64 for float64)."""
        if input.is_cuda:
            return super().forward(input)
        if not self.training or world_size() == 1:
            return _BatchNorm.forward(self, input)
        self._check_input_dim(input)
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        axes = (0, *range(2, wide.ndim))
        shape = (1, -1, *(1 for _ in axes[1:]))
        sums = sum_over_processes(torch.cat([wide.sum(axes), wide.new_tensor([wide[:, 0].numel()])]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean.view(shape)
        variance = sum_over_processes(centred.square().sum(axes)) / count
        self._keep_running(mean.detach(), variance.detach(), count)
        normed = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(input.dtype)

    @torch.no_grad()
    def _keep_running(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Running mean and unbiased variance, as BatchNorm keeps them."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        # without a momentum, a cumulative mean
        share = 1 / float(self.num_batches_tracked or 1) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1), share)


class AllReducedBatchNormAct(AllReducedBatchNorm):
    """timm's BatchNorm with an activation behind it, over all processes."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) to the same, activated."""
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated


def with_all_reduced_norms(module: nn.Module) -> nn.Module:
    """The module with each BatchNorm replaced by one over all processes, sharing its parameters and buffers."""
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d):
        return _all_reduced(module)  # type: ignore[arg-type]  # one of the four
    for name, child in module.named_children():
        setattr(module, name, with_all_reduced_norms(child))
    return module


def _all_reduced(norm: _BatchNorm) -> AllReducedBatchNorm:
    kind = AllReducedBatchNormAct if isinstance(norm, BatchNormAct2d) else AllReducedBatchNorm
    replaced = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    replaced._parameters = norm._parameters
    replaced._buffers = norm._buffers
    if isinstance(replaced, AllReducedBatchNormAct):
        replaced.drop, replaced.act = norm.get_submodule("drop"), norm.get_submodule("act")
    return replaced.train(norm.training)
