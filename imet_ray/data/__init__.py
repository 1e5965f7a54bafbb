"""Folders of labelled pictures: read, checked, split into folds, packed, augmented, loaded."""
