"""Finds the mistakes that explain a failed proof by weights; it decides nothing about passing."""
