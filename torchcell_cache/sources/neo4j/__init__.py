"""Experiments in a graph database."""
