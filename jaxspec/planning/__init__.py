"""What a run takes, before it is paid for: memory, time and cost, from shapes and compiled code."""
