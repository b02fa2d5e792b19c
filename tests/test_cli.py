"""The command line: help without weight, exit codes, and the last line for programs."""

import gc
import json
import os
import subprocess
import sys
from typing import Any

import pytest

import luban.recipe_reader
from luban import cli
from luban.cli_answers import importing, told_evaluation
from luban.errors import InputError, LubanError, Stopped, StorageError
from luban.tasks.base import Evaluation

HELP = """
import sys
from luban import cli

for verb in (None, *cli.luban.commands):
    try:
        sys.argv = ["luban", *([verb] if verb else []), "--help"]
        cli.main()
    except SystemExit as end:
        assert end.code == 0, verb
    print("HEAVY", verb, sorted(set(HEAVY) & set(sys.modules)))
"""
HEAVY = ["torch", "numpy", "pydantic", "transformers", "tokenizers", "safetensors", "yaml", "rich", "jinja2"]
VERBS = [
    *("train", "plan", "resume", "evaluate", "predict", "prepare", "recipes", "quickstart"),
    *("runs", "compare", "report", "doctor", "new", "export", "rates"),
]


def call(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command line here and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["luban", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code if isinstance(ended.value.code, int) else 0


def recipes_raise(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `luban recipes` fail in the way of `error`."""

    def shipped() -> Any:
        raise error

    monkeypatch.setattr(luban.recipe_reader, "shipped", shipped)


def test_help_of_all_verbs_imports_nothing_heavy() -> None:
    script = f"HEAVY = {HEAVY}\n{HELP}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    told = [line for line in done.stdout.splitlines() if line.startswith("HEAVY")]
    assert told == [f"HEAVY {verb} []" for verb in (None, *cli.luban.commands)]
    assert set(cli.luban.commands) == set(VERBS)


def test_garbage_is_collected_again_once_a_verb_is_imported() -> None:
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_json_and_says_what_it_does(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(verb, "--help", monkeypatch=monkeypatch) == 0
    told = capsys.readouterr().out
    assert "--json" in told
    assert call("--help", monkeypatch=monkeypatch) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == [verb]]
    assert line.endswith(".")
    assert "..." not in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["trian", "--json"], "trian"),
        (["train", "text", "--ouut", "x", "--json"], "--ouut"),
        (["--json", "train"], "--json"),
        (["evaluate", "--json"], "MODEL_OR_RUN"),
        (["evaluate", "runs/1", "--bootstrap", "-5", "--json"], "--bootstrap"),
        (["predict", "runs/1", "--json", "--top-k", "many"], "--top-k"),
        (["quickstart", "--minutes", "0", "--json"], "--minutes"),
        (["report", "--json", "a", "b"], "b"),
    ],
)
def test_a_usage_error_ends_with_2_and_a_line_of_json(
    arguments: list[str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(*arguments, monkeypatch=monkeypatch) == 2
    shown = capsys.readouterr()
    (line,) = shown.out.splitlines()
    told = json.loads(line)
    assert told == {"status": "error", "exit_code": 2, "error": told["error"]}
    assert named in told["error"]
    assert named in shown.err
    assert "Usage: luban" in shown.err


def test_without_json_a_usage_error_leaves_stdout_empty(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["trian"], ["train", "--ouut"], ["predict", "runs/1", "--nope", "--", "--json"]):
        assert call(*arguments, monkeypatch=monkeypatch) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert "Error: " in shown.err


@pytest.mark.parametrize(
    ("error", "code", "status", "message"),
    [
        (InputError("no such file", received="x.txt", fix="look again"), 2, "error", "no such file"),
        (StorageError("cannot write x"), 1, "error", "cannot write x"),
        (LubanError("not finite"), 1, "error", "not finite"),
        (Stopped("stopped by SIGTERM"), 75, "stopped", "stopped by SIGTERM"),
        (KeyboardInterrupt(), 75, "stopped", "stopped"),
        (RuntimeError("nobody thought of it"), 1, "error", "RuntimeError: nobody thought of it"),
        (MemoryError(), 1, "error", "MemoryError: "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_way_to_fail_has_its_exit_code_and_its_line(
    error: BaseException,
    code: int,
    status: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipes_raise(error, monkeypatch)
    assert call("recipes", "--json", monkeypatch=monkeypatch) == code
    shown = capsys.readouterr()
    (line,) = shown.out.splitlines()
    told = json.loads(line)
    assert (told["status"], told["exit_code"], told["error"]) == (status, code, message)
    assert message in shown.err
    expected = isinstance(error, LubanError | KeyboardInterrupt)
    assert ("Traceback" in shown.err) != expected
    if isinstance(error, LubanError):
        assert told["details"] == str(error)
        assert str(error) in shown.err

    recipes_raise(error, monkeypatch)
    assert call("recipes", monkeypatch=monkeypatch) == code
    assert capsys.readouterr().out == ""


def test_success_ends_with_0_and_one_line_of_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("recipes", "--json", monkeypatch=monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["recipes"]) >= {"shakespeare-char", "quickstart-en", "quickstart-zh"}
    assert all(about["makes"] and about["data"] and about["time"] for about in told["recipes"].values())
    assert call("recipes", monkeypatch=monkeypatch) == 0
    assert "shakespeare-char" in capsys.readouterr().out


def test_json_has_no_nan_and_fits_any_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    cli.print_json({"loss": float("nan"), "bounds": [float("inf"), 1.5], "text": "春\ud800"})
    line = capsys.readouterr().out
    assert json.loads(line, parse_constant=pytest.fail) == {
        "loss": None,
        "bounds": [None, 1.5],
        "text": "春\ud800",
    }
    cli.print_json({"text": "春"})
    assert "春" in capsys.readouterr().out


def test_a_reader_that_leaves_is_no_error_of_ours() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "luban", "recipes"]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert done.returncode == 1
    assert done.stderr == ""


def test_an_evaluation_says_what_was_left_out_and_why() -> None:
    first = {"file": "a.csv", "line": 7, "detail": "the text is empty"}
    bad = {"total": 2, "kinds": {"empty_row": {"count": 2, "examples": [first], "left_out": True}}}
    figures = {"median_absolute_error": 1.0, "rmse": 2.0}
    found = Evaluation("rmse", "min", figures, {}, {"rows": 8, "left_out": 2}, sections={"bad_rows": bad})
    assert list(told_evaluation(found)) == [
        "median absolute error     1.0000",
        "rmse                      2.0000",
        "on 8 rows, 2 left out",
        "left out: 2 empty row, the first a.csv:7: the text is empty",
    ]
