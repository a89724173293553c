"""Datasets as splits, batches and checks; one loader a file."""
