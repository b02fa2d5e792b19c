"""torch.compile is a help that may fail: the run goes on in eager mode with one line."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luban.errors import Stopped
from luban.training.compiling import Compiling, regions


class Stack(nn.Module):
    """Two blocks that repeat between two layers that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x).relu()
        return x


@pytest.fixture
def model() -> Stack:
    torch.manual_seed(0)
    return Stack()


@pytest.fixture
def told() -> list[str]:
    return []


def compile_to(call: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Let torch's compiler put `call` in the place of a module's own; returns what is compiled."""
    compiled: list[nn.Module] = []

    def fake(module: nn.Module, *arguments: Any, **options: Any) -> None:
        compiled.append(module)
        module._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", fake)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    return compiled


def broken(*arguments: Any, **options: Any) -> Tensor:
    raise RuntimeError("InductorError: the compiler fell over\nwith a long trace\n")


def doubled(x: Tensor) -> Tensor:
    return 2 * x


def test_the_repeated_blocks_are_the_regions(model: Stack) -> None:
    assert regions(model) == list(model.blocks)
    alone = nn.Linear(2, 2)
    assert regions(alone) == [alone]
    names = [name for name, _ in model.named_parameters()]
    assert all("_orig_mod" not in name for name in names)


def test_what_is_not_wanted_is_not_tried(
    model: Stack, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = compile_to(broken, monkeypatch)
    Compiling(model, wanted=False, tell=told.append).prepare(lambda: pytest.fail("there is nothing to try"))
    assert compiled == []
    assert told == []


def test_the_regions_and_only_they_are_compiled_and_tried(
    model: Stack, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = compile_to(doubled, monkeypatch)
    x, tried = torch.randn(2, 3), []
    compiling = Compiling(model, wanted=True, tell=told.append)
    compiling.prepare(lambda: tried.append(model(x)))
    assert compiled == list(model.blocks)
    assert len(tried) == 1
    assert compiling.state() == {"on": True}
    assert told == []
    assert torch.equal(model(x), (2 * (2 * model.first(x)).relu()).relu())


def test_a_second_size_within_the_trial_gets_code_of_its_own(
    model: Stack, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo import config

    compile_to(doubled, monkeypatch)
    seen: list[bool] = []
    Compiling(model, wanted=True, tell=told.append).prepare(
        lambda: seen.append(config.automatic_dynamic_shapes)
    )
    assert (seen, config.automatic_dynamic_shapes) == ([False], True)


def test_a_compiler_that_fails_costs_one_line_and_not_the_run(
    model: Stack, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 3)
    eager = model(x)
    compile_to(broken, monkeypatch)
    compiling = Compiling(model, wanted=True, tell=told.append)
    compiling.prepare(lambda: model(x).sum().backward())
    assert told == ["compile is off: InductorError: the compiler fell over"]
    assert compiling.state() == {"on": False}
    assert torch.equal(model(x), eager)
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_error_before_the_trial_counts_as_much(
    model: Stack, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(module: nn.Module) -> None:
        raise NotImplementedError

    compile_to(doubled, monkeypatch)
    monkeypatch.setattr(nn.Module, "compile", fails)
    Compiling(model, wanted=True, tell=told.append).prepare(lambda: pytest.fail("there is nothing to try"))
    assert told == ["compile is off: NotImplementedError"]


@pytest.mark.parametrize(("set_before", "after"), [(None, True), (False, False)])
def test_the_compiler_spares_its_trial_builds_where_nobody_asked_for_them(
    model: Stack,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    set_before: bool | None,
    after: bool,
) -> None:
    from torch._inductor import config

    compile_to(doubled, monkeypatch)
    seen: list[object] = []
    with config.patch({"cpp.vec_isa_ok": set_before}):
        Compiling(model, wanted=True, tell=told.append).prepare(lambda: seen.append(config.cpp.vec_isa_ok))
        assert config.cpp.vec_isa_ok is set_before
    assert seen == [after]


def test_without_a_cpp_compiler_torch_is_not_asked(
    model: Stack, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = compile_to(doubled, monkeypatch)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    compiling = Compiling(model, wanted=True, tell=told.append)
    compiling.prepare(lambda: pytest.fail("there is nothing to try"))
    assert compiled == []
    assert told == ["compile is off: there is no C++ compiler"]
    assert compiling.state() == {"on": False}


def test_a_signal_during_the_trial_is_no_fault_of_the_compiler(
    model: Stack, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    compile_to(doubled, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        Compiling(model, wanted=True, tell=told.append).prepare(stopped)
    assert told == []


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_second_signal_stops_a_run_that_is_compiling(
    model: Stack, told: list[str], wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped() -> None:
        try:
            raise Stopped("stopped at once by a second SIGTERM")
        except Stopped as error:
            if wrapped:
                raise RuntimeError("the backend failed") from error
            raise

    compile_to(doubled, monkeypatch)
    with pytest.raises(Stopped, match="second SIGTERM"):
        Compiling(model, wanted=True, tell=told.append).prepare(stopped)
    assert told == []


def test_paused_is_eager_within_and_compiled_after_also_after_an_error(
    model: Stack, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 3)
    eager = model(x)
    compile_to(doubled, monkeypatch)
    compiling = Compiling(model, wanted=True, tell=told.append)
    compiling.prepare(lambda: None)
    compiled = model(x)
    assert not torch.equal(compiled, eager)
    with pytest.raises(KeyError), compiling.paused():
        assert torch.equal(model(x), eager)
        raise KeyError
    assert torch.equal(model(x), compiled)


def test_a_run_that_goes_on_keeps_the_choice_it_began_with(model: Stack, told: list[str]) -> None:
    for on in (True, False):
        compiling = Compiling(model, wanted=not on, tell=told.append)
        compiling.load_state({"on": on})
        assert compiling.state() == {"on": on}
