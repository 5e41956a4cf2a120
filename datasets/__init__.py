"""What the model learns from: one reader per corpus, one sample type, one collate."""
