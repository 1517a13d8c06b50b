"""FedDF. Lin et al., Ensemble Distillation for Robust Model Fusion in Federated Learning, NeurIPS 2020."""

from __future__ import annotations

import torch

from fedscale.config.method_options import DistillationOptions
from fedscale.config.schema import FederateConfig
from fedscale.federated.clients import Clients
from fedscale.federated.methods.base import Method, Problem, ServerWork
from fedscale.federated.methods.distil import batches, step
from fedscale.rng import torch_generator


class FedDF(Method):
    """The averaged model is trained to give the softmax of the clients' mean logits on the server's images.

    Its steps are on KL(softmax(t̄/T) ‖ softmax(z/T)), with t̄ the plain mean over the clients' final models in evaluation
    mode; Adam with cosine decay, anew each round, the student in training mode. It always takes `steps` of them: the
    official code keeps the best student by a labelled validation set, which this server does not have [D].
    """

    name = "feddf"
    citation = "Lin et al., NeurIPS 2020, arXiv:2006.07242"
    extra_cost = "server: every client's model sees the pool's images, and a student is trained on them every round"
    Options = DistillationOptions
    options: DistillationOptions
    refines = True
    unsent = ("logits",)  # the server has the clients' models

    def __init__(self, config: FederateConfig, problem: Problem | None = None) -> None:
        super().__init__(config, problem)
        self.pool_images = self.options.pool_images
        self.reports = {"logits": (self.pool_images, self.problem.num_classes)}

    def final(self, clients: Clients) -> None:
        logits = clients.pool_logits()
        clients.reports["logits"][:, : logits.shape[1]] = logits  # a pool may have fewer images than are asked for

    def server_work(self, work: ServerWork) -> None:
        assert work.pool is not None
        options, student = self.options, work.model.train()
        logits = work.reports["logits"][: len(work.pool)]
        targets = (logits / options.temperature).softmax(1).to(work.pool.dtype)
        optimizer = torch.optim.Adam(student.parameters(), options.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
        draws = torch_generator(work.seed, "distillation")
        for rows in batches(len(work.pool), options.batch_size, options.steps, draws):
            there = rows.to(work.pool.device)
            taught = work.pool[there], targets[there]
            step(student, optimizer, *taught, temperature=options.temperature, clip_norm=options.clip_norm)
            schedule.step()
