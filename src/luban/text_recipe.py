"""What the recipe of a language model says besides what all recipes do: text, its cleaning, the decoder, evaluation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from luban.recipe import FoldCount, FoldNumber, Fraction, Positive, Recipe, Section, check_folds


class CleanRecipe(Section):
    """Steps that clean text; each can be switched off, each is counted with examples in the data report."""

    unicode: Literal["none", "NFC", "NFKC"] = "NFC"
    """Unicode normal form of the text: NFC composes accents, NFKC also folds full-width and similar forms."""
    control_characters: bool = True
    """Drop control characters, bidirectional overrides and byte-order marks within a text; other line breaks
    become LF."""
    min_characters: Annotated[int, Field(ge=0)] = 1
    """Remove a document with fewer characters, white space at its ends aside."""
    max_characters: Positive | None = None
    """Remove a document with more characters; null removes none."""
    max_repetition: Fraction | None = None
    """Remove a document that repeats a larger share of its lines or four-word runs; null removes none."""
    max_symbols: Fraction | None = None
    """Remove a document with a larger share of symbols among what is not white space; null removes none."""
    language: Literal["en", "zh"] | None = None
    """Keep only documents in this language, told by the script of their letters; null keeps all."""
    min_language_share: Fraction = 0.5
    """The least share of letters in the script of `language`; without `language` it means nothing."""
    exact_duplicates: bool = True
    """Remove a document whose text stood before, white space aside."""
    near_duplicates: Fraction | None = 0.85
    """Remove a document that is at least this similar to an earlier one (MinHash estimate of the Jaccard
    similarity of four-word runs); null removes none."""
    mask_personal: bool = False
    """Put <EMAIL>, <PHONE>, <CARD>, <ID> and <IP> in the place of personal data."""


class TextData(Section):
    """Where text comes from and how it becomes tokens."""

    source: str | list[str]
    """File, folder, glob, `builtin:NAME`, saved `datasets` folder, folder that `luban prepare` made, or a
    list of files, folders and globs."""
    validation: str | list[str] | None = None
    """Files held out as they are, written as in `source`; null holds out a part of `source`."""
    text: str = "text"
    """The column of the text in .jsonl, .csv, .tsv, .parquet and saved datasets."""
    document: Literal["auto", "file", "passage", "line"] = "auto"
    """What a document of plain text is; `auto` means passages, and whole files for the small ones where a
    source has 16 files or more."""
    on_bad_row: Literal["error", "skip", "quarantine"] = "quarantine"
    """What to do with a row that cannot be used: stop, leave it out, or leave it out and keep it in
    quarantine.jsonl."""
    max_row_bytes: Positive = 10_000_000
    """A longer row is a bad row; a longer line of running text is only noted and cut into passages."""
    clean: CleanRecipe | None = CleanRecipe()
    """The cleaning steps; null changes and removes nothing."""
    split: Literal["document", "tail"] = "document"
    """`document` holds out whole documents by a hash of their text; `tail` holds out the end of all text put
    together."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """The share held out: of documents, or with `tail` of characters."""
    folds: FoldCount | None = None
    """Cross-validation: as many runs in one, each holding out another part of `source`, by `split`; reported with
    their spread. `validation_fraction` then means nothing."""
    fold: FoldNumber | None = None
    """Which of the folds this run holds out, from 0; set by a run over all folds."""
    tokenizer: str = "bpe"
    """`bpe` (byte-level) or `char`, trained on the training text; or the path of a tokenizer.json or of the
    folder that holds one."""
    vocab_size: Annotated[int, Field(ge=2)] = 4096
    """Most tokens a trained tokenizer may have, special ones included; `bpe` needs at least 257."""
    byte_fallback: bool = True
    """With `char`: write a character the vocabulary lacks as its UTF-8 bytes, not as one unknown token."""
    length: Annotated[int, Field(ge=2)] | None = None
    """Tokens the model reads at once; null means chosen."""
    short_steps: Annotated[int, Field(ge=0)] | None = None
    """So many first steps read windows of half the length, and so half as many tokens; null means chosen."""
    attention: Literal["stream", "document"] = "stream"
    """`stream` attends across the ends of documents within a window, `document` only within a document."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that clean; 0 means one for each core where there are 16 MB or more to read, else one."""
    seed: int = 0
    """Chooses which documents are held out."""

    @model_validator(mode="after")
    def _folds_fit(self) -> Self:
        check_folds(self.folds, self.fold, of="source", judge="validation", given=self.validation)
        return self

    @property
    def place(self) -> str | list[str]:
        """Where the data to learn from lies."""
        return self.source


class RopeScaling(Section):
    """RoPE scaling of Llama 3: stretches low frequencies so that longer texts than trained on are read."""

    rope_type: Literal["llama3"] = "llama3"
    """The rule; Llama 3's is the only one."""
    factor: Annotated[float, Field(ge=1.0)] = 8.0
    """How much the low frequencies are stretched."""
    low_freq_factor: Annotated[float, Field(gt=0.0)] = 1.0
    """Frequencies with fewer than this many turns in the original length are stretched whole."""
    high_freq_factor: Annotated[float, Field(gt=0.0)] = 4.0
    """Frequencies with more than this many turns in the original length stay as they are."""
    original_max_position_embeddings: Positive = 8192
    """The length in tokens before scaling."""


