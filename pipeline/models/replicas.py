"""Batch norm where a batch is shared out over several devices: statistics of each part, or of the whole batch.

DistributedDataParallel gives every device batch statistics of its own part, so the number of devices decides a
training's numbers. Here that number is a parameter: one process computes the statistics of several parts as so
many devices would.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm


class ReplicaBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that in training normalises each of `parts` equal parts of the batch by that part's statistics.

    Running statistics follow the first part alone, as those of rank 0 do where every part has a process. In
    evaluation mode it is `nn.BatchNorm2d`. Input (N, C, H, W) with N a multiple of `parts`.
    """

    parts: int = 1

    def forward(self, x: Tensor) -> Tensor:
        """Normalised x."""
        if not self.training or self.parts == 1:
            return super().forward(x)
        first, *others = x.chunk(self.parts)
        if len(x) % self.parts:
            raise ValueError(f"{len(x)} examples cannot be shared out evenly over {self.parts} devices")
        normalised = [super().forward(first)]
        normalised += [batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps) for x in others]
        return torch.cat(normalised)


def with_replicas(network: nn.Module, parts: int) -> nn.Module:
    """`network` with every `nn.BatchNorm2d` below it replaced, in place, by one with statistics of `parts` parts."""
    for name, child in network.named_children():
        setattr(network, name, _of(child, parts) if type(child) is nn.BatchNorm2d else with_replicas(child, parts))
    return network


def _of(norm: nn.BatchNorm2d, parts: int) -> ReplicaBatchNorm2d:
    """The same layer, parameters and buffers shared."""
    made = ReplicaBatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    made._parameters, made._buffers, made.parts = norm._parameters, norm._buffers, parts
    return made.train(norm.training)


def synchronised(network: nn.Module) -> nn.Module:
    """`network` with batch norms that take their statistics over the batch of all processes; on GPUs alone."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)
