"""Signals sent to a run at chosen moments of its life, and what the resumed run leaves.

Every interrupted run is a forked process that sends the signal to itself at a moment that is addressed, never
timed: a point of the loop by step, a durable operation by number, a stage by name. Forking from a process that
has imported torch spares the seconds the import takes.
"""

import json
import os
import random
import shutil
import signal
import socket
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from luban import machine
from luban.console import Show
from luban.data.fingerprint import is_prepared
from luban.durable import FileSystem, sha256
from luban.errors import LubanError
from luban.signals import ASKING, StopRequest
from luban.training.faults import Faults
from luban.verbs import decisions
from luban.verbs import train as verb
from luban.verbs.evaluate import evaluate
from luban.verbs.train import Tools, train

STEPS = 6
SAME = ("model/model.safetensors", "metrics.jsonl", "samples.jsonl", "evaluation.json")
SENTENCE = "the king of a small house had no wood and went to see 春 眠 不 觉 晓 his friend in the hills"
IN_THE_LOOP = ("step", "gradients", "before-optimizer", "evaluate", "before-save", "after-save")
STAGES = ("hashing", "reading", "tokenizer", "tokens")
PHASES = (
    *IN_THE_LOOP,
    "within save",
    "first compile",
    "final evaluation",
    *STAGES,
    "reading with 2 workers",
    "luban evaluate",
    "luban evaluate, tokenising",
    "twice in a step",
    "twice within save",
    "twice in final evaluation",
    "step of one of two ranks",
    "reading of two ranks",
    "final evaluation of two ranks",
)
COMBINATIONS = len(PHASES) * len(ASKING)
"""So many cases have every signal in every phase."""


def recipe(folder: Path, **data: Any) -> dict[str, Any]:
    """Return a recipe that trains in a fraction of a second, on text that it writes into `folder`."""
    text, draw = folder / "text.jsonl", random.Random(5)
    if not text.is_file():
        rows = [{"text": f"{n} " + " ".join(draw.choices(SENTENCE.split(), k=30)) + "."} for n in range(60)]
        text.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {
        "data": {"source": str(text), "vocab_size": 280, "length": 16, "validation_fraction": 0.2, **data},
        "model": {"layers": 1, "width": 16, "heads": 2, "mlp_width": 32, "dropout": 0.1},
        "train": {
            "steps": STEPS,
            "batch": 4,
            "micro_batch": 3,
            "checkpoint_every": 2,
            "evaluate_every": 3,
            "learning_rate": 0.003,
            "compile": "off",
            "kernels": "off",  # what is compiled uses none, and has to come to the same bytes
            "dtype": "float32",
        },
        "evaluate": {"sample_tokens": 2, "bootstrap": 5, "prompts": ["the king"]},
    }


@dataclass(frozen=True)
class Child:
    """A forked process at the head of its own group, and where it says what went wrong."""

    number: int
    says: int


def start(work: Callable[[], object]) -> Child:
    """Do `work` in a forked process, which ends as the command line would: 0, or the code of luban's error."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setpgid(0, 0)
            os.close(read)
            for number in ASKING:
                signal.signal(number, signal.SIG_DFL)
            work()
            code = 0
        except LubanError as error:
            code = error.exit_code
            os.write(write, str(error).encode()[:4000])
        except BaseException:
            os.write(write, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(code)
    os.close(write)
    return Child(child, read)


def finish(child: Child) -> tuple[int, str]:
    """Wait for a child; return its exit code, negative for a signal, and what it said.

    Asserts that no process of its group is left.
    """
    said = b""
    while block := os.read(child.says, 1 << 16):
        said += block
    os.close(child.says)
    code = os.waitstatus_to_exitcode(os.waitpid(child.number, 0)[1])
    assert group_is_gone(child.number), "a process outlived the run that started it"
    return code, said.decode("utf-8", "replace")


def in_child(work: Callable[[], object]) -> tuple[int, str]:
    """Do `work` in a forked process; return its exit code and what it said."""
    return finish(start(work))


def by_two(work: Callable[[int], object]) -> tuple[int, str]:
    """Do `work` in two processes that train together, with the rank; return the exit code if it is one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def ranked(rank: int) -> None:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        work(rank)

    children = [start(lambda rank=rank: ranked(rank)) for rank in (0, 1)]  # type: ignore[misc]
    codes, said = zip(*(finish(child) for child in children), strict=True)
    return (codes[0] if codes[0] == codes[1] else 99), f"codes {codes}: " + " | ".join(said)


