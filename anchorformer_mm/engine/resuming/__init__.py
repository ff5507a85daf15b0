"""Trainings that can end at any moment and go on as if they had not."""
