"""The command lines: parsing and printing, of a clone's scripts and of an installed package."""
