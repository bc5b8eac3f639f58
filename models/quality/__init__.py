"""`python -m models quality`: what every model of the zoo is worth, sampled and scored by the offline loop."""
