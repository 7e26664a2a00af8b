"""Model card and data card, written from files: the checkpoint, its runs, the manifest, a report, notes."""
