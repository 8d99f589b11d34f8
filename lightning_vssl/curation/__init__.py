"""Choosing the videos that are worth learning from (VITO section 3.2, VideoNet)."""
