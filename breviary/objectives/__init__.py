"""Training objectives: each turns a batch into supervised batches and defines the loss of their answer tokens.

Readers compute the states that predict the tokens; nothing here runs a reader. Metrics of evaluation are injected.
"""
