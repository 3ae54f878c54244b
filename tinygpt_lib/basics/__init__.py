"""What stands below the lessons, by hand: it keeps their code safe and knows no GPT."""

__all__: list[str] = []
