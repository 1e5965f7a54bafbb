"""What the command lines call: one function per stage."""
