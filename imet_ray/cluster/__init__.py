"""The only importers of ray and optuna: they adapt the core to a cluster and add nothing to it."""
