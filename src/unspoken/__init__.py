"""Language models that reason without speaking."""
