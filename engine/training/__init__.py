"""What happens while a run trains: the loop, checkpoints, signals, several processes, time and logging."""
