"""Recipes, one folder an experiment, one file a size."""
