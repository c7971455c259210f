"""The coupled Transformer: it reasons in the tokens that it writes."""
