"""What runs: admission, the step batcher, the engine's thread and the runner."""
