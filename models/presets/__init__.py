"""Models at the papers' own sizes, by name, with seeded random weights: for measuring what serving them costs.

`python -m models.presets` lists them; `python -m models.presets NAME --output DIRECTORY` writes a checkpoint, which
`python -m export` turns into a bundle like any other. Nobody publishes trained weights of four of the five papers;
whoever has some in these architectures writes them over the random ones.
"""
