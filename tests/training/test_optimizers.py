"""Every optimizer: equal to torch's own, resumed to the bit, choosy about the state it loads."""

import copy
import fnmatch
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from luban.errors import CheckpointError, InputError, RecipeError
from luban.models.head import Head
from luban.recipe import ParameterGroup, TrainRecipe
from luban.tensors import read_safetensors, write_safetensors
from luban.training.muon import DEFAULT, Muon, orthogonalise
from luban.training.optimizers import Optimizer, build_optimizer, hidden_matrices

KINDS = ["sgd", "rmsprop", "adam", "adamw", "muon"]


class Small(nn.Module):
    """One parameter of every kind a decoder has, tied or not."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed_tokens = nn.Embedding(11, 8)
        self.up = nn.Linear(8, 24, bias=True)
        self.gate = nn.Linear(8, 24, bias=False)
        self.down = nn.Linear(24, 8, bias=False)
        self.norm = nn.RMSNorm(8)
        self.lm_head = Head(8, 11, bias=False)
        self.unused = nn.Linear(8, 8, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed_tokens(ids)
        hidden = hidden + self.down(self.up(hidden) * self.gate(hidden).sigmoid())
        return self.lm_head(self.norm(hidden))


def recipe(kind: str, **changes: object) -> TrainRecipe:
    return TrainRecipe(steps=10, optimizer=kind, learning_rate=0.01, **changes)


def advance(
    model: Small, optimizer: object, steps: range, rate: Callable[[int], float] | None = None
) -> None:
    for step in steps:
        ids = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        if rate is not None:
            optimizer.set_rate(rate(step))
        optimizer.step()
        optimizer.zero_grad()


def halving(step: int) -> float:
    return 0.5**step


def build(kind: str, model: nn.Module, **changes: object) -> Optimizer:
    return build_optimizer(model, recipe(kind, **changes))


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["sgd", "rmsprop", "adam", "adamw", "muon"])
def test_a_scaled_step_is_one_with_scaled_gradients(kind: str) -> None:
    torch.manual_seed(0)
    one = Small()
    other = copy.deepcopy(one)
    scaled, plain = build(kind, one), build(kind, other)
    for step in range(3):
        for model in (one, other):
            ids = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(step))
            nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        scaled.step(0.01 * 3**step)
        for parameter in other.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.01 * 3**step)
        plain.step()
        scaled.zero_grad()
        plain.zero_grad()
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("kind", ["sgd", "rmsprop", "adam", "adamw"])
def test_each_step_equals_torch_with_decay_on_matrices_only(kind: str, nesterov: bool) -> None:
    ours, theirs = Small(), Small()
    options = {
        "sgd": (torch.optim.SGD, {"momentum": 0.95, "nesterov": nesterov}),
        "rmsprop": (torch.optim.RMSprop, {"alpha": 0.95}),
        "adam": (torch.optim.Adam, {"betas": (0.9, 0.95)}),
        "adamw": (torch.optim.AdamW, {"betas": (0.9, 0.95)}),
    }
    family, arguments = options[kind]
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    reference = family(groups, lr=0.01, foreach=False, **arguments)
    optimizer = build(kind, ours, nesterov=nesterov)
    for step in range(4):
        advance(ours, optimizer, range(step, step + 1))
        advance(theirs, reference, range(step, step + 1))
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    ours, theirs = Small(), Small()
    hidden = [theirs.up.weight, theirs.gate.weight, theirs.down.weight, theirs.unused.weight]
    matrices = [theirs.embed_tokens.weight, theirs.lm_head.weight]
    vectors = [theirs.up.bias, theirs.norm.weight]
    muon = Muon(hidden, 0.01, momentum=0.95, nesterov=True, weight_decay=0.1)
    rest = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.95), foreach=False)

    class Both:
        def step(self) -> None:
            muon.step()
            adamw.step()

        def zero_grad(self) -> None:
            theirs.zero_grad()

    advance(ours, build("muon", ours), range(3))
    advance(theirs, Both(), range(3))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


class Bare(nn.Module):
    """Parameters held by no layer."""

    def __init__(self, **parameters: Tensor) -> None:
        super().__init__()
        for name, values in parameters.items():
            setattr(self, name, values)


def owners(model: nn.Module) -> dict[str, str]:
    """Which optimizer has each parameter once all have a gradient, under muon."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = build("muon", model)
    optimizer.step()
    kinds = {"momentum_buffer": "muon", "exp_avg": "adamw"}
    split = (key.rsplit(".", 1) for key in optimizer.state()[0])
    return {name: kinds[state] for name, state in split if state in kinds}


