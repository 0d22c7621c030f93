"""The commands of `python -m tinydispatch`, one file each."""
