"""Special tokens, and what published tokenizers call them."""

PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<start>", "<end>"
SPECIALS = (PAD, UNKNOWN, START, END)
ALIASES = {
    PAD: ("[PAD]", "<|pad|>", "<|endoftext|>"),
    UNKNOWN: ("[UNK]",),
    START: ("<s>", "[CLS]", "<bos>", "<|begin_of_text|>"),
    END: ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]"),
}
"""What published tokenizers call them."""