def test_embeddings_heads_and_bare_parameters_are_adamws() -> None:
    tied = nn.ModuleDict({"tokens": nn.Embedding(7, 4), "out": nn.Linear(4, 7, bias=False)})
    tied["out"].weight = tied["tokens"].weight
    model = nn.ModuleDict({"table": nn.Embedding(5, 4), "output": Head(4, 3), "tied": tied})
    model["field"] = Bare(transitions=nn.Parameter(torch.zeros(3, 4)))
    assert set(owners(model).values()) == {"adamw"}


def test_every_network_of_the_house_leaves_embeddings_and_outputs_to_adamw() -> None:
    from luban.models.bag import Bag, BagConfig
    from luban.models.tagger import Tagger, TaggerConfig
    from luban.models.text_cnn import TextCnn, TextCnnConfig

    models = [
        Bag(BagConfig(vocab_size=9, outputs=3, width=4, bigram_buckets=5)),
        Tagger(TaggerConfig(words=9, letters=5, tags=3, width=8, pairs=6)),
        TextCnn(TextCnnConfig(vocab_size=9, outputs=3)),
    ]
    for model in models:
        for name, owner in owners(model).items():
            matrix = model.get_parameter(name).ndim >= 2
            hidden = matrix and ("filters" in name or "kernel" in name)
            assert owner == ("muon" if hidden else "adamw"), name


