"""The tools of the command line: all commands except training and evaluation.

``mobilemamba_command.COMMANDS`` lists them by the paths of their functions, which are imported when they are called.
"""