class DecoderModel(Section):
    """The decoder's shape. `layout` says which family's folder is written; its rules fill in the rest."""

    layout: Literal["llama", "mistral", "qwen2", "qwen3", "gpt2"] = "qwen3"
    """The family whose folder is written: `llama`, `mistral`, `qwen2` (attention biases), `qwen3` (QK-norm)
    or `gpt2` (learned positions; `kv_heads`, `head_dim`, `rope_theta`, `rope_scaling`, `norm_eps`,
    `attention_bias` and `tied` are refused)."""
    start: str | None = None
    """A run or a model folder whose weights, shape and tokenizer training starts from; the other keys of
    `model` then mean nothing."""
    layers: Positive | None = None
    """Blocks of attention and MLP; null means chosen for the budget, the machine and the text."""
    width: Positive | None = None
    """Dimensions of the hidden state; null means chosen with `layers`."""
    heads: Positive | None = None
    """Attention heads; null means as many as `width` has 32 dimensions, or 64 from a width of 256 on."""
    kv_heads: Positive | None = None
    """Heads of keys and values (grouped-query attention); null means as many as `heads`."""
    head_dim: Positive | None = None
    """Dimensions of a head, an even number; null means width / heads."""
    mlp_width: Positive | None = None
    """Width inside the MLP; null means 8/3 of `width` rounded up to a multiple of 32, with gpt2 four times
    `width`."""
    rope_theta: Annotated[float, Field(gt=0.0)] = 10_000.0
    """Base of the rotary position embedding."""
    rope_scaling: RopeScaling | None = None
    """Scaling of the rotary position embedding; null for none."""
    norm_eps: Annotated[float, Field(gt=0.0)] = 1e-6
    """What RMSNorm adds to the mean square."""
    attention_bias: bool = False
    """Biases in the attention's projections; mistral has none, qwen2 always has them."""
    tied: bool = True
    """The output embedding is the input embedding."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the embedding and of what each block adds that is zeroed while training."""

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.heads is None:
            return self
        if self.width is not None and self.head_dim is None and self.width % self.heads:
            raise ValueError(
                f"width ({self.width}) is not a multiple of heads ({self.heads}); set head_dim or change one"
            )
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads ({self.heads}) is not a multiple of kv_heads ({self.kv_heads})")
        return self


class TextEvaluation(Section):
    """What is measured on held-out text, and which figure counts."""

    primary: Literal["bits_per_byte", "loss", "nats_per_character", "perplexity"] = "bits_per_byte"
    """The figure that counts, for early stopping and as the result's primary value; lower is better."""
    stride: Positive | None = None
    """How far the context moves; null means `data.length`. Smaller gives each token more context and takes
    longer."""
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Resamples of the 95 % intervals; 0 makes none."""
    prompts: list[str] = Field(default=[])
    """What the samples continue; without any, the openings of held-out documents."""
    sample_tokens: Annotated[int, Field(ge=0)] = 120
    """Tokens of each sample written at every evaluation; 0 writes none."""


_NOT_IN_GPT2 = ("kv_heads", "head_dim", "rope_theta", "rope_scaling", "norm_eps", "attention_bias", "tied")


class TextObjective(Section):
    """What the loss of a language model is."""

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of each target that is spread over the whole vocabulary; the loss in the log is with it, that of an
    evaluation without."""


class LanguageModelRecipe(Recipe):
    """The recipe of a language model."""

    task: Literal["language-model"] = "language-model"
    """What is learned."""
    data: TextData
    """Where the text comes from and how it becomes tokens."""
    model: DecoderModel = DecoderModel()
    """The model's shape."""
    objective: TextObjective = TextObjective()
    """What the loss is."""
    evaluate: TextEvaluation = TextEvaluation()
    """What is measured on held-out text."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.model.layout == "gpt2":
            asked = [
                name for name in _NOT_IN_GPT2 if getattr(self.model, name) != getattr(DecoderModel(), name)
            ]
            if asked:
                raise ValueError(
                    f"model.layout gpt2 has no {', '.join(asked)}; leave it out, or choose another layout"
                )
        stride, length = self.evaluate.stride, self.data.length
        if stride is not None and length is not None and stride > length:
            raise ValueError(f"evaluate.stride is at most data.length ({length}); lower it, or leave it out")
        if self.data.short_steps and length is not None and length % 2:
            raise ValueError(
                f"data.short_steps halves windows: data.length ({length}) must be even; change one of them"
            )
        if self.model.layout == "qwen2" and self.data.tokenizer == "char":
            raise ValueError(
                "tools that read layout qwen2 replace a char tokenizer; choose layout qwen3 or llama"
            )
        return self
