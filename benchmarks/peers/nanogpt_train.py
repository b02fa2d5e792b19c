"""nanoGPT's own train.py from a clone, with the CPU flags of its README; settings `shipped`, `compile`, `edited`.

On a CPU train.py computes in float32 whatever `--dtype` says (its autocast is a null context there), so its
best settings are compiling. `edited` changes that one line in the copy, as somebody who wants bfloat16 would.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

from measured import BATCH, LENGTH, asked

NULL = "nullcontext() if device_type == 'cpu' else torch.amp.autocast"


def main() -> None:
    options = asked()
    shape, last = options.shape, options.total - 1
    clone = options.scratch / "nanoGPT"
    shutil.copytree(options.clone, clone, ignore=shutil.ignore_patterns(".git"))
    data = clone / "data" / "shakespeare_char"
    shutil.copy(options.text, data / "input.txt")
    subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True)
    dtype = "float32"
    if options.setting == "edited":
        dtype, script = "bfloat16", (clone / "train.py").read_text()
        assert NULL in script, "train.py is not the one this was written for"
        (clone / "train.py").write_text(script.replace(NULL, "torch.amp.autocast"))
    flags = {
        "device": "cpu", "dtype": dtype, "compile": options.setting != "shipped", "eval_iters": 1, "log_interval": 1,
        "block_size": LENGTH, "batch_size": BATCH, "n_layer": shape.layers, "n_head": shape.heads,
        "n_embd": shape.width, "max_iters": last, "lr_decay_iters": options.total, "dropout": 0.0,
        "eval_interval": 1_000_000,
    }  # fmt: skip
    command = [sys.executable, "-u", "train.py", "config/train_shakespeare_char.py"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    process = subprocess.Popen(command, cwd=clone, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    parameters = 0
    for line in process.stdout:
        print(line, end="", flush=True)
        if match := re.match(r"iter \d+: loss ([\d.]+)", line):
            options.measured.step_ended(float(match[1]))
        if match := re.match(r"number of parameters: ([\d.]+)M", line):
            parameters = round(1e6 * float(match[1]))
    assert process.wait() == 0, "train.py failed"
    settings = {"compile": flags["compile"], "dtype": dtype}
    options.measured.write(dtype=dtype, parameters=parameters, settings=settings)


if __name__ == "__main__":
    main()
