"""What a task trains: model, loss, batches."""
