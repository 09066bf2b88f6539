"""Tokenizers: each kind in one file (:mod:`.kind` says what one is), and what uses them by name (:mod:`.tokens`)."""
