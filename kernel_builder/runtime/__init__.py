"""What runs inside the kernel: offline, alone, against a clock."""
