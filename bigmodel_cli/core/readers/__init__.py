"""Readers of what people write: texts, tables and JSON lines, in any encoding, strict and bounded."""
