"""Runs of ``train`` and ``finetune``: the layers of their recipes, their pages, folds and dry runs."""
