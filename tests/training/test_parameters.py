"""Patterns of parameter names: what they freeze, what groups they make, what they say when they match nothing."""

from fnmatch import fnmatchcase

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from luban.errors import InputError, RecipeError
from luban.recipe import ParameterGroup
from luban.training.parameters import freeze, grouped


class Small(nn.Module):
    """Tied embeddings, a block, and norms with and without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(5, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False)])
        self.norm = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 5, bias=False)
        self.lm_head.weight = self.embed_tokens.weight


PATTERNS = [
    "*",
    "layers.*",
    "layers.0.*",
    "*.weight",
    "*bias",
    "embed*",
    "lm_head*",
    "*norm*",
    "layers.1.weight",
]


def frozen(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_what_a_pattern_matches_has_no_gradient_and_the_rest_has() -> None:
    model = Small()
    freeze(model, ["layers.0.*", "*norm.bias"])
    assert frozen(model) == {"layers.0.weight", "layers.0.bias", "norm.bias"}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is (name not in frozen(model))


def test_a_tied_parameter_is_matched_by_either_name() -> None:
    model = Small()
    freeze(model, ["lm_head*"])
    assert frozen(model) == {"embed_tokens.weight"}


def test_only_norms_that_are_frozen_whole_keep_their_statistics() -> None:
    for patterns, expected in (
        (["layers.1.*"], ["layers.1"]),
        (["layers.1.weight"], []),
        (["*"], ["layers.1"]),  # one without parameters is nobody's to freeze
        ([], []),
    ):
        model = Small()
        assert freeze(model, patterns) == [model.get_submodule(name) for name in expected]


def test_no_pattern_freezes_nothing() -> None:
    """A model whose norms arrive frozen is the learner's own affair."""
    model = Small()
    for parameter in model.layers[1].parameters():
        parameter.requires_grad_(False)
    assert freeze(model, []) == []


@pytest.mark.parametrize(
    ("pattern", "fix"),
    [
        ("tokens.weight", "'*tokens.weight*' matches embed_tokens.weight"),
        ("0", "'*0*' matches layers.0.weight, layers.0.bias"),
        ("bias", "'*bias*' matches layers.0.bias, layers.1.bias, norm.bias"),
        ("weight", "matches embed_tokens.weight, layers.0.weight, layers.1.weight and 2 more"),
        ("embbed_tokens.*", "names most like it: embed_tokens.weight"),
        ("", "names most like it: "),
    ],
)
def test_a_pattern_that_matches_nothing_names_what_it_may_have_meant(pattern: str, fix: str) -> None:
    with pytest.raises(RecipeError, match="matches no parameter") as error:
        freeze(Small(), ["norm.*", pattern])
    assert error.value.where == "train.freeze[1]" and error.value.received == pattern
    assert error.value.fix is not None and fix in error.value.fix
    with pytest.raises(RecipeError, match="matches no parameter") as error:
        grouped(Small().named_parameters(remove_duplicate=False), [ParameterGroup(match=pattern)], 0.1)
    assert error.value.where == "train.groups[0].match"


@given(st.lists(st.sampled_from(PATTERNS), max_size=4), st.sets(st.sampled_from(PATTERNS[2:]), max_size=2))
def test_every_parameter_that_learns_is_in_the_first_group_that_matches_it(
    patterns: list[str], still: set[str]
) -> None:
    model = Small()
    freeze(model, sorted(still))
    groups = [ParameterGroup(match=pattern, rate=2.0**-n) for n, pattern in enumerate(patterns, 1)]
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    expected = {
        known[0]: next(
            (g.rate for g in groups if any(fnmatchcase(name, g.match) for name in known)),
            1.0,
        )
        for parameter, known in names.items()
        if parameter.requires_grad
    }
    try:
        found = grouped(model.named_parameters(remove_duplicate=False), groups, 0.1)
    except InputError:
        used = set(expected.values())
        assert not expected or any(group.rate not in used for group in groups)
        return
    assert {name: group.rate for group in found for name, _ in group.named} == expected
    assert sum(len(group.named) for group in found) == len(expected)
    assert all(group.named for group in found)


def test_a_group_has_its_own_weight_decay_or_the_recipes() -> None:
    groups = [ParameterGroup(match="embed*", weight_decay=0.0), ParameterGroup(match="layers*", rate=0.5)]
    found = grouped(Small().named_parameters(), groups, 0.3)
    assert [(group.rate, group.weight_decay) for group in found] == [(1.0, 0.0), (0.5, 0.3), (1.0, 0.3)]


def test_a_group_that_would_do_nothing_is_an_error() -> None:
    model = Small()
    groups = [ParameterGroup(match="layers*"), ParameterGroup(match="layers.0*")]
    with pytest.raises(RecipeError, match="earlier group") as error:
        grouped(model.named_parameters(), groups, 0.1)
    assert error.value.where == "train.groups[1].match" and error.value.received == "layers.0*"
    freeze(model, ["layers*"])
    with pytest.raises(RecipeError, match="frozen"):
        grouped(model.named_parameters(), groups[:1], 0.1)
    freeze(model, ["*"])
    with pytest.raises(InputError, match="no parameter is to be trained"):
        grouped(model.named_parameters(), [], 0.1)


def test_statistics_of_a_norm_in_evaluation_mode_stay() -> None:
    """What the loop does with the norms that `freeze` returns: torch's own promise, held to."""
    model = Small()
    (norm,) = freeze(model, ["layers.1.*"])
    model.train()
    norm.eval()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm(torch.randn(8, 4))
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())
