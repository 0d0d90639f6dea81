"""Comparison of methods over tasks and seeds, from their runs' ``results.json``; does not import torch."""
