"""Packs an ensemble into one Python file and datasets that Kaggle takes as they are."""
