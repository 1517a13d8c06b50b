"""Every backend and form trains each client as a plain loop over torch modules does, to nine digits of float64.

The reference shares with the engine nothing but the draws, whose numbers test_draws.py proves, and the normalisation.
"""

import copy
import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedscale.config.schema import FederateConfig
from fedscale.data.augment import PAD, normalise
from fedscale.federated.backends import BatchedBackend, Interrupted, LaneTrainer, LoopBackend, RoundStart
from fedscale.federated.cohort import by_steps
from fedscale.federated.data import RoundData
from fedscale.federated.draws import client_keys, draw, keep_mask
from fedscale.federated.flat import FlatLayout, FlatModel
from fedscale.federated.lanes.check import checked
from fedscale.federated.lanes.convert import Form, LaneForm, PlainForm, VmapForm
from fedscale.federated.methods import Problem, method_class
from fedscale.federated.plan import GroupPlan, local_steps, plan_group
from fedscale.models import ResNet8

SEED, ROUND, EPOCHS, BATCH, LR, SIDE, CLASSES = 7, 3, 2, 4, 0.05, 8, 3
# Samples of each client: 6, 6, 6, 4, 4, 4, 2 and 2 steps; last batches of 1 (also of neighbours) to 4.
SIZES = {4: 12, 11: 9, 17: 9, 0: 7, 5: 5, 8: 5, 1: 1, 9: 3}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
ROLES = {"scaffold": ("control", "change")}


class RefDropout(nn.Module):
    """Dropout by the documented masks: layer `number` of `total`, in the client's own `step`."""

    def __init__(self, p: float, number: int, total: int) -> None:
        super().__init__()
        self.p, self.number, self.total = p, number, total
        self.key, self.step = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        counter = self.step * self.total + self.number
        mask = keep_mask(torch.tensor([self.key]), counter, x.numel(), 1 - self.p)
        return x * mask.view(x.shape) / (1 - self.p)


class LeNet(nn.Module):
    """Convolutions with biases, pooling, dropout on maps and on features, linear layers."""

    def __init__(self, reference: bool) -> None:
        super().__init__()
        rates = (0.25, 0.5)
        drops = [RefDropout(p, i, 2) if reference else nn.Dropout(p) for i, p in enumerate(rates)]
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3)
        self.drop1, self.drop2 = drops
        self.pool, self.relu = nn.MaxPool2d(2), nn.ReLU()
        self.fc1, self.fc2 = nn.Linear(6, 10), nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(self.drop1(x))))
        return self.fc2(self.drop2(self.relu(self.fc1(x.flatten(1)))))


def mlp(reference: bool) -> nn.Module:
    features = 3 * SIDE * SIDE
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 12), nn.Tanh(), nn.Linear(12, CLASSES, bias=False))


MODELS: dict[str, Callable[[bool], nn.Module]] = {
    "resnet8": lambda reference: ResNet8(CLASSES, width=4),
    "lenet": LeNet,
    "mlp": mlp,
}
FORMS: dict[str, Callable[[nn.Module], Form]] = {
    "lanes": lambda model: checked(LaneForm(model), model, (3, SIDE, SIDE)),
    "vmap": lambda model: checked(VmapForm(model), model, (3, SIDE, SIDE)),
    "plain": PlainForm,
}


@functools.cache
def world() -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
    """Images, labels, and the rows of each client."""
    draws = np.random.default_rng(0)
    total = sum(SIZES.values())
    images = draws.integers(0, 256, size=(total, SIDE, SIDE, 3), dtype=np.uint8)
    cuts = np.cumsum(list(SIZES.values()))[:-1]
    rows = np.split(draws.permutation(total), cuts)
    return images, draws.integers(0, CLASSES, size=total), dict(zip(SIZES, rows, strict=True))


def start_model(name: str, reference: bool) -> nn.Module:
    torch.manual_seed(1)
    return MODELS[name](reference).double().train()


def random_vectors(name: str) -> dict[str, dict[str, Tensor]]:
    """A broadcast control ("server") and one of each client, by parameter names."""
    generator = torch.Generator().manual_seed(5)
    parameters = dict(start_model(name, True).named_parameters())
    return {
        str(who): {
            n: 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in parameters.items()
        }
        for who in ("server", *SIZES)
    }


# ---- the reference: one client after another, ordinary modules, torch.optim.SGD


