"""`python -m bench gate`: tells which ratios of a result are worse than those of an earlier one."""
