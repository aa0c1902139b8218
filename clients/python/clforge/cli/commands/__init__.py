"""The commands: what each takes and says of itself. What does the work is imported when one runs, so that help is there
at once."""

from clforge.cli.commands import generation, machine, requests, serving, tokens

GROUPS = (serving.app, generation.app, requests.app, tokens.app, machine.app)  # in the order of --help
