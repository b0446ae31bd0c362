"""Kinds of training, one file for each.

To add one: write a file here that ends with its `TaskKind`, enter it in `registry.TASKS`, say in
`settings.GROUPS` which groups of settings it reads, and add its name to
`jaxspec.config.TrainingConfig.task`.
"""