def group_is_gone(group: int, seconds: float = 5.0) -> bool:
    """Whether every process of a group ends within so many seconds."""
    end = time.monotonic() + seconds
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        if time.monotonic() > end:
            os.killpg(group, signal.SIGKILL)
            return False
        time.sleep(0.01)


class StageShow(Show):
    """Tells nobody anything, but does something when a stage comes."""

    def __init__(self, wanted: str, do: Callable[[], None]) -> None:
        super().__init__(quiet=True)
        self._wanted, self._do = wanted, do

    def stage(self, name: str, fraction: float) -> None:
        if name == self._wanted:
            self._wanted = ""
            self._do()


@dataclass(frozen=True)
class Case:
    """One interruption."""

    phase: str
    numbers: tuple[signal.Signals, ...]
    step: int
    operation: int

    def __str__(self) -> str:
        names = " then ".join(number.name for number in self.numbers)
        return f"{names} at {self.phase}, step {self.step}, operation {self.operation}"

    def strike(self) -> None:
        """Send the signals to this process, and see that the handlers of all have run."""
        for number in self.numbers:
            os.kill(os.getpid(), number)

    @property
    def ranks(self) -> int:
        """How many processes train."""
        return 2 if "two ranks" in self.phase else 1

    @property
    def saved(self) -> int | None:
        """The step whose checkpoint must be the newest; None where none has to be."""
        if self.phase in ("step", "gradients", "before-optimizer", "step of one of two ranks"):
            return self.step + 1
        if self.phase in ("before-save", "after-save", "within save"):
            return min(self.step + 1, STEPS)
        if self.phase == "evaluate":
            return self.step
        if "final evaluation" in self.phase:
            return STEPS
        if self.phase == "twice in a step":
            return self.step - self.step % 2
        return None


