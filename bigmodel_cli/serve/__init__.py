"""An exported model behind HTTP: a page, answers in batches, limits, figures. Imports no torch."""
