"""litgpt's GPT in litgpt's own loop (`litgpt.pretrain.setup`).

Settings: `shipped`, `bf16-mixed`, `bf16-true`, `32-true`.

The loop always compiles the model; shipped is the precision that litgpt chooses for the machine. Qwen3's
shape: RMSNorm, QK-norm, rotary positions, gated MLP, tied embeddings. The data is a module of ours, as litgpt
asks for one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from litgpt import pretrain
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule
from litgpt.utils import get_default_supported_precision
from measured import BATCH, LENGTH, TOKENS, asked, windows
from torch.utils.data import DataLoader


class Characters(DataModule):
    def __init__(self, text: Path) -> None:
        super().__init__()
        self.rows = torch.tensor(windows(text, more=1)[0])

    def connect(self, tokenizer=None, batch_size: int = 1, max_seq_length=None) -> None:  # noqa: ARG002
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.rows[:BATCH], batch_size=self.batch_size)


def main() -> None:
    options = asked()
    shape = options.shape
    vocab_size = windows(options.text)[1]
    config = Config(
        name="characters", block_size=LENGTH, n_layer=shape.layers, n_embd=shape.width, n_head=shape.heads,
        vocab_size=vocab_size, padded_vocab_size=vocab_size, norm_class_name="RMSNorm", norm_qk=True,
        parallel_residual=False, rotary_percentage=1.0, bias=False, mlp_class_name="LLaMAMLP",
        intermediate_size=shape.mlp_width,
    )  # fmt: skip
    precision = None if options.setting == "shipped" else options.setting
    seen: dict[str, Any] = {}

    def log(metrics: dict[str, Any]) -> None:
        if "loss" in metrics:
            options.measured.step_ended(float(metrics["loss"]))

    original = pretrain.L.Fabric.log_dict

    def log_dict(self: Any, metrics: dict[str, Any], step: int | None = None) -> None:
        log(metrics)
        original(self, metrics, step)

    counted = pretrain.num_parameters

    def num_parameters(module: Any, *arguments: Any) -> int:
        seen["parameters"] = sum({id(p): p.numel() for p in module.parameters()}.values())
        return counted(module, *arguments)

    sys.argv[1:] = ["characters"]  # which the loop reads again, to keep its settings beside the checkpoint
    pretrain.L.Fabric.log_dict, pretrain.num_parameters = log_dict, num_parameters
    pretrain.setup(
        "characters",
        model_config=config,
        out_dir=options.scratch / "litgpt",
        precision=precision,
        data=Characters(options.text),
        train=TrainArgs(
            save_interval=None, log_interval=1, global_batch_size=BATCH, micro_batch_size=BATCH,
            max_tokens=options.total * TOKENS, max_norm=1.0, min_lr=4e-5, lr_warmup_steps=2, tie_embeddings=True,
            max_seq_length=LENGTH,
        ),
        eval=EvalArgs(interval=1_000_000, max_iters=1),
        devices=1,
        logger_name="csv",
    )  # fmt: skip
    used = precision or get_default_supported_precision(training=True)
    options.measured.write(
        dtype="bfloat16" if "bf16" in used else "float32",
        parameters=seen["parameters"],
        settings={"precision": used, "compile": True},
    )


if __name__ == "__main__":
    main()
