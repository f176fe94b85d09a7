"""The block walk: captures each block's inputs, with the pruned blocks before it in place.

Every batch has one forward pass, which pauses at each block. There the block runs twice: once
unpruned, to capture the inputs of its weights, and once pruned, to continue the pass. The code
between blocks is the model's own, so masks, position embeddings, skip connections and encoder
states are those of the model. A paused pass holds one block's inputs.
"""

import contextvars
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial, wraps
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from seven_exp.pruning.inputs import Use, evaluating

See = Callable[[int, list[Tensor]], None]
"""``see(i, inputs)``: receives the inputs of weight i, as `Use.inputs` returns them."""

Hold = Callable[[nn.Module], AbstractContextManager[object]]
"""``hold(block)``: within the context the block's weights exist; outside it they need not."""

Run = Callable[[], object]
"""Runs the forward pass of one batch."""

Forward = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], object]
"""``forward(module, args, kwargs)``: runs a block, or a module outside all blocks."""

_Work = Callable[[tuple[Any, ...], dict[str, Any]], object]


class _Stopped(BaseException):
    """Ends a pass that is no longer needed."""


class _Settings:
    """Torch's settings and the context variables of the thread that makes it."""

    def __init__(self) -> None:
        used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self._device = torch.cuda.current_device() if used else None
        self._autocast = {
            kind: (torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in (("cpu", "cuda") if used else ("cpu",))
        }
        self._context = contextvars.copy_context()

    def within(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function with these settings, without gradients."""
        return self._context.run(self._within, function, *args)

    def _within(self, function: Callable[..., Any], *args: Any) -> Any:
        with ExitStack() as settings:
            settings.enter_context(torch.no_grad())
            if self._device is not None:
                settings.enter_context(torch.cuda.device(self._device))
            for kind, (dtype, enabled) in self._autocast.items():
                # Its cache would give a pruned weight its old values.
                settings.enter_context(
                    torch.autocast(kind, dtype, enabled=enabled, cache_enabled=False)
                )
            return function(*args)


class _Call(NamedTuple):
    """A paused call of a module, with the settings of its thread."""

    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    settings: _Settings

    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments; the first ones are the inputs."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    def run(self) -> Any:
        return self.settings.within(partial(self.forward, *self.args, **self.kwargs))


class _Pass:
    """A forward pass in its own thread, which can pause inside the model's code.

    The calls at which it pauses run in the walk's thread: libraries of linear algebra hold buffers
    for each thread that calls them. Only one of all these threads runs at a time.

    Args:
        run: The forward pass.
    """

    def __init__(self, run: Run) -> None:
        self.place: nn.Module | None = None
        """The module at whose call it waits; None: it has ended."""
        self.running = False
        """Whether the pass's thread is the one that runs."""
        self._call: _Call | None = None
        self._shared: list[tuple[Tensor, int]] = []  # with their versions
        self._results: SimpleQueue[Any] = SimpleQueue()
        self._halts: SimpleQueue[nn.Module | BaseException | None] = SimpleQueue()
        self._thread = Thread(target=_Settings().within, args=(self._run, run), daemon=True)

    def start(self) -> None:
        """Run up to the first halt."""
        self.running = True
        self._thread.start()
        self._wait()

    def go_on(self) -> None:
        """Run the paused call, and the pass up to the next halt."""
        assert self._call is not None
        result, self._call = self._call.run(), None
        if any(tensor._version != version for tensor, version in self._shared):
            raise RuntimeError("a block of the model changes its mask or its positions in place")
        self.running = True
        self._results.put(result)
        self._wait()

    def share(self, other: "_Pass") -> None:
        """Use the other pass's memory for equal arguments besides the inputs, such as masks.

        A pass holds them up to its end, and a mask may be larger than the inputs. Models hand
        the same tensors to every block, so no block may change them.
        """
        if self is other or self._call is None or other._call is None:
            return
        self._shared = []
        pairs = zip(self._call.tensors()[1:], other._call.tensors()[1:], strict=False)
        for own, given in pairs:
            if own.data_ptr() != given.data_ptr() and _same(own, given):
                own.set_(given)  # type: ignore[call-overload]
            if own.data_ptr() == given.data_ptr():
                self._shared.append((own, own._version))

    def work(self, work: _Work) -> None:
        """Apply a function to the arguments of the paused call."""
        assert self._call is not None
        self._call.settings.within(work, self._call.args, self._call.kwargs)

    def stop(self) -> None:
        """End the pass at its present halt."""
        if self.place is not None:
            self._results.put(_Stopped())
            self._thread.join()
            self.place = None

    def halt(self, module: nn.Module, call: _Call) -> Any:
        """In the pass's thread: pause at a module's call, and return its result."""
        self._call = call
        self._halts.put(module)
        del call
        result = self._results.get()
        if isinstance(result, _Stopped):
            raise result
        return result

    def _wait(self) -> None:
        halt = self._halts.get()
        self.running = False
        self.place = None if isinstance(halt, BaseException) else halt
        if isinstance(halt, BaseException):
            raise halt

    def _run(self, run: Run) -> None:
        end: BaseException | None = None
        try:
            run()
        except _Stopped:
            pass
        except BaseException as error:
            end = error
        self._halts.put(end)


def walk(
    uses: Mapping[int, Use],
    blocks: Sequence[nn.Module],
    runs: Sequence[Run],
    see: See,
    hold: Hold | None = None,
    *,
    forward: Forward | None = None,
    to_the_end: bool = False,
) -> Generator[list[int]]:
    """Capture the inputs of some weights, block by block, with the weights yielded before pruned.

    A weight outside all blocks forms its own block. If a pass calls a block again, only the first
    call counts.

    Args:
        uses: Index of a weight -> where it is used.
        blocks: Modules, none inside another.
        runs: One forward pass per batch.
        see: Called for each weight of a block and each batch that reaches the block.
        hold: Called for each block that a pass enters, whether or not weights of it are pruned.
            None: all weights exist all the time.
        forward: Runs each block in which inputs are captured, once per batch. None: without
            gradients, and only if weights lie inside it.
        to_the_end: Whether the passes go on after the last of the weights.

    Yields:
        The weights whose inputs have been captured, if there are any. The caller may prune them;
        the walk continues with their new values.
    """
    if not (uses or to_the_end):
        return
    gates = _gates(uses, blocks)
    held = set() if hold is None else set(blocks)
    gates |= {block: set() for block in held - gates.keys()}
    left = set(uses)
    passes = [_Pass(run) for run in runs]
    current = passes[0]

    def gate(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if current.running and (module in held or left & gates[module]):
            return current.halt(module, _Call(forward, args, kwargs, _Settings()))
        return forward(*args, **kwargs)

    with ExitStack() as stack:
        for module in gates:
            stack.enter_context(_instead(module, gate))
        for one in passes:
            stack.callback(one.stop)
            current = one
            one.start()
            one.share(passes[0])
        while (left or to_the_end) and (place := _next_place(passes)):
            waiting = [one for one in passes if one.place is place]
            members = sorted(left & gates[place])
            here = {i: uses[i] for i in members if uses[i].module is place}
            inside = {i: uses[i] for i in members if uses[i].module is not place}
            plainly = _forward if inside else None
            with hold(place) if hold and place in held else nullcontext():
                if members:
                    with capturing(inside, see):
                        for current in waiting:
                            current.work(_capture(place, here, see, forward or plainly))
                    yield members
                left -= set(members)
                for current in waiting if left or to_the_end else ():
                    current.go_on()
                    current.share(waiting[0])
        if left:
            yield sorted(left)


def side_by_side(blocks: Sequence[nn.Module], runs: Sequence[Run], hold: Hold) -> None:
    """Run all passes to their ends, block by block, so that each block is held once.

    Args:
        blocks: Modules, none inside another.
        runs: One forward pass per batch; they end in their order.
        hold: Called for each block that the passes enter.
    """
    for _ in walk({}, blocks, runs, lambda i, inputs: None, hold, to_the_end=True):
        pass


def _next_place(passes: Sequence[_Pass]) -> nn.Module | None:
    """The module that most passes wait for; None: all have ended."""
    places = Counter(one.place for one in passes if one.place)
    return places.most_common(1)[0][0] if places else None


def _gates(uses: Mapping[int, Use], blocks: Sequence[nn.Module]) -> dict[nn.Module, set[int]]:
    """Module in front of which passes may wait -> the weights that it uses."""
    gates: dict[nn.Module, set[int]] = {}
    for i, use in uses.items():
        gates.setdefault(use.module, set()).add(i)
    single = dict(gates)
    for block in blocks:
        inside = {i for module in block.modules() for i in single.get(module, ())}
        if inside:
            gates[block] = inside
    return gates


def _capture(
    module: nn.Module, here: Mapping[int, Use], see: See, forward: Forward | None
) -> _Work:
    """Capture the inputs of weights that a module uses itself, and run it."""

    def work(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for i, use in here.items():
            see(i, use.inputs(args, kwargs))
        if forward is not None:
            # In-place operations must not change the arguments of the second run.
            forward(module, tuple(map(_cloned, args)), {k: _cloned(v) for k, v in kwargs.items()})

    return work


@contextmanager
def _instead(module: nn.Module, gate: Callable[..., Any]) -> Iterator[None]:
    """Within the context, ``gate(module, forward, ...)`` replaces a module's ``forward(...)``."""
    own, forward = vars(module).get("forward"), module.forward
    vars(module)["forward"] = wraps(forward)(partial(gate, module, forward))
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own


def _forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    return module.forward(*args, **kwargs)


def _same(one: Tensor, other: Tensor) -> bool:
    alike = one.dtype == other.dtype and one.device == other.device
    return alike and one.stride() == other.stride() and torch.equal(one, other)


def _cloned(argument: Any) -> Any:
    return argument.clone() if isinstance(argument, Tensor) else argument


@contextmanager
def capturing(uses: Mapping[int, Use], see: See) -> Iterator[None]:
    """Capture the inputs at each call that uses one of the weights, within the context."""
    with ExitStack() as hooks:
        for i, one in ((i, one) for i, use in uses.items() for one in (use, *use.others)):

            def capture(_: nn.Module, args: Any, kwargs: Any, i: int = i, one: Use = one) -> None:
                see(i, one.inputs(args, kwargs))

            hooks.enter_context(one.module.register_forward_pre_hook(capture, with_kwargs=True))
        yield


def used_again(uses: Mapping[int, Use], run: Run) -> set[int]:
    """The weights that a forward pass uses more than once."""
    counts: Counter[int] = Counter()
    with capturing(uses, lambda i, _: counts.update([i])):
        run()
    return {i for i, count in counts.items() if count > 1}


@contextmanager
def inference(model: nn.Module, devices: Iterable[torch.device]) -> Iterator[None]:
    """Within the context, the model only computes outputs and calls its modules one by one.

    Gradients, dropout, key-value caches and fused encoder layers are off. Afterwards the modules'
    modes, the models' configs and the random number generators' states are restored.
    """
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None))}
    caching = [c for c in configs.values() if getattr(c, "use_cache", False)]
    fused = torch.backends.mha.get_fastpath_enabled()
    of_cuda = {device.index for device in devices if device.type == "cuda"}
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for config in caching:
            config.use_cache = False
        with evaluating(model), torch.no_grad(), torch.random.fork_rng(sorted(of_cuda)):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for config in caching:
            config.use_cache = True
