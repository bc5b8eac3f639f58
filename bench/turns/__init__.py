"""Two versions of the server, or one with two sets of options, under the same load in turns."""
