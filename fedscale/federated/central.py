"""What the server does beside averaging: its own training on the main rank, and the model that is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedscale.config.schema import Config
from fedscale.distributed.mesh import Mesh
from fedscale.errors import UserError
from fedscale.federated.flat import ModelHost
from fedscale.federated.methods import Method, ServerWork
from fedscale.federated.pool import Pool
from fedscale.federated.server import ServerState
from fedscale.rng import derive


@dataclass
class Central:
    """The server's own part of a run. Every rank calls every method."""

    config: Config
    method: Method
    host: ModelHost
    server: ServerState
    mesh: Mesh
    pool: Pool | None = None  # the server's images
    teacher: Mapping[str, Tensor] = field(default_factory=dict)  # constants that its work is given

    def work(
        self,
        work: Callable[[ServerWork], None],
        number: int,
        reports: Mapping[str, Tensor],
        num_clients: int,
        refines: bool,
    ) -> None:
        """Let the server train on the main rank, and give all ranks what came of it."""
        server, mesh, layout = self.server, self.mesh, self.host.layout
        vectors = {name: layout.views(server.whole(name)) for name in self.method.inspects}
        if mesh.is_main:
            self.host.load(server.vector)
            seed, device = derive(self.config.seed, "server work", number), server.vector.device
            given = ServerWork(
                self.host.model,
                server.shared,
                reports,
                vectors,
                num_clients,
                number,
                seed,
                self.pool.images if self.pool else None,
                self.pool.labels if self.pool else None,
                self.teacher,
            )
            with torch.enable_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(seed)  # what dropout draws from
                work(given)
        for tensor in server.shared.values():
            tensor.copy_(mesh.broadcast_object(tensor.cpu()))
        if refines:
            server.vector = mesh.broadcast_object(self.host.read().cpu()).to(server.vector)

    def load_judged(self) -> None:
        """Make the host's model the one that is judged; nothing is gathered where the method judges the global one."""
        plain = type(self.method).judged is Method.judged
        self.host.load(self.server.vector if plain else self.host.slice_of(self.judged()))

    @torch.no_grad()
    def judged(self) -> Tensor:
        """The whole vector of the global model as it is evaluated and handed on.

        Raises UserError for a tensor of the method's that is none of the model's, or of another shape.
        """
        whole = self.host.whole_of(self.server.vector).clone()
        state = self.host.whole_layout.views(whole)
        for name, tensor in self.method.judged(state, self.server.shared).items():
            if name not in state or state[name].shape != tensor.shape:
                expected = list(state[name].shape) if name in state else f"one of {', '.join(state)}"
                raise UserError(
                    f"federate.method={self.method.config.method}: `judged` gave {name} {list(tensor.shape)}, expected "
                    f"{expected}"
                )
            state[name].copy_(tensor)
        return whole
