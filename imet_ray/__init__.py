"""imet_ray: from a folder of labelled images to the best blended multi-label tagger."""

__version__ = "0.1.0"