def pixels(image: np.ndarray, bits: int, kind: str) -> np.ndarray:
    """One image [H, W, C], cropped and flipped as the 64 bits say."""
    if kind == "crop_flip":
        top, left = ((bits & 0xFFFF) * (2 * PAD + 1)) >> 16, ((bits >> 16 & 0xFFFF) * (2 * PAD + 1)) >> 16
        padded = np.zeros((SIDE + 2 * PAD, SIDE + 2 * PAD, 3), np.uint8)
        padded[PAD : PAD + SIDE, PAD : PAD + SIDE] = image
        image = padded[top : top + SIDE, left : left + SIDE]
    return image[:, ::-1] if kind != "none" and bits >> 32 & 1 else image


@dataclass
class Result:
    """What is compared of a client."""

    model: dict[str, Tensor]  # parameters and statistics
    loss: float
    roles: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def reference(name: str, method: str, settings: FederateConfig) -> dict[int, Result]:
    key = (name, method, repr(settings))
    if key not in REFERENCES:
        REFERENCES[key] = trained_plainly(name, method, settings)
    return REFERENCES[key]


REFERENCES: dict[tuple[str, str, str], dict[int, Result]] = {}


def trained_plainly(name: str, method: str, settings: FederateConfig) -> dict[int, Result]:
    images, labels, rows = world()
    controls, results = random_vectors(name), {}
    for client, size in SIZES.items():
        model = start_model(name, True)
        start = copy.deepcopy(dict(model.named_parameters()))
        optimizer = torch.optim.SGD(
            model.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay
        )
        order_key, augment_key, dropout_key = (
            client_keys(SEED, purpose, ROUND, np.array([client])) for purpose in ("order", "augment", "dropout")
        )
        step, losses = 0, []
        for epoch in range(EPOCHS):
            order = np.argsort(draw(order_key, (epoch << 32) + np.arange(size)), kind="stable")
            for first in range(0, size, BATCH):
                batch = rows[client][order[first : first + BATCH]]
                bits = [int(b) for b in draw(augment_key, step * BATCH + np.arange(len(batch)))]
                shown = np.stack([pixels(images[r], b, settings.augment) for r, b in zip(batch, bits, strict=True)])
                for module in model.modules():
                    if isinstance(module, RefDropout):
                        module.key, module.step = int(dropout_key[0]), step
                optimizer.zero_grad()
                logits = model(normalise(torch.from_numpy(shown), MEAN, STD).double())
                loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels[batch]))
                loss.backward()
                for parameter_name, parameter in model.named_parameters():
                    assert parameter.grad is not None
                    if method == "fedprox":
                        parameter.grad += settings.options["mu"] * (parameter.detach() - start[parameter_name])
                    if method == "scaffold":
                        parameter.grad += controls["server"][parameter_name] - controls[str(client)][parameter_name]
                optimizer.step()
                losses.append(loss.item())
                step += 1
        state = {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
        result = Result(state, float(np.mean(losses)))
        if method == "scaffold":
            old, new = controls[str(client)], {}
            weighed = sum(sum(settings.momentum**i for i in range(k)) for k in range(1, step + 1))
            for n, p in model.named_parameters():
                new[n] = old[n] - controls["server"][n] + (start[n] - p).detach() / (weighed * settings.lr)
            result.roles = {"control": new, "change": {n: new[n] - old[n] for n in new}}
        results[client] = result
    return results


# ---- the engine


class Rows:
    """Clients' vectors in a dict, in place of the store."""

    def __init__(self, vectors: Mapping[int, Tensor]) -> None:
        self.vectors = vectors

    def read(self, client: int, role: str, out: Tensor) -> bool:
        assert role == "control"
        out.copy_(self.vectors[client])
        return True


def flat(layout: FlatLayout, tensors: Mapping[str, Tensor]) -> Tensor:
    """The parameters by name as a vector [num_parameters]."""
    vector = torch.zeros(layout.num_parameters, dtype=torch.float64)
    for name, view in layout.views(vector).items():
        view.copy_(tensors[name])
    return vector


def make_plan(clients: list[int] | None = None) -> GroupPlan:
    _, _, rows = world()
    clients = list(SIZES) if clients is None else clients
    ordered = by_steps(clients, [local_steps(SIZES[c], BATCH, EPOCHS) for c in clients])
    return plan_group(SEED, ROUND, ordered, [rows[c] for c in ordered], BATCH, EPOCHS)


class Engine:
    """A backend for one model, method and settings, and what a round starts from."""

    def __init__(
        self,
        name: str,
        method: str = "fedavg",
        settings: FederateConfig | None = None,
        lanes: int = 0,
        form: str = "lanes",
        dtype: torch.dtype = torch.float64,
        resident: bool = True,
    ) -> None:
        settings = settings or make_settings()
        images, labels, _ = world()
        self.model = start_model(name, False)
        self.data = RoundData(images, labels, torch.device("cpu"), MEAN, STD, settings.augment, resident)
        self.layout = FlatLayout.of(self.model)
        vector = FlatModel(copy.deepcopy(self.model)).vector
        made, like = FORMS[form](self.model), torch.zeros(1, dtype=dtype)
        self.trainers: list[LaneTrainer] = []

        def make(k: int) -> LaneTrainer:
            chosen = method_class(method)(settings, Problem(4, 0, 8))
            trainer = LaneTrainer(made, self.layout, k, like, chosen, settings, self.data)
            self.trainers.append(trainer)
            return trainer

        self.roles = ROLES.get(method, ())
        self.backend = BatchedBackend(make, lanes) if lanes else LoopBackend(make(1))
        self.start = RoundStart(vector.to(dtype))
        if method == "scaffold":
            controls = {who: flat(self.layout, tensors).to(dtype) for who, tensors in random_vectors(name).items()}
            rows = Rows({client: controls[str(client)] for client in SIZES})
            self.start = RoundStart(vector.to(dtype), {"control": controls["server"]}, rows)

    def train(self, clients: list[int] | None = None, start: RoundStart | None = None) -> dict[int, Result]:
        layout, results = self.layout, {}
        for trained in self.backend.train(start or self.start, make_plan(clients)):
            for lane, client in enumerate(trained.plan.clients):
                vector = trained.state.model.lane(lane, self.start.vector.clone())
                result = Result(layout.views(vector), trained.losses[lane].item())
                for role in self.roles:
                    row = trained.state.roles[role].lane(lane, vector.new_zeros(layout.num_parameters))
                    result.roles[role] = layout.views(row)
                results[client] = result
        return results


def make_settings(method: str = "fedavg", **changed: object) -> FederateConfig:
    options = {"fedprox": {"mu": 0.3}}.get(method, {})
    common = {"local_epochs": EPOCHS, "batch_size": BATCH, "lr": LR, "augment": "none", "options": options}
    return FederateConfig(**{"method": method, **common, **changed})


def differences(found: Result, wanted: Result) -> dict[str, float]:
    """The largest difference of each tensor, relative where it is large, and of the loss."""
    tensors: list[tuple[str, Tensor, Tensor]] = [("loss", torch.tensor(found.loss), torch.tensor(wanted.loss))]
    for label, ours, theirs in [
        ("model", found.model, wanted.model),
        *((role, found.roles[role], wanted.roles[role]) for role in wanted.roles),
    ]:
        assert ours.keys() == theirs.keys()
        tensors += [(f"{label} {name}", ours[name], tensor) for name, tensor in theirs.items()]
    return {name: float(((a - b).abs() / b.abs().clamp(min=1)).max()) for name, a, b in tensors}


def assert_equal(found: dict[int, Result], wanted: dict[int, Result], tolerance: float = 1e-9) -> None:
    assert found.keys() == wanted.keys()
    for client in wanted:
        # `not <=`: a NaN is a difference.
        wrong = {n: d for n, d in differences(found[client], wanted[client]).items() if not d <= tolerance}
        assert not wrong, f"client {client}: {wrong}"


PLAIN, MOMENTUM = {}, {"momentum": 0.9, "weight_decay": 0.01}
CASES = [
    *(("mlp", *case) for case in itertools.product(("fedavg", "fedprox", "scaffold"), ("none",), (PLAIN, MOMENTUM))),
    *(("lenet", *case) for case in [("fedavg", "none", PLAIN), ("fedprox", "crop_flip", MOMENTUM)]),
    ("lenet", "scaffold", "flip", PLAIN),
    *(("resnet8", *case) for case in [("fedavg", "crop_flip", PLAIN), ("fedavg", "flip", MOMENTUM)]),
    *(("resnet8", *case) for case in [("fedprox", "none", PLAIN), ("scaffold", "crop_flip", MOMENTUM)]),
]


@pytest.mark.parametrize(("name", "method", "augment", "options"), CASES)
def test_loop_and_batched_of_any_width_train_every_client_as_the_reference_does(
    name: str, method: str, augment: str, options: dict[str, float]
) -> None:
    settings = make_settings(method, augment=augment, **options)
    wanted = reference(name, method, settings)
    for lanes in (0, 2, 3, 5, 8):  # 0: the loop; 3 and 5 leave a smaller last group in buffers that were used before
        assert_equal(Engine(name, method, settings, lanes).train(), wanted)


@pytest.mark.parametrize("name", ["mlp", "resnet8"])
@pytest.mark.parametrize(("form", "lanes"), [("vmap", 1), ("vmap", 3), ("vmap", 8), ("plain", 0)])
@pytest.mark.parametrize(
    ("method", "augment", "options"), [("fedavg", "crop_flip", PLAIN), ("scaffold", "none", MOMENTUM)]
)
def test_the_vmap_and_plain_forms_train_every_client_as_the_reference_does(
    name: str, form: str, lanes: int, method: str, augment: str, options: dict[str, float]
) -> None:
    settings = make_settings(method, augment=augment, **options)
    assert_equal(Engine(name, method, settings, lanes, form).train(), reference(name, method, settings))


def test_the_comparison_would_notice_a_setting_that_is_ignored() -> None:
    settings = make_settings("fedprox", augment="crop_flip", **MOMENTUM)
    wanted = reference("lenet", "fedprox", settings)
    for changed in (
        {"momentum": 0.8},
        {"weight_decay": 0.02},
        {"options": {"mu": 0.31}},
        {"lr": 0.051},
        {"augment": "flip"},
    ):
        other = make_settings("fedprox", **{"augment": "crop_flip", **MOMENTUM, **changed})
        with pytest.raises(AssertionError, match="client"):
            assert_equal(Engine("lenet", "fedprox", other, 3).train(), wanted, tolerance=1e-6)
    plain = make_settings("fedavg", augment="crop_flip", **MOMENTUM)
    with pytest.raises(AssertionError, match="client"):
        assert_equal(Engine("lenet", "fedavg", plain, 3).train(), wanted, tolerance=1e-6)


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet8"])
def test_a_client_does_not_depend_on_the_clients_beside_it_nor_on_its_lane(name: str) -> None:
    settings = make_settings(augment="crop_flip", **MOMENTUM)
    engine = Engine(name, "scaffold", settings, lanes=4)
    alone = engine.train([5])
    for others in ([8, 0], [4, 11, 17], [1, 9]):
        assert_equal({5: engine.train([5, *others])[5]}, alone, tolerance=1e-12)


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet8"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e308])
def test_a_lane_that_diverges_leaves_the_others_as_they_are(name: str, value: float) -> None:
    engine = Engine(name, "scaffold", make_settings("scaffold", momentum=0.9), lanes=8)
    sound = engine.train()
    rows = Rows({c: torch.full_like(v, value) if c == 17 else v for c, v in engine.start.clients.vectors.items()})
    mixed = engine.train(start=RoundStart(engine.start.vector, engine.start.broadcast, rows))
    assert not all(torch.isfinite(tensor).all() for tensor in mixed[17].model.values())
    assert not np.isfinite(mixed[17].loss)
    for client in set(SIZES) - {17}:
        assert mixed[client].loss == sound[client].loss
        for part, same in ((mixed[client].model, sound[client].model), *zip_roles(mixed[client], sound[client])):
            assert all(torch.equal(part[tensor], same[tensor]) for tensor in part)


def zip_roles(one: Result, other: Result) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    return [(one.roles[role], other.roles[role]) for role in one.roles]


@pytest.mark.parametrize("lanes", [0, 3])
def test_a_diverged_client_leaves_nothing_behind_for_the_next_one(lanes: int) -> None:
    settings = make_settings("scaffold", momentum=0.9)
    engine = Engine("resnet8", "scaffold", settings, lanes)
    rows = engine.start.clients
    ill = RoundStart(engine.start.vector, engine.start.broadcast, Rows({c: v / 0 for c, v in rows.vectors.items()}))
    engine.train(start=ill)
    for buffer in (engine.trainers[0].state.model, *engine.trainers[0].state.roles.values()):
        assert not torch.isfinite(buffer.data).all()
    assert_equal(engine.train(), reference("resnet8", "scaffold", settings))


@pytest.mark.parametrize("lanes", [0, 3, 8])
def test_a_stop_is_seen_at_the_next_step_and_training_can_begin_again(lanes: int) -> None:
    settings = make_settings()
    engine = Engine("mlp", "fedavg", settings, lanes)
    asked = itertools.count(1)
    with pytest.raises(Interrupted):
        engine.train(start=RoundStart(engine.start.vector, interrupted=lambda: next(asked) == 5))
    assert next(asked) == 6, "asked once a step, and not after the answer was yes"
    assert_equal(engine.train(), reference("mlp", "fedavg", settings))


def test_interruption_is_asked_for_once_a_step_of_all_lanes() -> None:
    for lanes, asked in ((0, sum(make_plan().steps)), (8, make_plan().steps[0])):
        engine, count = Engine("mlp", lanes=lanes), itertools.count()
        engine.train(start=RoundStart(engine.start.vector, interrupted=lambda count=count: next(count) < 0))
        assert next(count) == asked


@pytest.mark.parametrize(("form", "lanes"), [("lanes", 0), ("lanes", 3), ("vmap", 3), ("plain", 0)])
def test_statistics_move_with_each_client_and_the_given_model_and_vector_stay_as_they_are(
    form: str, lanes: int
) -> None:
    engine = Engine("resnet8", "fedavg", make_settings(), lanes, form)
    state, vector = copy.deepcopy(engine.model.state_dict()), engine.start.vector.clone()
    results = engine.train()
    assert torch.equal(engine.start.vector, vector)
    for name, tensor in engine.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name  # counters of batches among them
    assert not any(name.endswith("num_batches_tracked") for name in results[4].model)
    means = torch.stack([results[client].model["layer1.bn1.running_mean"] for client in SIZES])
    assert len(means.unique(dim=0)) == len(SIZES)
    assert not torch.equal(means[0], state["layer1.bn1.running_mean"])


class Averaged(nn.Module):
    """Batch norm whose statistics are the plain average over batches, by the counter in its integer buffer."""

    def __init__(self, reference: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_counters_of_a_client_go_on_from_step_to_step_and_begin_anew_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(MODELS, "averaged", Averaged)
    settings = make_settings()
    engine = Engine("averaged", settings=settings, form="plain")
    for _ in range(2):
        assert_equal(engine.train(), reference("averaged", "fedavg", settings))


class Sums(nn.Module):
    """Two parameters of one sum, whose gradients autograd may give the same memory; `spread`: a stride of zero too."""

    def __init__(self, layers: bool, spread: bool) -> None:
        super().__init__()
        features = 3 * SIDE * SIDE
        self.layers, self.spread = layers, spread
        self.left, self.right, self.head = nn.Linear(features, 8), nn.Linear(features, 8), nn.Linear(4, CLASSES)
        if not layers:
            self.p, self.q = nn.Parameter(torch.ones(1, 8)), nn.Parameter(torch.zeros(1, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.left(x.flatten(1)) + self.right(x.flatten(1))
        x = x if self.layers else x + self.p + self.q
        x = x if self.spread else torch.tanh(x)
        return self.head(x.unflatten(-1, (-1, 2)).sum(-1))


@pytest.mark.parametrize(("layers", "form", "lanes"), [(True, "lanes", 3), (False, "vmap", 3), (False, "plain", 0)])
@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize(("method", "options"), [("fedavg", MOMENTUM), ("fedprox", PLAIN), ("scaffold", PLAIN)])
def test_gradients_that_share_memory_are_not_adjusted_twice(
    layers: bool,
    form: str,
    lanes: int,
    spread: bool,
    method: str,
    options: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, settings = f"sums {layers} {spread}", make_settings(method, **options)
    monkeypatch.setitem(MODELS, name, lambda reference: Sums(layers, spread))
    assert_equal(Engine(name, method, settings, lanes, form).train(), reference(name, method, settings))


@pytest.mark.parametrize("lanes", [0, 1, 3, 8])
def test_a_store_that_is_staged_group_by_group_gives_the_same_to_the_last_bit(lanes: int) -> None:
    settings = make_settings(augment="crop_flip")
    staged = Engine("lenet", "fedavg", settings, lanes, resident=False)
    plan = make_plan()
    staged.data.prefetch(plan)
    found, wanted = staged.train(), Engine("lenet", "fedavg", settings, lanes).train()
    staged.data.close()
    for client in SIZES:
        assert all(torch.equal(found[client].model[name], tensor) for name, tensor in wanted[client].model.items())


def test_the_group_that_was_prefetched_is_not_gathered_again() -> None:
    engine, plan = Engine("mlp", lanes=8, resident=False), make_plan()
    gathered: list[GroupPlan] = []
    gather = engine.data._gather
    engine.data._gather = lambda plan: (gathered.append(plan), gather(plan))[1]  # type: ignore[method-assign]
    engine.data.prefetch(plan)
    list(engine.backend.train(engine.start, plan))
    engine.data.close()
    assert gathered == [plan] or [id(p) for p in gathered] == [id(plan)]


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet8"])
@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_in_float32_loop_and_batched_agree_to_five_digits(name: str, method: str) -> None:
    settings = make_settings(augment="crop_flip", lr=0.02)
    loop = Engine(name, method, settings, dtype=torch.float32).train()
    for lanes in (3, 8):
        batched = Engine(name, method, settings, lanes, dtype=torch.float32).train()
        # A control is a difference of models over K · lr, which multiplies their rounding.
        for result in (*loop.values(), *batched.values()):
            result.roles = {}
        assert_equal(batched, loop, tolerance=1e-5)
