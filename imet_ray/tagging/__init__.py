"""Tagging collections: from files, folders and buckets to tables and sidecars, as far as it was stopped, and on."""
