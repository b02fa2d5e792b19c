"""transformers' Trainer on its GPT-2 or Qwen3.

Settings: FAMILY-shipped, FAMILY-compile, FAMILY-bf16, FAMILY-bf16-compile.

Shipped is what `TrainingArguments` are when only data, size and device are said: float32, fused AdamW, no
compiling. Dropout is zero, as in every other candidate (GPT2Config's default of 0.1 would cost the Trainer
time).
"""

from __future__ import annotations

import torch
from measured import BATCH, LENGTH, Shape, asked, windows
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


def build(family: str, shape: Shape, vocab_size: int) -> PreTrainedModel:
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab_size, n_positions=LENGTH, n_layer=shape.layers, n_embd=shape.width,
                n_head=shape.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
                bos_token_id=None, eos_token_id=None,
            )
        )  # fmt: skip
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocab_size, max_position_embeddings=LENGTH, num_hidden_layers=shape.layers,
            hidden_size=shape.width, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
            head_dim=shape.width // shape.heads, intermediate_size=shape.mlp_width, tie_word_embeddings=True,
            use_cache=False, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


class Clock(TrainerCallback):
    def __init__(self, measured) -> None:
        self.measured = measured

    def on_step_end(self, *_, **__) -> None:
        self.measured.step_ended()

    def on_log(self, args, state, control, logs=None, **_) -> None:  # noqa: ARG002
        if logs and "train_loss" in logs:
            self.measured.losses.append(logs["train_loss"])


def main() -> None:
    options = asked()
    family, _, how = options.setting.partition("-")
    rows, vocab_size = windows(options.text)
    rows = [{"input_ids": torch.tensor(row), "labels": torch.tensor(row)} for row in rows]
    model = build(family, options.shape, vocab_size)
    settings = {
        "shipped": {},
        "compile": {"torch_compile": True},
        "bf16": {"bf16": True},
        "bf16-compile": {"bf16": True, "torch_compile": True},
    }[how]
    arguments = TrainingArguments(
        output_dir=str(options.scratch), per_device_train_batch_size=BATCH, max_steps=options.total,
        learning_rate=1e-3, use_cpu=True, save_strategy="no", report_to=[], **settings,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Clock(options.measured)])
    trainer.train()
    options.measured.write(
        dtype="bfloat16" if "bf16" in how else "float32",
        parameters=sum(p.numel() for p in model.parameters()),
        settings=settings,
    )


if __name__ == "__main__":
    main()
