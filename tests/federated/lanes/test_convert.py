"""The form of L clients computes what the model computes, or is refused with the reason."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedscale.federated.flat import FlatLayout
from fedscale.federated.lanes.check import batched_form, checked, single_form
from fedscale.federated.lanes.convert import Form, LaneForm, PlainForm, VmapForm
from fedscale.federated.lanes.layers import Unsupported
from fedscale.federated.lanes.state import LaneState
from fedscale.models import ResNet8

CLASSES, IMAGE = 5, (3, 8, 8)
FEATURES = 3 * 8 * 8


def sequential(*modules: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*copy.deepcopy(modules))


class Residual(nn.Module):
    """Functional activations and pooling, a residual, a product; a layer of batch norm that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm, self.fc = nn.BatchNorm2d(6), nn.Linear(6 * 4 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv1(x)), inplace=True)
        x = F.gelu(self.norm(self.conv2(x)) + x) * torch.sigmoid(x)
        return self.fc(F.avg_pool2d(x, 2).flatten(1))


class Twice(nn.Module):
    """A linear layer that is used twice, beside one that is used once."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.shared(torch.tanh(self.shared(x.flatten(1))))))


class Rows(nn.Module):
    """One-dimensional convolutions over the pixels of a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 6, 5, stride=2, groups=3), nn.BatchNorm1d(6)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x.flatten(2)))).mean(2))


def torchvision_resnet18() -> nn.Module:
    from torchvision.models import resnet18  # only here: it takes a second

    return resnet18(num_classes=CLASSES)


