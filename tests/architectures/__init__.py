"""Which adapters of which architectures are served as PEFT computes them, and which are refused."""
