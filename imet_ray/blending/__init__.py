"""Fitting the weights of an ensemble, and saying honestly what they are worth."""