ZOO: dict[str, Callable[[], nn.Module]] = {
    "resnet8": lambda: ResNet8(CLASSES, width=4),
    "lenet": sequential(
        nn.Conv2d(3, 4, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Conv2d(4, 6, 3),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(6, 10),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(10, CLASSES),
    ),
    "group norm": sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.GroupNorm(8, 8, affine=False),
        nn.Flatten(),
        nn.Linear(8 * 16, CLASSES),
    ),
    "layer norm": sequential(
        nn.Conv2d(3, 4, 3),
        nn.LayerNorm([4, 6, 6]),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(144, 12),
        nn.LayerNorm(12),
        nn.ReLU(),
        nn.LayerNorm(12, elementwise_affine=False),
        nn.Linear(12, CLASSES, bias=False),
    ),
    "batch norm of features": sequential(
        nn.Flatten(),
        nn.BatchNorm1d(FEATURES),
        nn.Linear(FEATURES, 9),
        nn.BatchNorm1d(9, affine=False),
        nn.ELU(),
        nn.Linear(9, 9, bias=False),
        nn.BatchNorm1d(9, track_running_stats=False),
        nn.Linear(9, CLASSES),
    ),
    "one dimension": Rows,
    "residual": Residual,
    "twice": Twice,
    "linear alone": sequential(nn.Flatten(), nn.Linear(FEATURES, CLASSES)),
    "adaptive pooling": sequential(
        nn.Conv2d(3, 6, 3, stride=2, dilation=2, padding="valid"),
        nn.LeakyReLU(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, CLASSES),
    ),
    "strided one by one": sequential(  # and images of one pixel, whose strides mean nothing
        nn.Conv2d(3, 4, 1, stride=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 1),
        nn.Flatten(),
        nn.Linear(6, CLASSES),
    ),
    "one kernel": sequential(
        nn.Conv2d(3, 1, 3), nn.Sigmoid(), nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(16, CLASSES)
    ),
    "instance norm": sequential(
        nn.Conv2d(3, 4, 3),
        nn.InstanceNorm2d(4),
        nn.SiLU(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    ),
    "frozen body": lambda: frozen_body(),
}
SINGLE = [name for name in ZOO if name not in ("batch norm of features",)]  # which take batches of one image


def frozen_body() -> nn.Module:
    model = ResNet8(CLASSES, width=4)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    return model


def build(name: str) -> nn.Module:
    torch.manual_seed(4)
    return (torchvision_resnet18 if name == "torchvision" else ZOO[name])()


def assert_computes_the_model(
    form: Form, model: nn.Module, lanes: int = 4, batch: int = 5, start: int = 1, image: tuple[int, ...] = IMAGE
) -> None:
    """Lanes `start` and following of a buffer give the model's logits, gradients and statistics, client by client."""
    reference = copy.deepcopy(model).double().train()
    for module in reference.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    layout = FlatLayout.of(reference)
    state = LaneState(layout, lanes, torch.zeros(1, dtype=torch.float64), ())
    generator = torch.Generator().manual_seed(8)
    given = {**dict(reference.named_parameters()), **dict(reference.named_buffers())}
    for name, block in state.model.blocks().items():
        block.copy_(given[name].detach() + 0.2 * torch.rand(block.shape, generator=generator, dtype=torch.float64))
    kept = state.model.data.clone()
    view = state.view(start, lanes)
    images = torch.randn(batch, len(view), *image, generator=generator, dtype=torch.float64)
    if form.channels_last:
        images = images.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    before = {name: block.clone() for name, block in view.tensors.items()}
    logits = form.logits(view, images)
    assert logits.shape == (len(view), batch, CLASSES)
    weights = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad((logits * weights).sum(), list(view.parameters))
    for lane in range(len(view)):
        own = {name: block[lane].clone(memory_format=torch.contiguous_format) for name, block in before.items()}
        trained = [own[entry.name].requires_grad_() for entry in layout.parameters]
        counters = {n: b.clone() for n, b in reference.named_buffers() if not b.is_floating_point()}
        wanted = functional_call(reference, own | counters, (images[:, lane].contiguous(),))
        torch.testing.assert_close(logits[lane], wanted, rtol=1e-9, atol=1e-9)
        grads = torch.autograd.grad((wanted * weights[lane]).sum(), trained)
        for entry, ours, theirs in zip(layout.parameters, found, grads, strict=True):
            torch.testing.assert_close(
                ours[lane], theirs, rtol=1e-8, atol=1e-9, msg=lambda m, e=entry: f"{e.name}: {m}"
            )
        for entry in layout.statistics:
            torch.testing.assert_close(view.tensors[entry.name][lane], own[entry.name], rtol=1e-9, atol=1e-9)
    for entry, block in zip(layout.entries, state.model.flat_blocks(0, start), strict=True):  # lanes not at work
        at = lanes * entry.offset
        assert torch.equal(block.reshape(-1), kept[at : at + start * entry.numel])


@pytest.mark.parametrize("name", ZOO)
def test_the_lane_form_computes_the_model(name: str) -> None:
    model = build(name)
    form, reason = batched_form(model, IMAGE)
    assert (form.name, reason) == ("lanes", "")
    assert_computes_the_model(form, model)
    assert_computes_the_model(form, model, lanes=1, start=0)
    assert_computes_the_model(form, model, lanes=2, batch=2, start=0)
    alone, reason = single_form(model, IMAGE)
    assert (alone.name, reason) == ("lanes", "")


@pytest.mark.parametrize("name", SINGLE)
def test_the_lane_form_computes_the_model_for_batches_of_one_image(name: str) -> None:
    # Where torch 2.15's own grouped convolutions go wrong (see LaneConv).
    model = build(name)
    form = LaneForm(model)
    for lanes in (1, 2, 4):
        assert_computes_the_model(form, model, lanes=lanes, batch=1, start=0)


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("form", [LaneForm, VmapForm])
def test_images_that_shrink_to_one_pixel_are_computed_like_others(form: Callable[..., Form], batch: int) -> None:
    model = build("resnet8")
    for image in ((3, 4, 4), (3, 2, 6), (3, 1, 5)):
        assert_computes_the_model(form(model), model, lanes=3, batch=batch, start=0, image=image)


@pytest.mark.slow
def test_the_lane_form_computes_torchvisions_resnet18() -> None:
    model = build("torchvision")
    form, reason = batched_form(model, (3, 32, 32))
    assert (form.name, reason) == ("lanes", "")
    assert_computes_the_model(form, model, lanes=3, batch=3, image=(3, 32, 32))


@pytest.mark.parametrize("name", ["resnet8", "group norm", "residual", "twice", "strided one by one", "frozen body"])
@pytest.mark.parametrize("batch", [4, 1])
def test_the_vmap_and_plain_forms_compute_the_model(name: str, batch: int) -> None:
    model = build(name)
    assert_computes_the_model(VmapForm(model), model, lanes=3, batch=batch)
    assert_computes_the_model(PlainForm(model), model, lanes=2, batch=batch)


def test_linear_layers_used_once_are_known_and_one_used_twice_is_not_among_them() -> None:
    assert batched_form(build("twice"), IMAGE)[0].single_linears == {"head.weight"}
    assert batched_form(build("lenet"), IMAGE)[0].single_linears == {"8.weight", "11.weight"}
    form, model = batched_form(build("resnet8"), IMAGE)[0], build("resnet8")
    assert form.single_linears == {"classifier.weight"}
    assert_computes_the_model(form, model)
    assert form.single_linears == {"classifier.weight"}, "also after it has computed"


def test_a_form_has_no_copy_of_the_weights_and_leaves_the_model_alone() -> None:
    model = build("resnet8")
    before = copy.deepcopy(model.state_dict())
    for form in (LaneForm(model), VmapForm(model), PlainForm(model)):
        checked_form = form if form.name == "plain" else checked(form, model, IMAGE)
        inside = getattr(form, "tree", None) or form._model
        tensors = [*inside.parameters(), *(b for b in inside.buffers() if b.is_floating_point())]
        assert all(tensor.is_meta for tensor in tensors)
        assert checked_form is form
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


# ---- models that have no lane form


class Softmax(nn.Module):
    """A softmax over channels, which in the lane form would be over all clients' channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).softmax(dim=1).amax((2, 3)))


class Concatenation(nn.Module):
    """Channels side by side, which in the lane form would be two clients' where one client's should be."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 4, 1)
        self.mix, self.fc = nn.Conv2d(6, 4, 1), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.mix(torch.cat([self.left(x), self.right(x)], 1)).mean((2, 3)))


