"""A task's learner is what the loop trains, and what the verbs ask besides; neither says again what the other does."""

from luban import learner
from luban.tasks import base


def declared(protocol: type) -> set[str]:
    return {name for name in vars(protocol) if not name.startswith("_")}


def test_what_the_loop_asks_is_declared_once() -> None:
    assert learner.Learner in base.Learner.__mro__
    loops = {"model", "short_steps", "batches", "epoch", "loss", "flops"}
    assert loops == declared(learner.Learner)
    assert not declared(base.Learner) & declared(learner.Learner)
