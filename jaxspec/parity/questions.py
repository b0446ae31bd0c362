"""What parity is checked on if the user names no texts: short questions of several kinds."""

QUESTIONS = (
    "What is 12 plus 30?",
    "Write a Python function that returns the larger of two numbers.",
    "Name three animals that can fly, and say where each of them lives.",
    "A train travels 180 miles in 3 hours. How fast is it?",
    "Explain in two sentences why the sky is blue.",
    "Write a short letter that thanks a friend for a book.",
)
