"""FedBE. Chen, Chao, FedBE: Making Bayesian Model Ensemble Applicable to Federated Learning, ICLR 2021."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, update_bn

from fedscale.config.method_options import EnsembleOptions
from fedscale.config.schema import FederateConfig
from fedscale.federated.clients import BATCH, Clients
from fedscale.federated.methods.base import Method, Problem, Server, ServerWork
from fedscale.federated.methods.distil import batches, step
from fedscale.rng import torch_generator

FLOOR = 1e-8  # of a probability that is sharpened [C]


class FedBE(Method):
    """The averaged model is trained to say what a Bayesian ensemble of models says of the server's images.

    1. Models are N(μ, σ²), each parameter by itself: μ = Σ p_i·w_i, σ² = Σ p_i·(w_i − μ)², p_i = n_i/n. `samples` are
       drawn, with `noise` times σ. (The official code has equal p_i, and updates of each tensor scaled to length 1.)
       They have the averaged model's statistics [D]: drawn variances may be negative.
    2. The ensemble is the mean of the probabilities of μ, the samples and the clients, sharpened to p^(1/T)/Σ p^(1/T).
    3. The student starts at μ and takes SGD steps on KL(p ‖ q)/C [C]; it is replaced by the mean of its parameters at
       every `swa_every`-th step after the share `swa_start` of them and at the last one (SWA), with statistics anew.
    """

    name = "fedbe"
    citation = "Chen and Chao, ICLR 2021, arXiv:2009.01974"
    extra_cost = (
        "server: the clients' models and as many samples again see the pool's images, and a student is trained on them "
        "every round; one vector"
    )
    Options = EnsembleOptions
    options: EnsembleOptions
    roles = ("start", "spread")
    uploads = ("spread",)
    server_state = ("spread",)  # σ²
    inspects = ("spread",)
    refines = True
    unsent = ("spread", "probabilities")  # the server has the clients' models

    def __init__(self, config: FederateConfig, problem: Problem | None = None) -> None:
        super().__init__(config, problem)
        self.pool_images = self.options.pool_images
        self.reports = {"probabilities": (self.pool_images, self.problem.num_classes)}

    def final(self, clients: Clients) -> None:
        lanes = clients.lanes
        changes = lanes["spread"].copy_(lanes.parameters).sub_(lanes["start"])
        batch, sizes = self.config.batch_size, clients.steps.new_tensor(clients.plan.sizes)
        torch._foreach_mul_(changes, changes)
        changes.div_lanes_(batch / sizes)  # times n_i in batches: their plain mean is Σ p_i·(w_i − w)² times a number
        probabilities = clients.pool_logits().softmax(-1)
        clients.reports["probabilities"][:, : probabilities.shape[1]] = probabilities

    def server_step(self, server: Server, mean: Tensor, uploads: Mapping[str, Tensor]) -> Tensor:
        mean_size = sum(server.sizes) / len(server.sizes)
        second = uploads["spread"] * (self.config.batch_size / mean_size)
        server.state["spread"].copy_((second - (mean - server.vector).square()).clamp_(min=0))
        return mean

    def server_work(self, work: ServerWork) -> None:
        assert work.pool is not None
        targets, options, student = self.ensemble(work), self.options, work.model
        steps = options.epochs * max(1, len(work.pool) // options.batch_size)
        optimizer = torch.optim.SGD(student.parameters(), options.lr, options.momentum, weight_decay=options.decay)
        student.train()
        averaged, draws = AveragedModel(student), torch_generator(work.seed, "distillation")
        first = int(options.swa_start * steps)
        for number, rows in enumerate(batches(len(work.pool), options.batch_size, steps, draws), start=1):
            there = rows.to(work.pool.device)
            step(student, optimizer, work.pool[there], targets[there], share=1 / targets.shape[1])
            if number == steps or (number > first and (number - first) % options.swa_every == 0):
                averaged.update_parameters(student)
        parts = work.pool.tensor_split(-(-len(work.pool) // options.batch_size))  # none of one image alone
        update_bn(parts, averaged)
        with torch.no_grad():
            for name, tensor in averaged.module.state_dict().items():
                student.state_dict()[name].copy_(tensor)

    @torch.no_grad()
    def ensemble(self, work: ServerWork) -> Tensor:
        """The sharpened mean [N, C] of all members' probabilities."""
        assert work.pool is not None
        options, model, draws = self.options, work.model.eval(), torch_generator(work.seed, "samples")
        means, variances = dict(model.named_parameters()), work.vectors["spread"]
        total = work.reports["probabilities"][: len(work.pool)] * work.num_clients
        total = total + _probabilities(model, {}, work.pool)
        for _ in range(options.samples):
            sample = {}
            for name, mean in means.items():
                noise = torch.randn(mean.shape, generator=draws, dtype=mean.dtype).to(mean.device)
                sample[name] = mean + options.noise * variances[name].sqrt() * noise
            total += _probabilities(model, sample, work.pool)
        p = (total / (work.num_clients + 1 + options.samples)).clamp(min=FLOOR) ** (1 / options.temperature)
        return (p / p.sum(1, keepdim=True)).to(work.pool.dtype)


def _probabilities(model: nn.Module, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Of the classes [N, C], float64, by the model with these parameters in the place of its own."""
    logits = [functional_call(model, dict(parameters), (part,)) for part in images.split(BATCH)]
    return torch.cat(logits).double().softmax(1)
