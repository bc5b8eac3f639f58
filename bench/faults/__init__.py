"""The fault campaign: a server under requests with every fault, and the proof that it keeps its promises."""
