"""The report: whole in one file, in both languages, safe whatever the run folder holds."""

import base64
import fcntl
import hashlib
import itertools
import json
import math
import re
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from page_reader import Page

from luban import catalogue
from luban.durable import FileSystem, new_folder
from luban.errors import InputError, StorageError
from luban.evaluation import page
from luban.evaluation.records import Table, read_run
from luban.evaluation.report import write_report
from luban.evaluation.standing import standing_of

MakeRun = Callable[..., Path]


def _report(run: Path) -> str:
    return write_report(run).read_text("utf-8")


def _shown(run: Path) -> str:
    """Return the English text of the page, without the scripts and styles."""
    hidden = {"script", "style"}
    texts = Page(_report(run)).texts
    kept = (
        text
        for path, text in texts
        if not any(tag in hidden or "zh" in a.get("class", "").split() for tag, a in path)
    )
    return " ".join("".join(kept).split())


def _change(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def test_nothing_is_loaded_and_the_policy_names_what_may_run(finished_run: Path) -> None:
    text = _report(finished_run)
    parsed = Page(text)
    for tag, attributes in parsed.elements:
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:image/svg+xml,")), (tag, attributes)
    (style,) = parsed.within("style")
    assert not re.search(r"url\(|@import|https?:", style)
    scripts = [t for path, t in parsed.texts if path and path[-1][0] == "script"]
    (running,) = [t for path, t in parsed.texts if path and path[-1] == ("script", {})]
    assert len(scripts) == 2
    policy = next(
        a["content"] for t, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    for kind, content in (("style-src", style), ("script-src", running)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_the_head_says_what_the_files_say(finished_run: Path) -> None:
    shown = _shown(finished_run)
    tokens = 1800 * 4096
    timings = [json.loads(line) for line in (finished_run / "timings.jsonl").read_text().splitlines()]
    speed = statistics.median(row["tokens_per_second"] for row in timings if row["kind"] == "train")
    assert "A language model of 3.21 M parameters, trained on plays.txt" in shown
    assert "Bits per byte 1.401 bits/byte 95% interval 1.381 – 1.422" in shown
    assert "Perplexity 25.43 tokens 95% interval 24.28 – 26.68" in shown
    assert "Training time 2 min 58 s" in shown
    assert f"Tokens seen {tokens / 1e6:.2f} M" in shown
    assert f"Speed {speed / 1e3:.1f} k tokens/s" in shown
    assert f"Share of peak {100 * speed * 6 * 3.2e6 / 1.9e12:.1f}%" in shown
    assert f"Peak memory {1_204_000_000 / 2**30:.2f} GiB" in shown
    assert f"Computation {tokens * 6 * 3.2e6 / 1e12:.0f} TFLOP" in shown


def test_every_part_of_the_run_is_told(finished_run: Path) -> None:
    shown = _shown(finished_run)
    for expected in (
        "Good my lord, I never knew a man",
        "江上孤帆随雁远",
        "Caelo tonantem",
        "4.81 bits/byte",
        "English 86.1%",
        "214 changed",
        "31 removed",
        "唐诗三百首.jsonl.gz, line 77 Unterminated string",
        "0 are also in the training part and 2 are nearly so",
        "Byte-level BPE, 4,096 tokens, 3.33 bytes per token",
        "bfloat16 runs at 4.6x of float32 here",
        "asked for",
        "reason: same as plays.txt:45",
        "Validation · plays.txt, line 31Flourish.",
        "12 times, 1.3 s each",
        "luban predict shakespeare/model 'Once upon a time'",
        "luban evaluate shakespeare/model --data FILE",
        "learning_rate: 0.003",
        "2025-03-01 09:12:04 UTC",
    ):
        assert expected in shown, expected


def test_what_files_say_in_english_is_shown_in_both_languages(finished_run: Path) -> None:
    report = _report(finished_run)
    assert "本机 bfloat16 的速度为 float32 的 <bdi>4.6</bdi> 倍" in report
    assert "与 <bdi>plays.txt:3110</bdi> 相似（相似度 <bdi>0.91</bdi>）" in report


def test_a_finished_page_is_small_and_always_the_same(finished_run: Path) -> None:
    first = write_report(finished_run).read_bytes()
    assert write_report(finished_run).read_bytes() == first
    assert len(first) < 400_000


NOTATION = re.compile(
    r"[0-9.,:%−–—·\s-]|\b[kMBT]\b|万亿|[万亿]|e-?\d|[kMGTPE]?FLOP(?:/s)?|[KMGT]iB|\b[kMGT]?B(?:/s)?\b|UTC"
)


def _outside(text: str) -> str:
    """Remove what stands within ⟦⟧, nested or not."""
    depth, kept = 0, []
    for character in text:
        depth += (character == "⟦") - (character == "⟧")
        if depth == 0 and character != "⟧":
            kept.append(character)
    return "".join(kept)


@pytest.mark.parametrize("end", ["finished", "running", "failed"])
def test_no_word_of_the_page_bypasses_the_catalogue(
    new_run: MakeRun, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    marked = {
        key: {language: f"⟦{text}⟧" for language, text in texts.items()}
        for key, texts in catalogue.entries().items()
    }
    monkeypatch.setattr(catalogue, "entries", lambda: marked)
    run = new_run(end=end)
    if end == "running":
        (run / "samples.jsonl").unlink()
        (run / "data" / "report.json").unlink()
    parsed = Page(_report(run))
    free = {"bdi", "code", "script", "style"}  # text of users and of programs
    rest = "\n".join(t if not any(tag in free for tag, _ in path) else "" for path, t in parsed.texts)
    unexplained = NOTATION.sub("", _outside(rest)).replace("luban", "", 1).replace("SHA", "", 1)
    assert unexplained.strip("› ") == ""
    for _, attributes in parsed.elements:
        for name in ("aria-label", "data-label-en", "data-label-zh", "title", "alt", "placeholder"):
            assert attributes.get(name, "⟦").startswith("⟦")
    if read_outs := parsed.within("script", id="read-out"):
        names = json.loads(read_outs[0])["names"]
        assert all(text.startswith("⟦") for both in names.values() for text in both.values())


def test_both_languages_are_complete(finished_run: Path) -> None:
    classes = [c for _, a in Page(_report(finished_run)).elements for c in a.get("class", "").split()]
    assert classes.count("en") == classes.count("zh") > 100


EVIL = "</script></title></pre><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}\"'`"


def _evil(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _evil(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_evil(item, key) for item in value]
    return EVIL + value if isinstance(value, str) and key not in ("kind", "event", "effect") else value


def test_text_of_users_is_shown_and_never_run(new_run: MakeRun) -> None:
    run = new_run()
    for path in [*run.rglob("*.json"), *run.glob("*.jsonl")]:
        lines = path.read_text("utf-8").splitlines()
        path.write_text("\n".join(json.dumps(_evil(json.loads(line))) for line in lines) + "\n", "utf-8")
    _change(run / "data" / "report.json", lambda d: d["languages"].update({EVIL: 0.5}))
    _change(run / "evaluation.json", lambda d: d["metrics"].update({EVIL: {"value": 1, "low": 0, "high": 2}}))
    parsed = Page(_report(run))
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert not any(name.startswith("on") for _, a in parsed.elements for name in a)
    assert sum(EVIL in text for text in parsed.within("bdi")) > 20
    assert "49" not in "".join(parsed.within("bdi"))


def test_a_run_folder_with_an_evil_name(tmp_path: Path, finished_run: Path) -> None:
    run = tmp_path / "<script>alert(1)<'$(reboot)"
    shutil.copytree(finished_run, run)
    parsed = Page(_report(run))
    assert [tag for tag, _ in parsed.elements].count("script") == 2
    command = next(text for text in parsed.within("code") if text.startswith("luban predict"))
    assert command.startswith("""luban predict '<script>alert(1)<'"'"'$(reboot)/model'""")


def test_control_characters_broken_characters_and_direction_marks(new_run: MakeRun) -> None:
    run = new_run()
    text = "a\x00b\x1b[31m\x85\ufffe \u202eabc مرحبا"
    lines = json.dumps({"step": 10, "prompt": "p", "text": text}) + '\n{"step": 20, "text": "\\ud800x"}\n'
    (run / "samples.jsonl").write_text(lines)
    report = _report(run)
    assert "a\\x00b\\x1b[31m\\x85\ufffd \u202eabc مرحبا</bdi>" in report
    assert "\ufffdx" in report
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", report)


def test_values_that_are_no_numbers_leave_gaps_and_are_counted(new_run: MakeRun) -> None:
    run = new_run()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    broken = [math.nan, math.inf, -math.inf, None, "much", 1e300]
    for row, loss in zip([r for r in rows if r["kind"] == "train"][9:], broken, strict=False):
        row["loss"] = loss
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = _report(run)
    assert not re.search(r"\b(nan|inf|NaN|Infinity)\b", report)
    assert "6 steps logged a loss that is not a number, first at step 10" in _shown(run)


def test_a_torn_last_line_is_ignored_and_a_broken_one_is_told(new_run: MakeRun) -> None:
    run = new_run()
    before = _report(run)
    for name in ("metrics", "timings", "samples", "events"):
        with (run / f"{name}.jsonl").open("a") as file:
            file.write('{"kind": "train", "step": 99')
    assert _report(run) == before
    with (run / "events.jsonl").open("a") as file:
        file.write('\n[1]\n{"x": "' + "y" * (2 << 20) + '"}\n')
    assert "events.jsonl: 3 lines cannot be read" in _shown(run)


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("running", "broke off without a word"),
        ("stopped", "was asked to stop at step 60"),
        ("failed", "failed after step 60"),
    ],
)
def test_a_run_without_a_result_says_so_and_how_to_go_on(new_run: MakeRun, end: str, told: str) -> None:
    run = new_run(end=end)
    shown = _shown(run)
    assert told in shown
    # the notice and the list of events both say why
    assert shown.count("the loss became NaN at step 1801") == (2 if end == "failed" else 0)
    assert shown.count("luban resume run") == 2  # where it says what happened, and where it says how to go on
    assert "Tokens seen 246 k" in shown  # from the log: 60 steps of 4096
    assert "at step 60, during training" in shown
    assert "The final evaluation has not been made." in shown
    assert "luban resume" not in _shown(new_run())


def test_a_run_that_failed_before_its_first_step(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"task": "language-model"}')
    (tmp_path / "events.jsonl").write_text('{"event": "failed", "message": "no such file: a.txt"}\n')
    shown = _shown(tmp_path)
    for part in ("failed before its first step.", "What happenedno such file: a.txt", "The prepared data."):
        assert part in shown


def test_a_run_killed_between_its_result_and_its_last_event_is_finished(new_run: MakeRun) -> None:
    run = new_run()
    events = (run / "events.jsonl").read_text("utf-8").splitlines(keepends=True)
    (run / "events.jsonl").write_text("".join(events[:-1]), "utf-8")
    assert standing_of(run).state == "finished"  # as a resume says
    (run / "result.json").unlink()
    assert standing_of(run).state == "died"


def test_a_failed_run_says_what_happened_what_is_safe_and_what_goes_on(new_run: MakeRun) -> None:
    run = new_run(end="running")
    checkpoint = run / "checkpoints" / "step-00000040"
    with new_folder(checkpoint, extra={"format": 1, "step": 40}) as folder:
        (folder / "state.json").write_text("{}")
    message = "the gradient of step 61 is not finite; the step was not applied"
    row = {
        "time": "2025-03-01T09:15:21+00:00",
        "event": "failed",
        "message": message,
        "fix": "set <train.clip>",
    }
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    whole = write_report(run, verify=True).read_text("utf-8")
    shown = " ".join("".join(text for _, text in Page(whole).texts).split())
    for part in (
        message,
        "第 61 步的 gradient 不是有限数值",
        "set <train.clip>",
        "The checkpoint of step 40",
        "every byte was verified",
        "luban train run/recipe.json train.learning_rate=0.0015 --out run-2",
    ):
        assert part in shown
    assert "it is verified before it is used" in _shown(run)
    (checkpoint / "state.json").write_text("{ }")
    assert "No checkpoint is whole" in write_report(run, verify=True).read_text("utf-8")


def test_a_report_of_a_run_that_is_held_says_that_it_goes_on(new_run: MakeRun, tmp_path: Path) -> None:
    run = new_run(end="running")
    with (run / ".lock").open("w+") as lock:
        lock.write("process 12 on <host>")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        page_text = write_report(run, out=tmp_path / "other.html").read_text("utf-8")
        assert not (run / "report.html").exists()
    assert "This run is going on" in page_text
    assert "process 12 on &lt;host&gt;" in page_text
    assert "luban resume" not in page_text
    with pytest.raises(InputError, match="folder for the report is not there"):
        write_report(run, out=tmp_path / "nowhere" / "other.html")


def test_predicted_stands_beside_measured_and_what_was_chosen_beside_its_reason(new_run: MakeRun) -> None:
    run = new_run()
    predicted = {
        "steps": 50,
        "peak_bytes": 2**30,
        "seconds": 100,
        "figures": {"nats_per_character": 1.5, "mine": 2},
    }
    measured = {"steps": 60, "peak_bytes": None, "seconds": 90.0, "figures": {"nats_per_character": 1.575}}
    chosen = {"model.width": {"value": 192, "why": "fits <3> minutes"}, "odd": 3}
    _change(run / "plan.json", lambda plan: plan.update(predicted=predicted, chosen=chosen))
    _change(run / "result.json", lambda result: result.update(measured=measured))
    shown = _shown(run)
    for part in ("Steps5060+20%", "Peak memory1.00 GiB——", "1 min 40 s1 min 30 s−10.0%", "1.5001.575+5.0%"):
        assert part in shown.replace("+20.0%", "+20%"), part
    assert "model.width192fits <3> minutes" in shown
    assert "Predicted and measured" not in _shown(new_run(steps=48))


def test_an_empty_folder_and_none(tmp_path: Path) -> None:
    assert "no log of training steps yet" in _shown(tmp_path)
    with pytest.raises(InputError, match="no run to report on"):
        write_report(tmp_path / "absent")


def test_each_file_may_be_absent_or_broken(new_run: MakeRun) -> None:
    run = new_run()
    files = [path for path in run.rglob("*.json*") if path.is_file()]
    for path in files:
        whole = path.read_bytes()
        path.unlink()
        Page(_report(run))
        for broken in (b"\xff\xfe", b"[" * 100_000, b"null\n"):
            path.write_bytes(broken)
            Page(_report(run))
        if path.suffix == ".json":
            assert f"{path.relative_to(run)} is there but cannot be read" in _shown(run)
        path.write_bytes(whole)


def test_a_prepared_folder_elsewhere_is_found_through_the_plan(new_run: MakeRun, tmp_path: Path) -> None:
    run = new_run()
    (run / "data").rename(tmp_path / "prepared")
    assert "There is no data report" in _shown(run)
    _change(run / "plan.json", lambda plan: plan.update(data=str(tmp_path / "prepared")))
    assert "7,542 rows" in _shown(run)


def test_a_log_of_any_length_gives_a_page_of_bounded_size(new_run: MakeRun) -> None:
    run = new_run(steps=60)
    with (run / "metrics.jsonl").open("w") as metrics, (run / "timings.jsonl").open("w") as timings:
        for step in range(1, 20_001):
            loss = 3 + 5 / step + (7 if step == 11_234 else 0)
            metrics.write(
                f'{{"kind":"train","step":{step},"tokens":{step * 64},"loss":{loss},"gradient_norm":1}}\n'
            )
            if step % 10 == 0:
                metrics.write(f'{{"kind":"evaluation","step":{step},"tokens":{step * 64},"loss":{loss}}}\n')
            timings.write(f'{{"kind":"train","step":{step},"seconds":{step / 9},"tokens_per_second":576}}\n')
    with (run / "samples.jsonl").open("w") as samples, (run / "events.jsonl").open("w") as events:
        for step in range(3000):
            samples.write(json.dumps({"step": step, "prompt": "p", "text": "long " * 2000}) + "\n")
            events.write(json.dumps({"time": step, "event": "resumed", "message": f"number {step}"}) + "\n")
    report = _report(run)
    assert len(report) < 600_000
    records = read_run(run)
    assert len(records.samples) <= 65
    assert next(iter(records.samples)) == 0
    assert list(records.samples)[-1] == 2999
    steps = list(records.samples)[:-1]
    assert len({b - a for a, b in itertools.pairwise(steps)}) == 1
    assert "number 0<" in report
    assert "number 2999<" in report
    read_out = json.loads(Page(report).within("script", id="read-out")[0])["tables"]["train"]
    assert 11_234 in read_out["step"]


def test_a_step_logged_again_takes_the_place_of_the_old() -> None:
    table = Table(("step", "loss"))
    for loss, step in enumerate((1, 2, 3, 4, 3, 4, 5)):
        table.add({"step": step, "loss": loss})
    assert table["step"].tolist() == [1, 2, 3, 4, 5]
    assert table["loss"].tolist() == [0, 1, 4, 5, 6]


class _FullDisk(FileSystem):
    def write(self, file: Any, data: bytes | memoryview) -> None:
        raise OSError(28, "No space left on device")


def test_a_failed_write_leaves_the_old_report(new_run: MakeRun) -> None:
    run = new_run()
    before = write_report(run).read_bytes()
    (run / "result.json").unlink()
    with pytest.raises(StorageError):
        write_report(run, _FullDisk())
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob(".*"))


NAMES = st.sampled_from(
    [
        "kind",
        "step",
        "tokens",
        "loss",
        "seconds",
        "took",
        "text",
        "prompt",
        "event",
        "time",
        "message",
        "task",
        "data",
        "source",
        "files",
        "name",
        "bytes",
        "rows",
        "bad_rows",
        "kinds",
        "examples",
        "cleaning",
        "effect",
        "languages",
        "split",
        "train",
        "validation",
        "overlap",
        "exact",
        "tokenizer",
        "primary",
        "value",
        "metrics",
        "low",
        "high",
        "counts",
        "worst",
        "best",
        "status",
        "parameters",
        "total",
        "compile",
        "dtype",
        "why",
        "peak_flops",
        "cores",
        "threads",
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["train", "evaluation", "finished", "bits_per_byte", "loss", "\ud800", "a\0b"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(NAMES | st.text(), inner, max_size=8)
    ),
    max_leaves=25,
)
FILES = ["recipe", "machine", "plan", "evaluation", "result", "data/report"]
LOGS = ["metrics", "timings", "samples", "events"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from(FILES), st.dictionaries(NAMES | st.text(), VALUES, max_size=8)),
    st.dictionaries(st.sampled_from(LOGS), st.lists(st.dictionaries(NAMES, VALUES, max_size=6), max_size=6)),
)
def test_any_json_gives_a_page(tmp_path: Path, files: dict[str, Any], logs: dict[str, Any]) -> None:
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    (run / "data").mkdir(parents=True)
    for name, value in files.items():
        (run / f"{name}.json").write_text(json.dumps(value))
    for name, rows in logs.items():
        (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = _report(run)
    Page(page)
    assert page.rstrip().endswith("</html>")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[str, str]]]:
    """Load a page in headless Chromium; gives the resulting document and what the console said."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium here to load the page in")
    folder = tmp_path_factory.mktemp("browser")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    )
    more = "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=3000"

    def load(html: str) -> tuple[str, str]:
        source = folder / "page.html"
        source.write_text(html, encoding="utf-8")
        command = [
            program,
            *flags.split(),
            *more.split(),
            "--dump-dom",
            f"--user-data-dir={folder / 'profile'}",
        ]
        done = subprocess.run(
            [*command, "--window-size=1200,900", source.as_uri()], capture_output=True, timeout=60, check=True
        )
        console = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if "CONSOLE" in line]
        return done.stdout.decode("utf-8"), "\n".join(console)

    yield load


FRAMES = """<!doctype html><meta charset="utf-8"><body><script>
for (const width of [360, 390, 1100]) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `flex: none; width: ${width}px; height: 800px; border: 0`;
  frame.srcdoc = PAGE;
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement, told = {};
    for (const details of page.querySelectorAll("details")) details.open = true;
    root.lang = "en";
    told.english = root.scrollWidth;
    page.getElementById("language").click();
    told.switched = root.lang;
    told.chinese = root.scrollWidth;
    told.title = page.title;
    page.getElementById("theme").click();
    told.theme = root.dataset.theme;
    page.getElementById("axis-tokens").click();
    const plot = page.querySelector(".over-tokens svg.plot"), box = plot.getBoundingClientRect();
    told.hidden = page.querySelector(".over-step svg.plot").getBoundingClientRect().width;
    const at = { clientX: box.left + box.width / 2, clientY: box.top + 9 };
    plot.dispatchEvent(new PointerEvent("pointermove", at));
    told.read = page.querySelector(".readout").innerText;
    const out = document.createElement("output");
    out.textContent = JSON.stringify({ width, ...told });
    document.body.append(out);
  };
  document.body.append(frame);
}
</script>"""


def test_in_a_browser(finished_run: Path, browser: Callable[[str], tuple[str, str]]) -> None:
    text = json.dumps(_report(finished_run)).replace("</", "<\\/")
    document, console = browser(FRAMES.replace("PAGE", text))
    assert console == ""
    told = [json.loads(found) for found in re.findall(r"<output>(.*?)</output>", document)]
    assert sorted(one["width"] for one in told) == [360, 390, 1100]
    for one in told:
        assert one["english"] <= one["width"]
        assert one["chinese"] <= one["width"]
        assert {one["switched"], one["theme"]} <= {"zh-CN", "en", "dark", "light"}
        assert one["hidden"] == 0
        assert re.search(r"3,68\d,\d{3}", one["read"])  # half of 7.37 M tokens
    assert any("训练的" in one["title"] for one in told)


def test_direction_marks_do_not_reach_the_title() -> None:
    assert page.plain("a\u202eb\n\x07") == "ab \\x07"
