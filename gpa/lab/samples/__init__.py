"""A page of sound from an evaluation: text, recording, ours and the baselines, chosen without listening."""
