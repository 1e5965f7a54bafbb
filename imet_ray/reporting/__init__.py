"""What people look at: pages, figures, the status of a run, exports to other tools."""
