"""What is removed once nobody needs it: decided as a value, then carried out under traffic."""
