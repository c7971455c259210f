"""Recipe -> stages -> transformers.Trainer."""