def draw_case(number: int, draw: random.Random) -> Case:
    """Return the n-th case: phases and signals in turn; step and operation are drawn."""
    phase = PHASES[number % len(PHASES)]
    numbers = [ASKING[(number + number // len(PHASES)) % len(ASKING)]]
    if phase.startswith("twice"):
        numbers.append(draw.choice(ASKING))
    step = draw.randrange(STEPS)
    if phase == "evaluate":
        step = draw.choice((3, 6))
    elif "save" in phase:
        step = draw.choice((2, 4, 6))
    elif phase == "twice in a step":
        step = draw.randrange(2, STEPS)
    return Case(phase, tuple(numbers), step, draw.randrange(1, 14))


def interrupted(case: Case, out: Path, settings: dict[str, Any], finished: Path) -> None:
    """Train until the signal strikes; to be called in a process of its own."""
    show: Show = Show(quiet=True)
    faults = Faults()
    if case.phase in IN_THE_LOOP:
        faults = Faults({(case.phase, case.step, 0): case.strike})
    elif case.phase == "step of one of two ranks":
        faults = Faults({("step", case.step, case.operation % 2): case.strike})
    elif case.phase == "twice in a step":
        faults = Faults({("before-optimizer", case.step, 0): case.strike})
    elif case.phase.endswith("within save"):
        strike_within_save(case)
    elif case.phase == "first compile":
        settings = {**settings, "train": {**settings["train"], "compile": "on"}}
        strike_within_compile(case)
    elif case.phase.startswith("luban evaluate"):
        tokenising = case.phase.endswith("tokenising")
        show = StageShow("tokenising" if tokenising else "evaluating", case.strike)
        evaluate(finished, settings["data"]["source"] if tokenising else None, bootstrap=5, show=show)
        return
    elif "final evaluation" in case.phase:
        show = StageShow("evaluating", case.strike)
    elif case.phase == "reading with 2 workers":
        settings = {**settings, "data": {**settings["data"], "workers": 2}}
        show = StageShow("reading", case.strike)
    else:
        show = StageShow(case.phase.split()[0], case.strike)
    train(settings, out=out, tools=Tools(show, StopRequest(), faults=faults))


def strike_within_save(case: Case) -> None:
    """Send the signal after the n-th durable operation on the checkpoint of the case's step."""
    left = [case.operation]

    def counted(name: str) -> Callable[..., Any]:
        plain = getattr(FileSystem, name)

        def operation(self: FileSystem, first: Any, *rest: Any) -> Any:
            answer = plain(self, first, *rest)
            if f"checkpoints/.step-{case.step:08d}" in str(getattr(first, "name", first)):
                left[0] -= 1
                if left[0] == 0:
                    case.strike()
            return answer

        return operation

    for name in ("open_write", "write", "sync", "replace", "make_folder"):
        setattr(FileSystem, name, counted(name))


def strike_within_compile(case: Case) -> None:
    """Let the first call of a compiled block be where the signal comes; what comes after it takes forever."""

    def region(module: nn.Module, *arguments: Any, **options: Any) -> None:
        def call(*inputs: Any, **named: Any) -> Any:
            case.strike()
            raise AssertionError("the compiler was not interrupted")

        module._compiled_call_impl = call

    nn.Module.compile = region  # type: ignore[method-assign]
    shutil.which = lambda name, *rest, **more: f"/usr/bin/{name}"  # type: ignore[assignment]


def resumed(out: Path, *, compiled: bool) -> None:
    """Go on with a run; compiling, where it is on, changes nothing."""
    if compiled:
        with mock.patch.object(nn.Module, "compile", lambda module: None):
            train(resume=out)
    else:
        train(resume=out)


class Scene:
    """What all interruptions share: settings, the run nobody disturbed, and no waiting for the disk."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.settings = recipe(folder)
        self._quicken()
        # In this process, so that what is imported late is there for the children.
        self.finished = train(self.settings, out=folder / "finished").folder
        self.finished_by_two = folder / "finished-by-two"
        code, said = by_two(lambda rank: train(self.settings, out=self.finished_by_two))
        assert code == 0, said

    def _quicken(self) -> None:
        """Measure the machine and rehearse once, write no report, and leave out fsync, which matters to power
        cuts only; also in children."""
        rehearse, rehearsed = decisions.rehearse, list[Any]()

        def once(*arguments: Any, **named: Any) -> Any:
            if not rehearsed:
                rehearsed.append(rehearse(*arguments, **named))
            return rehearsed[0]

        self._patches = [
            mock.patch.object(decisions, "rehearse", once),
            mock.patch.object(verb, "write_page", lambda *where, **how: None),
            mock.patch.object(machine, "measure_matmul", lambda *shape: 1e10),
            mock.patch.object(machine, "measure_bandwidth", lambda *device: 1e10),
            mock.patch.object(FileSystem, "sync", lambda self, file: file.flush()),
            mock.patch.object(FileSystem, "sync_folder", lambda self, folder: None),
        ]
        for patch in self._patches:
            patch.start()

    def close(self) -> None:
        """Put back what was quickened."""
        for patch in self._patches:
            patch.stop()

    def same(self, run: Path, ranks: int) -> bool:
        """Whether a run left the bytes of the undisturbed one of as many processes."""
        whole = self.finished if ranks == 1 else self.finished_by_two
        return all(sha256(run / name) == sha256(whole / name) for name in SAME)

    def play(self, case: Case, number: int) -> str:
        """Interrupt a run, go on with it, and say in a few words what came of it."""
        out = self.folder / f"run-{number}"
        do: Callable[[Callable[..., object]], tuple[int, str]] = in_child if case.ranks == 1 else by_two
        code, said = do(lambda *rank: interrupted(case, out, self.settings, self.finished))
        if code != 75:
            return f"BROKEN: exit code {code}, not 75: {said}"
        if case.phase.startswith("luban evaluate"):
            return "stopped with 75, nothing to go on with"
        steps = sorted(int(path.name[5:]) for path in out.glob("checkpoints/step-*"))
        if case.saved is not None and steps[-1:] != [case.saved]:
            return f"BROKEN: checkpoints of steps {steps}, none of {case.saved}"
        if (out / "data").exists() and not is_prepared(out / "data"):
            return "BROKEN: half a preparation stayed"
        code, said = do(lambda *rank: resumed(out, compiled=case.phase == "first compile"))
        if code != 0:
            return f"BROKEN: the resumed run ended with {code}: {said}"
        if not self.same(out, case.ranks):
            return "BROKEN: the resumed run has other bytes"
        shutil.rmtree(out)
        return "stopped with 75, same bytes after going on"


def sweep(folder: Path, *, count: int, seed: int) -> Counter[str]:
    """Interrupt `count` runs: phases and signals in turn, at drawn steps and operations."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads do not survive a fork
    scene, outcomes = Scene(folder), Counter[str]()
    try:
        for number in range(count):
            case = draw_case(number, random.Random(f"{seed} {number}"))
            outcome = scene.play(case, number)
            if outcome.startswith("BROKEN"):
                outcome += f" ({case}; seed {seed}, number {number})"
            outcomes[outcome] += 1
    finally:
        scene.close()
        torch.set_num_threads(threads)
    return outcomes
