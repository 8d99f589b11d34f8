"""What watches a run: online evaluation, collapse monitors, pictures, progress, export."""
