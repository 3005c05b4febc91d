"""higher and torchopt: PyTorch, unrolled."""

import torch
from torch import nn
from torch.nn import functional

from peer_adapters.task import LEARNING_RATE


class ChannelsLastFlatten(nn.Module):
    """Flattens as the other frameworks do: rows, columns, channels."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def network(weights):
    """A module of the shapes of `weights`, as PyTorch lays them out."""
    layers, kernels = [], weights[::2]
    for index, kernel in enumerate(kernels):
        if kernel.ndim == 4:
            outputs, inputs = kernel.shape[:2]
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
        else:
            if index and kernels[index - 1].ndim == 4:
                layers.append(ChannelsLastFlatten())
            layers.append(nn.Linear(*kernel.shape[::-1]))
            layers.append(nn.ReLU())
    return nn.Sequential(*layers[:-1])


def penalty(strengths, weights):
    return sum(
        (s * w**2).sum() for s, w in zip(strengths, weights, strict=True)
    )


def inner_loss(net, hypers, x, y):
    strengths = [torch.sigmoid(h) for h in hypers]
    return functional.cross_entropy(net(x), y) + penalty(
        strengths, list(net.parameters())
    )


def higher_unroll(net, hypers, x, y, x_outer, y_outer):
    import higher

    optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE)
    with higher.innerloop_ctx(net, optimizer) as (inner_net, descent):
        for batch in zip(x, y, strict=True):
            descent.step(inner_loss(inner_net, hypers, *batch))
        outer = functional.cross_entropy(inner_net(x_outer), y_outer)
        hypergradient = torch.autograd.grad(outer, hypers)
        return hypergradient, [w.detach() for w in inner_net.parameters()]


def torchopt_unroll(net, hypers, x, y, x_outer, y_outer):
    import torchopt

    start = torchopt.extract_state_dict(net, by="reference")
    descent = torchopt.MetaSGD(net, lr=LEARNING_RATE)
    for batch in zip(x, y, strict=True):
        descent.step(inner_loss(net, hypers, *batch))
    outer = functional.cross_entropy(net(x_outer), y_outer)
    hypergradient = torch.autograd.grad(outer, hypers)
    weights = [w.detach() for w in net.parameters()]
    torchopt.recover_state_dict(net, start)
    return hypergradient, weights


SOLVERS = {"higher": higher_unroll, "torchopt": torchopt_unroll}


class Adapter:
    """One method; see `measuring` for what is asked of an adapter."""

    def __init__(self, method, num_steps):
        self.solver, self.num_steps = SOLVERS[method], num_steps

    def load(self, task):
        def weights(arrays):
            return [torch.tensor(a).permute(_order(a)).clone() for a in arrays]

        return (
            [h.requires_grad_() for h in weights(task.hypers)],
            weights(task.weights),
            _channels_first(task.x, 3),
            torch.tensor(task.y).long(),
            _channels_first(task.x_outer, 2),
            torch.tensor(task.y_outer).long(),
        )

    def unload(self, tensors):
        return [
            t.detach().permute(_order(t, back=True)).numpy() for t in tensors
        ]

    def prepare(self, arguments):
        net = network(arguments[1])

        def solve(hypers, weights, *data):
            _set(net, weights)
            return self.solver(net, hypers, *data)

        return solve

    def plain_calls(self, arguments):
        """T plain SGD steps: as usual, and the penalty's gradient by hand."""
        hypers, start, x, y, *_ = arguments
        strengths = [torch.sigmoid(h).detach() for h in hypers]
        net = network(start)
        _set(net, start)
        weights = list(net.parameters())
        optimizer = torch.optim.SGD(weights, LEARNING_RATE)

        def one_by_one():
            for x_step, y_step in zip(x, y, strict=True):
                optimizer.zero_grad()
                loss = functional.cross_entropy(net(x_step), y_step)
                (loss + penalty(strengths, weights)).backward()
                optimizer.step()

        twice = [2 * strength for strength in strengths]

        def by_hand():
            for x_step, y_step in zip(x, y, strict=True):
                loss = functional.cross_entropy(net(x_step), y_step)
                gradients = torch.autograd.grad(loss, weights)
                with torch.no_grad():
                    for w, g, s in zip(weights, gradients, twice, strict=True):
                        w.sub_(g.addcmul_(s, w), alpha=LEARNING_RATE)

        return [one_by_one, by_hand]


def _set(net, weights):
    with torch.no_grad():
        for parameter, weight in zip(net.parameters(), weights, strict=True):
            parameter.copy_(weight)


def _channels_first(x, flat_rank):
    """Moves the channels, if there are any, as PyTorch wants them."""
    x = torch.tensor(x)
    return x.movedim(-1, -3).contiguous() if x.ndim > flat_rank else x


def _order(weight, back=False):
    """The axes of a weight of the task in PyTorch, or back."""
    orders = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0) if back else (3, 2, 0, 1)}
    return orders[weight.ndim]
