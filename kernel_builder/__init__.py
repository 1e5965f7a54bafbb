"""Packs an ensemble into one Python file and data sets that Kaggle takes as they are."""
