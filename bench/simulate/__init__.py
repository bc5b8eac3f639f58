"""`python -m bench simulate`: fleets of servers in a discrete-event simulation of the real batcher and admission."""