class OwnParameter(nn.Module):
    """A parameter that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.fc = nn.Parameter(torch.ones(FEATURES)), nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1) * self.scale)


class OwnBuffer(nn.Module):
    """A buffer that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.ones(FEATURES))
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1) + self.shift)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.again = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.again.weight, self.fc = self.up.weight, nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.again(torch.tanh(self.up(x.flatten(1))))))


class Attention(nn.Module):
    """Pixels as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Linear(3, 8), nn.Linear(8, CLASSES)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.flatten(2).mT)
        return self.fc(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


class Tokens(nn.Module):
    """A linear layer on tokens, and nothing else that would not do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Linear(3, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.embed(x.flatten(2).mT).relu().mean(1))


class Double(torch.autograd.Function):
    """Twice the input, without a rule for vmap."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return 2 * grad


class Custom(nn.Module):
    """A function that vmap does not know, and a softmax that the lane form does not."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return Double.apply(self.fc(x.flatten(1).softmax(1)))


class Views(nn.Module):
    """What beginners' code says where it should say `flatten`: it cannot be done to channels-last activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.point = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4 * 64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.point(self.conv(x)).relu().view(len(x), -1))


class Branching(nn.Module):
    """A Python branch on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out = self.fc(x.flatten(1)).softmax(1)
        return out if out.mean() > 1e9 else 2 * out


VMAP = {
    "softmax over channels": (Softmax, "the logits differs"),
    "concatenation of channels": (Concatenation, "the logits differs"),
    "own parameter": (OwnParameter, "the model: OwnParameter has tensors of its own (scale)"),
    "own buffer": (OwnBuffer, "the model: OwnBuffer has tensors of its own (shift)"),
    "tied weights": (Tied, "again.weight: a parameter that another layer has too"),
    "attention": (Attention, "attention: MultiheadAttention has tensors of its own (in_proj_weight)"),
    "tokens": (Tokens, "embed: Linear on 3-dimensional activations"),
    "circular padding": (
        sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(256, CLASSES)),
        "0: padding_mode=circular",
    ),
    "unknown layer": (
        sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.Flatten(), nn.Linear(144, CLASSES)),
        "1: PReLU has tensors of its own (weight)",
    ),
    "view": (Views, "view size is not compatible"),
}


