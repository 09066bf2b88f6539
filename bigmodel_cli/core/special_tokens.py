"""Special tokens and their names in published tokenizers."""

PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<start>", "<end>"
SPECIALS = (PAD, UNKNOWN, START, END)
ALIASES = {
    PAD: ("[PAD]", "<|pad|>", "<|endoftext|>"),
    UNKNOWN: ("[UNK]",),
    START: ("<s>", "[CLS]", "<bos>", "<|begin_of_text|>"),
    END: ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]"),
}
"""The names of these tokens in published tokenizers."""
