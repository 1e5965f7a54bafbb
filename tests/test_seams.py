"""Each kind of thing that people add has one registry: one of each is added here from outside, and run."""
