"""Tables of the documentation, made from the copies of ``figures.csv`` in results/."""
