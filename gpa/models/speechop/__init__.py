"""The SpeechOp family (arXiv 2509.14298): one latent-diffusion transformer for many speech tasks, composed at
inference. docs/speechop.md maps the paper's sections to these modules.
"""
