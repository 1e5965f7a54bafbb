"""Run directories, on a disk or in a bucket: where artefacts lie and how they are written and read."""
