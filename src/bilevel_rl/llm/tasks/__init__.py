"""Tasks of the language-model side: each brings a policy, prompts, a judge and a gold score, or builds them."""
