"""What stage 2 reads: shards and stores, the partition, and what a method's server and clients learn from besides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedscale.config.schema import Config
from fedscale.data.build import ensure_shards
from fedscale.data.manifest import Manifest
from fedscale.data.partition import Partition, make_partition
from fedscale.data.store import ClientStore, open_store
from fedscale.distributed.mesh import Mesh
from fedscale.distributed.waiting import by_main
from fedscale.federated.data import RoundData
from fedscale.federated.methods import Problem, make_method
from fedscale.federated.pool import Pool, keyword_labels, pool_rows
from fedscale.federated.pool_client import open_pool_images, with_pool_client
from fedscale.federated.teacher import clip_view
from fedscale.session import Session


@dataclass(frozen=True)
class Inputs:
    """The data of a run, the same on every rank."""

    manifest: Manifest
    train: ClientStore  # with the pool's images behind the clients' where the pool is a client
    judged: ClientStore  # of the split that models are evaluated on
    partition: Partition
    class_counts: list[int]  # of the clients' own images: what many, medium and few are told by

    def for_method(
        self, config: Config, data: RoundData, mesh: Mesh, session: Session
    ) -> tuple[Pool | None, dict[str, Tensor]]:
        """The server's images, and the constants of its work; what clients learn from goes beside `data`.

        Raises UserError where the pool or the teacher's weights are not there.
        """
        names = self.manifest.class_names
        problem = Problem(len(names), 0, len(self.partition.clients))
        method = make_method(config.federate, problem)
        pool = _pool(config, names, method.pool_images, method.pool_balanced, data, mesh, session)
        teacher: dict[str, Tensor] = {}
        if "clip" in method.sides:

            def seen(session: Session) -> dict[str, Tensor]:
                return clip_view(config, self.manifest, self.train, mesh.device, session)

            view = by_main(mesh, session, seen) or seen(session)
            data.add_side("clip", view["logits"])
            teacher["clip"] = view["classes"].to(mesh.device)
        return pool, teacher


def open_inputs(config: Config, folder: Path, mesh: Mesh, session: Session) -> Inputs:
    """Open the data; the main rank builds what is missing before the others look, and exports the partition."""

    def opened(session: Session) -> tuple[Manifest, ClientStore, ClientStore]:
        reporter, size, limit = session.reporter, config.data.image_size, config.data.max_corrupt
        manifest = ensure_shards(config.data, reporter)
        train = open_store(manifest, "train", size, reporter, limit)
        return manifest, train, open_store(manifest, config.eval.split, size, reporter, limit)

    manifest, train, judged = by_main(mesh, session, opened) or opened(session)
    partition = _partition(config, train, folder, mesh)
    counts = np.bincount(train.labels, minlength=len(manifest.class_names)).tolist()
    if config.data.partition.pool_client:

        def pooled(session: Session) -> tuple[Manifest, ClientStore]:
            return open_pool_images(config, session.reporter)

        pool, images = by_main(mesh, session, pooled) or pooled(session)
        train, partition = with_pool_client(config, train, partition, pool, images, folder)
    if partition.note:
        session.reporter.say(f"partition: {partition.note}")
    return Inputs(manifest, train, judged, partition, counts)


def _partition(config: Config, train: ClientStore, folder: Path, mesh: Mesh) -> Partition:
    classes = len(train.class_names)
    partition = make_partition(train.labels, classes, config.data.partition, config.seed, keys=train.keys)
    if mesh.is_main:
        partition.save(folder / "partition.json", keys=train.keys)
    return partition


def _pool(
    config: Config,
    names: tuple[str, ...],
    count: int,
    balanced: bool,
    data: RoundData,
    mesh: Mesh,
    session: Session,
) -> Pool | None:
    if not count:
        return None

    def opened(session: Session) -> ClientStore:
        return open_pool_images(config, session.reporter)[1]

    store = by_main(mesh, session, opened) or opened(session)
    rows = pool_rows(store, names, count, balanced, config.seed)
    images = data.normalised(torch.from_numpy(store.images[rows]).to(mesh.device))
    return Pool(images, torch.from_numpy(keyword_labels(store, names)[rows]).to(mesh.device))
