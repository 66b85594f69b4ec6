"""Trainings that are killed, stopped and taken up again, in processes of their own."""
