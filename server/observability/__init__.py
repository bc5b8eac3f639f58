"""What operators see: metrics, the status page, logs, request ids and traces."""
