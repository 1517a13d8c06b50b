"""Flower's ClientApp, which Ray's actors run: a module of its own, so that actors keep what it caches."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from common import Job, job_of
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch_common import initial_model, tensors, users

app = ClientApp()


@functools.cache
def actor(workload: str, file: str, threads: int) -> tuple[Job, nn.Module, Tensor, Tensor, list[Tensor]]:
    """What an actor keeps: the job, one model, all images as normalised floats, labels, and users' indices."""
    job = job_of(workload, Path(file), rounds=1, threads=threads)
    return job, initial_model(job), *tensors(job), users(job)


@app.train()
def train(message: Message, context: Context) -> Message:
    config = message.content["config"]
    job, model, inputs, labels, indices = actor(config["workload"], config["file"], config["threads"])
    workload = job.workload
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=workload.learning_rate)
    chosen = indices[config["user"]]
    for _ in range(workload.epochs):
        for batch in chosen.split(workload.batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    arrays, metrics = ArrayRecord(model.state_dict()), MetricRecord({"num-examples": len(chosen)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
