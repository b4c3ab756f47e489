"""The command line's tools: what can be done besides training and evaluation.

``mobilemamba_command.COMMANDS`` lists them, by the path of their functions: each is imported when it is called.
"""
