"""The coupled Transformer: it reasons in the tokens it speaks."""
