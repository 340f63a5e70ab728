"""What is sent, and when: lengths, arrivals, and the text of prompts."""
