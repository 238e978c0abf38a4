"""Run folders, on a disk or in an object store: this package alone knows what is in them and how it is written."""
