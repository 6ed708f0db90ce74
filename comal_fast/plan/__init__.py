"""What a run costs in memory and time, from its configuration alone, and which mode fits."""
