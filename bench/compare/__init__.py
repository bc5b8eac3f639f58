"""`python -m bench compare`: fewstep beside the servers that people would otherwise use, in one run on one machine."""
