"""Helpers for a course that trains and honestly evaluates a U-Net on fetal ultrasound images."""

__version__ = "0.1.0"
