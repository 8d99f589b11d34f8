"""Any backbone with any method in any evaluation: what runs, and what is refused and why."""
