"""The mathematics of language models, and only that: no files, no devices, no distribution.

`decoder` is the one decoder behind Llama, Mistral, Qwen2 and Qwen3; `gpt2` is GPT-2. Both are made of
`attention`, `rope`, `norm` and `dropout`. `cache` remembers keys and values while text is generated,
`sampling` and `generation` choose tokens, `loss` is cross-entropy without the full logits, `flops` counts
work, `layouts` maps configurations and names to Hugging Face's and back.
"""
