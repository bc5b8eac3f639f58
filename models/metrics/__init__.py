"""How good samples and energies are: FD-digits, out-of-distribution detection, and baselines for both."""
