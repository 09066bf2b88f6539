"""The kinds of tokenizer, one file a kind; :mod:`bigmodel_cli.core.tokens` uses them by name."""
