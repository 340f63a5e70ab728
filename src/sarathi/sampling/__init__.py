"""From logits to tokens: what a request asks for, and the sampler of CPUs."""
