"""Other ways to ask for an answer: each a pure translation on top of chat completions. No host knows of them."""
