"""What a run leaves behind: its result, the folder it lies in, and what several sum up to."""
