"""How the model learns: DeepSpeed engine, arguments, checkpoints, logs."""
