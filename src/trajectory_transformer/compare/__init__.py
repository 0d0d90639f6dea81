"""Methods compared over tasks and seeds, from what their runs' ``results.json`` say. Nothing here imports torch."""
