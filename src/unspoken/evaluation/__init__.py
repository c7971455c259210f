"""Answering, grading, cost, significance and interventions."""