@pytest.mark.parametrize("name", VMAP)
def test_a_model_without_a_lane_form_goes_through_vmap_and_the_reason_names_the_operation(name: str) -> None:
    make, why = VMAP[name]
    torch.manual_seed(4)
    model = make()
    form, reason = batched_form(model, IMAGE)
    assert form.name == "vmap"
    assert why in reason
    alone, reason = single_form(model, IMAGE)
    assert alone.name == "plain"
    assert why in reason
    for batch in (3, 1):
        assert_computes_the_model(form, model, lanes=3, batch=batch)
        assert_computes_the_model(alone, model, lanes=1, batch=batch, start=0)


@pytest.mark.parametrize(
    ("make", "lanes", "through_vmap"),
    [
        (Custom, "the logits differs", "autograd.Function"),
        (Branching, "the logits differs", "data-dependent control flow"),
        (
            sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.Flatten(), nn.Linear(144, CLASSES)),
            "1: momentum=None (a cumulative average)",
            "item()",
        ),
    ],
)
def test_a_model_that_neither_form_holds_trains_as_it_is_and_both_reasons_are_said(
    make: Callable[[], nn.Module], lanes: str, through_vmap: str
) -> None:
    torch.manual_seed(4)
    model = make()
    with pytest.raises(Unsupported) as error:
        batched_form(model, IMAGE)
    first, second = str(error.value).split("; vmap: ")
    assert lanes in first
    assert through_vmap in second
    alone, reason = single_form(model, IMAGE)
    assert alone.name == "plain"
    assert lanes in reason
    assert_computes_the_model(alone, model, lanes=1, start=0)


class Jittered(nn.Module):
    """Draws a number a step that changes its logits so rarely that comparing them finds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.flatten(1)) * (torch.rand((), dtype=images.dtype, device=images.device) >= 1e-12)


@pytest.mark.parametrize(
    "make", [Jittered, sequential(nn.Conv2d(3, 4, 3), nn.Dropout2d(1e-9), nn.Flatten(), nn.Linear(144, CLASSES))]
)
def test_a_model_that_draws_numbers_by_itself_trains_as_it_is_even_where_they_do_not_show(
    make: Callable[[], nn.Module],
) -> None:
    model, before = make(), torch.get_rng_state()
    with pytest.raises(Unsupported, match=r"draws random numbers by itself, .*; vmap: .*(draws random|draws masks)"):
        batched_form(model, IMAGE)
    alone, reason = single_form(model, IMAGE)
    assert alone.name == "plain" and "draws random numbers" in reason
    assert torch.equal(torch.get_rng_state(), before), "checking takes none of the numbers of what follows"


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(Unsupported, match=r"logits of shape \[3, 4, 8, 8\], expected \[B, classes\]"):
        batched_form(nn.Sequential(nn.Conv2d(3, 4, 1)), IMAGE)


@pytest.mark.parametrize("rate", [0.0, 1e-7, 0.3, 1.0])
def test_dropout_of_any_rate_scales_what_it_keeps_and_gives_zeros_at_one(rate: float) -> None:
    form = LaneForm(nn.Sequential(nn.Dropout(rate), nn.Linear(FEATURES, CLASSES)))
    dropout = form.tree[0]
    form.lanes.count, form.lanes.dropout_keys = 2, torch.tensor([5, 6])
    x = torch.ones(7, 2 * 1000, requires_grad=True)
    out = dropout(x)
    kept = out != 0
    assert out.isfinite().all()
    assert abs(kept.double().mean().item() - (1 - rate)) < 0.02
    assert torch.allclose(out[kept], torch.tensor(1 / (1 - rate) if rate < 1 else 0.0))
    assert torch.autograd.grad(out.sum(), x)[0].isfinite().all()


def test_layers_and_steps_have_dropout_masks_of_their_own_and_repeat_them() -> None:
    form = LaneForm(nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5), nn.Linear(4, 3)))
    form.lanes.count, form.lanes.dropout_keys = 2, torch.tensor([5, 6])
    x, seen = torch.ones(3, 2 * 40), []
    for step in (0, 1, torch.tensor(2)):
        form.lanes.step = step
        seen += [form.tree[layer](x) for layer in (0, 1)]
    for i, one in enumerate(seen):
        assert not torch.equal(one[:, :40], one[:, 40:]), "clients differ"
        assert not any(torch.equal(one, other) for other in seen[i + 1 :])
    form.lanes.step = 0
    assert torch.equal(form.tree[0](x), seen[0])
