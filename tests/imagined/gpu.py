"""A GPU in name alone: tensors that say they are on device `gpu`, while their numbers lie on the CPU.

Operations that mix them with the CPU's are refused as CUDA refuses them, so that what runs here has its tensors in
order. It says nothing of kernels, streams and memory. The device is registered with torch for the whole process, hence
for scripts of their own: `with imagined():`, after `take_over()` has put it in the place of the real ones.
"""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend


class Stream:
    """A stream that is always done."""

    def wait_stream(self, other: Any) -> None: ...

    def synchronize(self) -> None: ...


class Backend(_DummyBackendModule):
    """What torch asks of a device's module."""

    def current_stream(self, *device: Any) -> Stream:
        return Stream()

    def stream(self, stream: Stream) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def synchronize(self, *device: Any) -> None: ...

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend("gpu", Backend())

GPU = torch.device("gpu:0")
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._foreach_copy_.default}
INDEX = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten._unique2.default}
nccl_groups: set[str] = set()  # names of the groups that are gloo's, in the place of NCCL's
capturing: list[tuple[str, Any]] = []  # what a CUDA graph that is being captured stands for, and the graph


class OnGpu(Tensor):
    """A tensor of the imagined GPU; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=GPU,
        )  # fmt: skip
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        found: Tensor = Tensor.data.__get__(self)
        return found

    @data.setter
    def data(self, value: "OnGpu") -> None:
        self.held = value.held.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = OnGpu(self.held.detach().clone())
        if getattr(self, "_is_param", False):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGpu({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried_out(func, args, kwargs or {})


def on_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "gpu"


def carried_out(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation, on the CPU's numbers; RuntimeError where the real one would find tensors on two devices."""
    device = kwargs.get("device")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, OnGpu) for tensor in tensors)
    if func.namespace == "c10d":
        _check_carried(func, args, there)
    if not there and not on_gpu(device):
        return func(*args, **kwargs)
    here = [tensor for tensor in tensors if not isinstance(tensor, OnGpu)]
    if capturing and _breaks_capture(func, args, here, device):
        raise RuntimeError(f"{func} from or to the CPU, while {capturing[0][0]} is captured")
    if func in INDEX:  # indices may lie on the CPU
        here = [tensor for tensor in here if any(tensor is arg for arg in args[:3])]
    moves = func in COPIES or func is aten._to_copy.default
    if there and not moves and any(tensor.dim() for tensor in here):  # single numbers may lie on the CPU
        places = [(tuple(tensor.shape), tensor.device.type) for tensor in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} of {places}")
    plain_args, plain = tree_map(lambda x: x.held if isinstance(x, OnGpu) else x, (args, kwargs))
    if device is not None:
        plain["device"] = torch.device("cpu") if on_gpu(device) else device
    graph = capturing[0][1] if capturing else None
    found = graph.run(func, plain_args, plain) if graph else func(*plain_args, **plain)
    if func in COPIES:
        return args[0] if func is aten.copy_.default else None
    if not on_gpu(device) and (device is not None or not there):
        return found
    wrapped = tree_map(lambda x: OnGpu(x) if isinstance(x, Tensor) else x, found)
    if not there or func is aten._to_copy.default:
        return wrapped
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _check_carried(func: Any, args: Any, there: bool) -> None:
    """NCCL carries the device's tensors alone, gloo here the CPU's alone."""
    for arg in args:
        if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type()):
            group = dist.ProcessGroup.unbox(arg)
            if (group.group_name in nccl_groups) != there:
                kind = "NCCL" if group.group_name in nccl_groups else "gloo"
                raise RuntimeError(
                    f"No backend type associated with device type {'gpu' if there else 'cpu'}: {kind}, {func}"
                )


def _breaks_capture(func: Any, args: Any, here: list[Tensor], device: Any) -> bool:
    """Whether the host would have to wait for the device, or the device to read what is the host's."""
    masks = func in INDEX and any(index is not None and index.dtype is torch.bool for index in args[1])
    copies = func is aten._to_copy.default and bool(here)
    return func in READS or masks or copies or any(t.dim() for t in here) or (device is not None and not on_gpu(device))


class Operations(TorchDispatchMode):
    """For operations that have no tensor of the device among their arguments."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        return carried_out(func, args, kwargs)


class Conversions(TorchFunctionMode):
    """For what torch does below its operations: tensors of Python's numbers, and back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and on_gpu(kwargs.get("device")):
            del kwargs["device"]
            return func(*args, **kwargs).to(GPU)
        if args and isinstance(args[0], OnGpu):
            if func is Tensor.new_tensor:
                return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(GPU)
            if func is Tensor.tolist and capturing:
                raise RuntimeError(f"tolist while {capturing[0][0]} is captured")
            if func in (Tensor.tolist, Tensor.untyped_storage, Tensor.data_ptr):
                return func(args[0].held)
        return func(*args, **kwargs)


def take_over() -> None:
    """Put the device in the place of the one that a run would choose. Before fedscale's own modules are imported."""
    torch.__future__.set_swap_module_params_on_conversion(True)  # a moved parameter stays the same object, as on CUDA
    # Inference tensors have no version, which these want.
    torch.inference_mode = lambda mode=True: torch.no_grad()(mode) if callable(mode) else torch.no_grad()  # type: ignore
    import accelerate

    import fedscale.device

    fedscale.device.pick_device = lambda config: GPU
    _take_over_threads()
    _take_over_nccl()
    accelerate.Accelerator.device = property(lambda self: GPU)  # type: ignore


def _take_over_threads() -> None:
    """Have the device in the threads of a pool, too: a mode is that of one thread."""
    submit = ThreadPoolExecutor.submit

    def submitted(self: ThreadPoolExecutor, work: Any, *args: Any, **kwargs: Any) -> Any:
        def within() -> Any:
            with imagined():
                return work(*args, **kwargs)

        return submit(self, within)

    ThreadPoolExecutor.submit = submitted  # type: ignore


def _take_over_nccl() -> None:
    """Have ranks find a GPU each, and gloo in the place of NCCL, for the device's tensors alone."""
    from fedscale.distributed import links

    initialise, make = dist.init_process_group, dist.new_group

    def init_process_group(backend: str, *args: Any, device_id: Any = None, **words: Any) -> None:
        initialise("gloo", *args, **words)
        if backend == "nccl":
            nccl_groups.add(dist.group.WORLD.group_name)

    def new_group(ranks: list[int], timeout: Any, backend: str) -> Any:
        made = make(ranks, timeout, "gloo")
        if backend == "nccl" and isinstance(made, dist.ProcessGroup):
            nccl_groups.add(made.group_name)
        return made

    def get_backend(group: Any = None) -> str:
        return "nccl" if (group or dist.group.WORLD).group_name in nccl_groups else "gloo"

    dist.init_process_group, dist.new_group, dist.get_backend = init_process_group, new_group, get_backend  # type: ignore
    links.backend_for = lambda cards: (True, "")  # type: ignore


@contextlib.contextmanager
def imagined() -> Iterator[None]:
    """The device is there."""
    with Operations(), Conversions():
        yield


@contextlib.contextmanager
def captured(what: str, graph: Any = None) -> Iterator[None]:
    """As while a CUDA graph is captured: nothing is read from the device, nothing comes from the CPU.

    `graph`: what carries the operations out instead (graphs.Graph).
    """
    capturing.append((what, graph))
    try:
        yield
    finally:
        capturing.pop()
