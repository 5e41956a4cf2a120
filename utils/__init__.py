"""What any room may use: files, masks, video, processes, errors, and the batch type."""
