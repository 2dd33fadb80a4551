"""What a user can put right."""


class UserError(Exception):
    """Its text says what was found, what was expected and what to do next; it is printed without a traceback."""
