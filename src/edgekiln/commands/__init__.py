"""What the commands do: a room for each group of them. tasks.py has their flags."""
