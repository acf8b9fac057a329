"""The reference checkpoint: its text, how it was trained, and the files it ships as."""