def test_filters_are_matrices_with_a_row_for_each() -> None:
    torch.manual_seed(0)
    conv, flat = nn.Conv2d(3, 6, 2), nn.Linear(12, 6)
    with torch.no_grad():
        flat.weight.copy_(conv.weight.flatten(1))
        flat.bias.copy_(conv.bias)
    patch = torch.randn(5, 3, 2, 2)
    for layer, x in ((conv, patch), (flat, patch.flatten(1))):
        optimizer = build("muon", layer)
        for _ in range(3):
            layer(x).flatten(1).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(conv.weight.flatten(1), flat.weight, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(kind: str, tmp_path: Path) -> None:
    whole = Small()
    optimizer = build(kind, whole)
    advance(whole, optimizer, range(3), halving)
    tensors, scalars = optimizer.state()
    write_safetensors(tmp_path / "optimizer.safetensors", tensors)
    scalars = json.loads(json.dumps(scalars, allow_nan=False))
    resumed = copy.deepcopy(whole)
    second = build(kind, resumed)
    second.load_state(read_safetensors(tmp_path / "optimizer.safetensors"), scalars)
    advance(whole, optimizer, range(3, 4))
    advance(resumed, second, range(3, 4))
    assert same(whole, resumed), "the step straight after loading, at the saved rate"
    advance(whole, optimizer, range(4, 7), halving)
    advance(resumed, second, range(4, 7), halving)
    assert same(whole, resumed)
    for key, value in optimizer.state()[0].items():
        assert torch.equal(value, second.state()[0][key])
    assert optimizer.state()[1] == second.state()[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_from_before_the_first_step_makes_a_used_optimizer_new(kind: str) -> None:
    fresh, used = Small(), Small()
    tensors, scalars = build(kind, fresh).state()
    kept = {name: value.clone() for name, value in tensors.items()}
    first, second = build(kind, fresh), build(kind, used)
    advance(used, second, range(5), halving)
    used.load_state_dict(fresh.state_dict())
    second.load_state(kept, scalars)
    advance(fresh, first, range(2))
    advance(used, second, range(2))
    assert same(fresh, used)


@pytest.mark.parametrize("kind", KINDS)
def test_loading_shares_no_memory_with_what_was_given(kind: str) -> None:
    model = Small()
    optimizer = build(kind, model)
    advance(model, optimizer, range(2))
    kept = {name: value.clone() for name, value in optimizer.state()[0].items()}
    given = {name: value.clone() for name, value in kept.items()}
    optimizer.load_state(given, optimizer.state()[1])
    advance(model, optimizer, range(2, 4))
    assert all(torch.equal(given[name], kept[name]) for name in kept)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_does_not_depend_on_the_order_of_parameters(kind: str) -> None:
    model = Small()
    optimizer = build(kind, model)
    advance(model, optimizer, range(2))
    tensors, scalars = optimizer.state()
    backwards = nn.ModuleDict(dict(reversed(list(model.named_children()))))
    turned = build(kind, backwards)
    turned.load_state(tensors, scalars)
    assert {name: value.tolist() for name, value in turned.state()[0].items()} == {
        name: value.tolist() for name, value in tensors.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(kind: str) -> None:
    model, other = Small(), Small(1)
    optimizer, source = build(kind, model), build(kind, other)
    advance(model, optimizer, range(2))
    advance(other, source, range(3))
    before = {name: value.clone() for name, value in optimizer.state()[0].items()}
    tensors, scalars = source.state()
    name = next(key for key in tensors if key.startswith("down.weight") and not key.endswith("step"))
    damages = {
        "incomplete": {key: value for key, value in tensors.items() if key != name},
        "another model": {**tensors, "stranger.exp_avg": torch.zeros(2)},
        r"\(8, 24\) torch.float32 is needed": {**tensors, name: tensors[name].T},
        "does not fit": {**tensors, name: tensors[name].double()},
    }
    if kind == "sgd":
        del damages["incomplete"]
    for message, damaged in damages.items():
        with pytest.raises(CheckpointError, match=message):
            optimizer.load_state(damaged, scalars)
    with pytest.raises(CheckpointError, match=f"not {kind}"):
        optimizer.load_state(tensors, {**scalars, "kind": "lion"})
    for rate in (None, "1.0", True):
        with pytest.raises(CheckpointError, match="not a number"):
            optimizer.load_state(tensors, {**scalars, "rate": rate})
    after = optimizer.state()[0]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_multiplies_every_learning_rate(kind: str) -> None:
    halved, half = Small(), Small()
    first = build(kind, halved)
    second = build_optimizer(half, recipe(kind).model_copy(update={"learning_rate": 0.005}))
    advance(halved, first, range(3), lambda _: 0.5)
    advance(half, second, range(3))
    assert same(halved, half)
    first.set_rate(0.0)
    before = copy.deepcopy(halved)
    advance(halved, first, range(3, 4))
    assert same(before, halved)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_and_unused_parameters_are_not_decayed(kind: str) -> None:
    matrix, gain, unused = (nn.Parameter(torch.ones(shape)) for shape in ((3, 3), (3,), (3, 3)))
    matrix.grad, gain.grad = torch.zeros(3, 3), torch.zeros(3)
    build(kind, Bare(matrix=matrix, gain=gain, unused=unused), weight_decay=0.5).step()
    assert (matrix < 1).all()
    assert gain.eq(1).all()
    assert unused.eq(1).all()


def test_frozen_and_tied_parameters_are_counted_once_or_not_at_all() -> None:
    first, frozen, second = (nn.Linear(3, 3, bias=False) for _ in range(3))
    second.weight = first.weight
    frozen.requires_grad_(False)
    optimizer = build("muon", nn.ModuleDict({"first": first, "frozen": frozen, "second": second}))
    assert list(optimizer.state()[0]) == ["first.weight.momentum_buffer"]
    with pytest.raises(InputError, match="no parameter"):
        build("sgd", frozen)


def test_sgd_without_momentum_has_no_state_and_no_nesterov() -> None:
    model = Small()
    optimizer = build("sgd", model, momentum=0.0, nesterov=True)
    advance(model, optimizer, range(2))
    assert optimizer.state()[0] == {}
    optimizer.load_state(*optimizer.state())


GROUPS = [
    ParameterGroup(match="embed*", rate=0.1, weight_decay=0.0),
    ParameterGroup(match="*up*", rate=3.0),
    ParameterGroup(match="gate*", weight_decay=0.7),
]


@pytest.mark.parametrize("kind", KINDS)
def test_groups_have_their_own_rates_and_decays(kind: str) -> None:
    model = Small()
    optimizer = build(kind, model, groups=GROUPS)
    expected = {
        "embed_tokens.weight": (0.001, 0.0),
        "up.weight": (0.03, 0.1),
        "up.bias": (0.03, 0.0),
        "gate.weight": (0.01, 0.7),
        "down.weight": (0.01, 0.1),
        "norm.weight": (0.01, 0.0),
        "lm_head.weight": (0.01, 0.1),
        "unused.weight": (0.01, 0.1),
    }
    names = {parameter: name for name, parameter in model.named_parameters()}
    for multiplier in (1.0, 0.5, 0.0):
        optimizer.set_rate(multiplier)
        found = {
            names[parameter]: (group["lr"], group["weight_decay"])
            for part in optimizer._parts
            for group in part.param_groups
            for parameter in group["params"]
        }
        assert found.keys() == expected.keys()
        for name, (rate, decay) in expected.items():
            assert found[name][0] == pytest.approx(multiplier * rate)
            assert found[name][1] == decay


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_learns_as_with_an_optimizer_of_its_own(kind: str) -> None:
    ours, theirs = Small(), Small()
    optimizer = build(kind, ours, groups=GROUPS)
    own = {name: (g.rate, g.weight_decay) for g in GROUPS for name in names_in(theirs, g.match)}
    hidden = hidden_matrices(theirs)
    parts = [
        build_optimizer(
            alone(parameter, hidden=parameter in hidden),
            recipe(kind, weight_decay=0.1 if decay is None else decay).model_copy(
                update={"learning_rate": 0.01 * rate}
            ),
        )
        for name, parameter in theirs.named_parameters()
        for rate, decay in [own.get(name, (1.0, None))]
    ]

    class Apart:
        def step(self) -> None:
            for part in parts:
                part.step()

        def zero_grad(self) -> None:
            theirs.zero_grad()

    advance(ours, optimizer, range(3))
    advance(theirs, Apart(), range(3))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def alone(parameter: nn.Parameter, *, hidden: bool) -> nn.Module:
    """A model of one parameter."""
    if not hidden:
        return Bare(parameter=parameter)
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = parameter
    return layer


def names_in(model: nn.Module, pattern: str) -> list[str]:
    return [name for name, _ in model.named_parameters() if fnmatch.fnmatchcase(name, pattern)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_passes_between_optimizers_with_and_without_groups(kind: str) -> None:
    """The state is one of parameters, not of groups."""
    model = Small()
    with_groups, without = build(kind, model, groups=GROUPS), build(kind, Small())
    advance(model, with_groups, range(2))
    without.load_state(*with_groups.state())
    mine, others = with_groups.state()[0], without.state()[0]
    assert mine.keys() == others.keys()
    assert all(torch.equal(mine[name], others[name]) for name in mine)


def test_training_without_compile_does_not_import_the_compiler() -> None:
    program = textwrap.dedent(
        """
        import sys, torch
        from luban.models.attention_products import attention_by_products
        from luban.recipe import TrainRecipe
        from luban.training.optimizers import build_optimizer

        for kind in ("muon", "adamw", "adam", "sgd", "rmsprop"):
            layer = torch.nn.Linear(4, 4)
            optimizer = build_optimizer(layer, TrainRecipe(steps=1, optimizer=kind, learning_rate=1e-3))
            x = layer(torch.ones(1, 1, 4, 4))
            attention_by_products(x, x, x, None, causal=True).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        print("torch._dynamo" in sys.modules)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-3)])
def test_held_norms_turn_each_matrix_by_ten_times_the_rate(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(6, 9)), nn.Parameter(torch.randn(6, 3, 3, 1) * 5)]
    before = [weight.detach().clone() for weight in weights]
    muon = Muon(weights, 0.01, weight_decay=7.0, hold_norms=True, dtype=dtype)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    directions = [orthogonalise(w.grad.flatten(1).to(dtype)[None], DEFAULT)[0].double() for w in weights]
    muon.step()
    for weight, start, direction in zip(weights, before, directions, strict=True):
        start = start.flatten(1).double()
        moved = start - 0.1 * start.norm() * direction / direction.norm()
        expected = moved * start.norm() / moved.norm()
        torch.testing.assert_close(
            weight.flatten(1).double(), expected, atol=tolerance * float(start.abs().max()), rtol=0
        )


def test_a_matrix_of_zeros_has_no_norm_to_hold() -> None:
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.weight)
    with pytest.raises(RecipeError, match=r"hold_norms.*zeros") as caught:
        build("muon", layer, hold_norms=True)
    assert "weight" in str(caught.value)
    with pytest.raises(ValueError, match="zeros"):
        Muon([layer.weight], 0.1, hold_norms=True)


def test_held_norms_are_muons() -> None:
    with pytest.raises(ValueError, match="hold_norms is muon's; received optimizer adamw"):
        recipe("adamw", hold_norms=True)
