"""One server for synthesis, recognition, conversion and enhancement: HTTP, and no model code."""
